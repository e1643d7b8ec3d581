"""What PODNet's distillation costs beside replay: the seconds of an iteration."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from hydra.utils import get_class

from clplat.backbones.classifier import classifier
from clplat.backbones.local_similarity import LocalSimilarity
from clplat.backbones.resnet import ResNet
from clplat.bench.data import split_floats
from clplat.bench.loops import stream
from clplat.bench.strategies import Stopwatch
from clplat.bench.timing import Figure, in_turns, ratio
from clplat.learner import Learner

SAMPLES = {10: 150, 128: 640}  # of an experience, by the size of a batch


def iterations(size: int, target: str, **arguments: Any) -> Iterator[float]:
    """Median seconds of an iteration in each experience but the first."""
    count = SAMPLES[size]
    pairs = [(x[:count].unflatten(1, (1, 28, 28)), y[:count]) for x, y in split_floats()]
    torch.manual_seed(0)
    encoder, watch = ResNet((1, 28, 28), (8, 16, 32), 1), Stopwatch()
    learner = Learner(
        classifier(encoder, LocalSimilarity(encoder.width, 10)),
        partial(torch.optim.SGD, lr=0.01),
        batch_size=size,
        plugins=[get_class(target)(capacity=200, **arguments), watch],
    )
    for index, experience in enumerate(stream(pairs)):
        learner.train(experience)
        if index:
            yield watch.costs[-1]


def distillation() -> Iterator[Figure]:
    """Replay and PODNet, a residual network of three blocks on 28x28 images."""
    for size in SAMPLES:
        seconds = in_turns(
            {
                "replay": partial(iterations, size, "strategies.replay.Replay", memory="herding"),
                "podnet": partial(iterations, size, "strategies.podnet.PODNet", balance_epochs=0),
            },
            rounds=3,
        )
        added = 100 * (ratio(seconds["podnet"], seconds["replay"]) - 1)
        yield Figure(
            f"PODNet, batch {size}: added to an iteration of replay", added, 60, "%", at_most=True
        )
