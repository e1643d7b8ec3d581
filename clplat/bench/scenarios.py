"""Figures of the scenarios: what a stream costs, N-parity's generator and step, few-shot tasks."""

import random
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from hydra.utils import get_method
from torch import Tensor, nn

from clplat.backbones.classifier import classifier
from clplat.backbones.levels import Levels
from clplat.backbones.recurrent import Recurrent
from clplat.batches import make_batches
from clplat.bench.data import split_floats
from clplat.bench.loops import mlp, ours, stream
from clplat.bench.timing import Figure, clock, in_turns, ratio
from clplat.layers.recurrent import LeakyRNN
from clplat.learner import Learner

STEPS = 10_000  # of the stream
LONGEST = 10  # N of the parity
STRINGS_STEPS, PARTS = 8, 12  # steps of a timed part, and parts
Pair = tuple[Tensor, Tensor]


def small_steps() -> Iterator[Figure]:
    """One stream of many small batches against a bare loop over the same batches."""
    x, y = (torch.cat(part) for part in zip(*split_floats(), strict=True))
    again = torch.arange(10 * STEPS) % len(y)
    x, y = x[again], y[again]
    train: Any = stream([(x, y)])
    train[0].ordered = True

    def bare() -> Iterator[float]:
        model = mlp(784, 64, 64, 10)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        began = clock()
        for inputs, label in zip(x.split(10), y.split(10), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), label).backward()
            optimizer.step()
        yield clock() - began

    contenders = {"bare": bare, "ours": partial(ours, train, (784, 64, 64, 10), 10)}
    seconds = in_turns(contenders, rounds=3)
    name = f"a stream of {STEPS} steps of 10 samples: of a bare loop"
    yield Figure(name, ratio(seconds["bare"], seconds["ours"]), 0.85)


# --- N-parity ------------------------------------------------------------------------------------


class Stepped(nn.Module):
    """A torch RNN with a head for each N, its cell called step by step or its layer at once."""

    def __init__(self, units: int, heads: int, cell: bool):
        super().__init__()
        self.units, self.cell = units, cell
        kind = nn.RNNCell if cell else partial(nn.RNN, batch_first=True)
        self.network = kind(1, units)
        self.heads = nn.ModuleList(nn.Linear(units, 2) for _ in range(heads))

    def forward(self, x: Tensor) -> Tensor:
        if self.cell:
            h = x.new_zeros(len(x), self.units)
            for inputs in x.unbind(1):
                h = self.network(inputs, h)
        else:
            h = self.network(x)[0][:, -1]
        return torch.stack([head(h) for head in self.heads], 1)


def python_strings(shapes: Iterable[Sequence[int]], lengths: range) -> Iterator[Pair]:
    """Strings and parities made one by one in Python, of as many strings and bits as asked for."""
    draw = random.Random(0)
    for count, time in shapes:
        strings, labels = [], []
        for _ in range(count):
            chance = draw.random()
            bits = [int(draw.random() < chance) for _ in range(time)]
            strings.append(bits)
            labels.append([sum(bits[-length:]) % 2 for length in lengths])
        yield torch.tensor(strings, dtype=torch.float32)[:, :, None], torch.tensor(labels)


def n_parity() -> Iterator[Figure]:
    """The generator and the training step together, of the paper's network on N = 2 to 10.

    Against torch's own networks of as many units: a cell in a loop, fed by a generator in Python,
    and nn.RNN fed by ours.
    """
    yield _n_parity(100, 128, cell=True, target=2.0)
    yield _n_parity(500, 256, cell=False, target=1.0)


def _n_parity(units: int, batch_size: int, cell: bool, target: float) -> Figure:
    lengths = range(2, LONGEST + 1)
    make = get_method("scenarios.curriculum.curriculum")
    scenario = make(experiences=len(lengths), samples=STRINGS_STEPS * batch_size, test_samples=1)
    experience = scenario.train_stream[-1]
    sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.1, nesterov=True)

    def ours() -> Iterator[float]:
        layer = partial(LeakyRNN, activation="leaky_relu", activates="sum")
        encoder = Recurrent((1, 1), layer, units)
        head = Levels(units, 2, len(lengths), "multi_head", len(lengths))
        learner = Learner(
            classifier(encoder, head),
            partial(sgd, fused=True),
            criterion=scenario.criterion,
            batch_size=batch_size,
            grad_clip=2.0,
        )
        for _ in range(PARTS):
            began = clock()
            learner.train(experience)
            yield clock() - began

    def torchs() -> Iterator[float]:
        model, order = Stepped(units, len(lengths), cell), torch.Generator().manual_seed(0)
        optimizer = sgd(model.parameters())
        for _ in range(PARTS):  # in each, batches of the very shapes that ours draws
            drawn = make_batches(experience.dataset, batch_size, torch.device("cpu"), order)
            shapes = [x.shape[:2] for x, *_ in drawn] if cell else []
            began = clock()
            for x, y, *_ in python_strings(shapes, lengths) if cell else drawn:
                loss = scenario.criterion(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 2.0)
                optimizer.step()
            yield clock() - began

    seconds = in_turns({"torch": torchs, "ours": ours}, rounds=1)
    network = "an nn.RNNCell loop fed by Python" if cell else "nn.RNN fed by our generator"
    name = f"n_parity, {units} units, batch {batch_size}: times {network}"
    return Figure(name, ratio(seconds["torch"], seconds["ours"]), target)


# --- few-shot tasks ------------------------------------------------------------------------------


def few_shot() -> Iterator[Figure]:
    """The tasks of the base setting, learnt by a convolutional network, the imports included."""
    settings = ["scenario=cfsl/classes_and_samples_4", "scenario.tasks=600", "backbone=convnet"]
    with tempfile.TemporaryDirectory() as folder:
        began = clock()
        command = [sys.executable, "-m", "clplat", *settings, f"out={folder}/run"]
        subprocess.run(command, check=True, capture_output=True)
        yield Figure("few_shot, 600 tasks", (clock() - began) / 60, 5.0, "min", at_most=True)
