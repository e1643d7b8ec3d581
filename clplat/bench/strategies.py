"""Strategies against their counterparts in Avalanche: the seconds of an iteration, and accuracy."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from clplat.bench.data import Pairs, split_floats
from clplat.bench.loops import avalanche, mlp, ours, stream
from clplat.bench.pairs import CAPACITY, PAIRS, WIDTHS
from clplat.bench.timing import Figure, clock, in_turns, ratio

SAMPLES = {10: 300, 128: 2560}  # of an experience, by the size of a batch
LEARNED_FROM = {10: 2000, 128: 12000}  # where accuracy is compared
SEEDS = 20  # accuracies differ by some points from seed to seed


class Stopwatch(SupervisedPlugin):
    """Median seconds of an iteration, for each experience."""

    def __init__(self) -> None:
        super().__init__()
        self.costs: list[float] = []
        self._ticks: list[float] = []

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self._ticks.append(clock())

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.costs.append(float(np.median(np.diff(self._ticks))))
        self._ticks = []


class Tested(SupervisedPlugin):
    """Accuracy after each experience: among all classes, and among those of a sample's own one."""

    def __init__(self, pairs: Pairs) -> None:
        super().__init__()
        self.pairs = pairs
        self.accuracies = {"class": 0.0, "task": 0.0}

    @torch.no_grad()
    def after_training(self, strategy: Any, **kwargs: Any) -> None:
        strategy.model.eval()
        correct: dict[str, list[Tensor]] = {name: [] for name in self.accuracies}
        for x, y in self.pairs:
            output = strategy.model(x)
            own = y.unique()
            correct["class"].append(output.argmax(1) == y)
            correct["task"].append(own[output[:, own].argmax(1)] == y)
        self.accuracies = {n: float(torch.cat(c).float().mean()) for n, c in correct.items()}


def iterations(loop: Callable[..., Iterator[float]], size: int, make: Callable) -> Iterator[float]:
    """Median seconds of an iteration in each experience but the first, where many do nothing."""
    pairs = [(x[: SAMPLES[size]], y[: SAMPLES[size]]) for x, y in split_floats()]
    watch, options = Stopwatch(), make(size)
    options["plugins"] = [*options.get("plugins", ()), watch]
    train = stream(pairs, options.pop("samples", TensorDataset))
    for index, _ in enumerate(loop(train, WIDTHS, size, **options)):
        if index:
            yield watch.costs[-1]


def by_hand(size: int) -> Iterator[float]:
    """As `iterations`, of replay as one would write it: one loop, tensors, nothing measured."""
    pairs = [(x[: SAMPLES[size]], y[: SAMPLES[size]]) for x, y in split_floats()]
    model = mlp(*WIDTHS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    memory_x, memory_y = (column[:CAPACITY] for column in pairs[0])
    for x, y in pairs[1:]:
        ticks = []
        for index in torch.randperm(len(y)).split(size):
            ticks.append(clock())
            drawn = torch.randperm(CAPACITY)[:size]
            optimizer.zero_grad()
            output = model(torch.cat([x[index], memory_x[drawn]]))
            cross_entropy(output, torch.cat([y[index], memory_y[drawn]])).backward()
            optimizer.step()
        yield float(np.median(np.diff(ticks)))


def strategies() -> Iterator[Figure]:
    """Times Avalanche's pace an iteration: MLP 784-64-64-10, memory 200, batches of 10 and 128.

    How many times Avalanche's pace replay reaches that is written by hand is printed too: no loop
    can do better.
    """
    for name, (mine, other) in PAIRS.items():
        for size in SAMPLES:
            contenders = {
                "ours": partial(iterations, ours, size, mine),
                "avalanche": partial(iterations, avalanche, size, other),
            }
            if name == "replay":
                contenders["by hand"] = partial(by_hand, size)
            seconds = in_turns(contenders, rounds=3)
            speed = ratio(seconds["avalanche"], seconds["ours"])
            yield Figure(f"{name}, batch {size}: an iteration, times Avalanche", speed, 2.0)
            if name == "replay":
                best = ratio(seconds["avalanche"], seconds["by hand"])
                print(f"    (by hand: {best:.2f} times)")


def learned(
    loop: Callable[..., Iterator[float]], size: int, make: Callable, seed: int
) -> dict[str, float]:
    """Accuracies after one pass over each experience."""
    pairs = [(x[: LEARNED_FROM[size]], y[: LEARNED_FROM[size]]) for x, y in split_floats()]
    tested, options = Tested(split_floats(train=False)), make(size)
    options["plugins"] = [*options.get("plugins", ()), tested]
    train = stream(pairs, options.pop("samples", TensorDataset))
    for _ in loop(train, WIDTHS, size, seed=seed, **options):
        pass
    return tested.accuracies


def accuracies() -> Iterator[Figure]:
    """Accuracy over Avalanche's, in points: one pass over split Fashion-MNIST.

    How far off the difference of means may be, its standard error, is printed too.
    """
    for name, (mine, other) in PAIRS.items():
        for size in LEARNED_FROM:
            own, theirs = (
                [learned(loop, size, make, seed) for seed in range(SEEDS)]
                for loop, make in ((ours, mine), (avalanche, other))
            )
            for kind in own[0]:
                a, b = (100 * np.array([found[kind] for found in of]) for of in (own, theirs))
                label = f"{name}, batch {size}, {kind}-incremental: accuracy over Avalanche's"
                yield Figure(label, a.mean() - b.mean(), -1.0, "pt")
                both = [f"{of.mean():.1f} ± {of.std(ddof=1):.1f}" for of in (a, b)]
                error = ((a.var(ddof=1) + b.var(ddof=1)) / SEEDS) ** 0.5
                print(f"    (ours {both[0]}, Avalanche's {both[1]}; standard error {error:.1f})")
