"""Figures of hypernetworks: the regulariser, its cost as tasks grow in number, mixed batches."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from hydra.utils import get_class, get_method
from torch import Tensor, nn

from clplat.backbones.classifier import classifier
from clplat.backbones.mlp import MLP
from clplat.bench.timing import Figure, clock, in_turns, ratio
from clplat.learner import Learner

PAST, MIXED, SAMPLES = 20, 8, 16
AGES = (5, 25, 50, 100)  # tasks learned
REPEATS, PARTS = 10, 12
GENERATORS = {
    "chunked": ("hypernets.chunked.Chunked", {"chunk": 256}),
    "rnn": ("hypernets.rnn.RNN", {"chunk": 256, "hidden": 64}),
}


def hypernetwork(generator: str, tasks: int, classes: int | None = 10) -> Any:
    """A network 64-50-50-10 whose weights are generated for so many tasks."""
    torch.manual_seed(0)
    target = classifier(MLP((1, 8, 8), [50, 50]), nn.Linear(50, 10))
    name, options = GENERATORS[generator]
    make = partial(get_class(name), **options)
    model: Any = get_class("hypernets.generated.Generated")(target, make, classes=classes)
    for task in range(tasks):
        model.add_task(task)
    if classes is not None:
        for task in range(tasks):
            model.own_classes(task)[:] = True
    return model


def _timed(step: Callable[[], None]) -> Iterator[float]:
    """Seconds of a step, some times over."""
    step()
    for _ in range(PARTS):
        began = clock()
        for _ in range(REPEATS):
            step()
        yield (clock() - began) / REPEATS


def regulariser() -> Iterator[Figure]:
    """The regulariser over past tasks in one pass of the generator, against one pass a task."""
    distance: Any = get_method("strategies.hypernet.regulariser")
    for generator in GENERATORS:
        model = hypernetwork(generator, PAST)
        embeddings = model.embedding(range(PAST)).detach()
        with torch.no_grad():
            targets = model.generator(embeddings)

        def at_once(model: Any = model, e: Tensor = embeddings, t: Tensor = targets) -> None:
            distance(model.generator(e), t).backward()

        def one_by_one(model: Any = model, e: Tensor = embeddings, t: Tensor = targets) -> None:
            for embedding, target in zip(e.split(1), t.split(1), strict=True):
                (distance(model.generator(embedding), target) / PAST).backward()

        contenders = {"loop": partial(_timed, one_by_one), "ours": partial(_timed, at_once)}
        seconds = in_turns(contenders, rounds=1)
        name = f"regulariser over {PAST} tasks, {generator}: times a loop over tasks"
        yield Figure(name, ratio(seconds["loop"], seconds["ours"]), 2.0)


def trained_on(tasks: int, generator: str = "chunked", **options: Any) -> tuple[Any, Any]:
    """A learner in the middle of its next task after so many, and its strategy."""
    model = hypernetwork(generator, tasks + 1)
    model.trained, model.current = list(range(tasks + 1)), [tasks]
    model.embeddings[str(tasks)].requires_grad_(True)
    strategy = get_class("strategies.hypernet.Hypernet")(**options)
    adam = partial(torch.optim.Adam, lr=1e-3, fused=True)
    learner = Learner(model, adam, plugins=[strategy], batch_size=64)
    learner.experience = Place(tasks)  # type: ignore[assignment]
    learner.is_training = True
    strategy.before_training_exp(learner)
    return learner, strategy


class Place:
    """What the strategy asks of an experience before it: its number."""

    def __init__(self, number: int):
        self.current_experience = number


def iteration(learner: Any, x: Tensor, y: Tensor) -> None:
    """One update, as the learner makes it."""
    learner.mbatch = [x, y, torch.full((len(x),), learner.model.current[0])]
    learner._zero_grad()
    learner.loss = 0.0
    learner.mb_output = learner.forward()
    learner.loss = learner.loss + learner.criterion()
    learner._backward(1)
    learner._fire("before_update")
    learner._update()


def costs(ages: Sequence[int], **options: Any) -> list[float]:
    """Median seconds of an iteration after so many tasks, each age measured in turns."""
    x, y = torch.rand(64, 1, 8, 8), torch.arange(64) % 10
    learners = {str(age): trained_on(age, **options)[0] for age in ages}
    contenders = {
        age: partial(_timed, partial(iteration, learner, x, y)) for age, learner in learners.items()
    }
    seconds = in_turns(contenders, rounds=1)
    return [float(np.median(seconds[str(age)])) for age in ages]


def subset() -> Iterator[Figure]:
    """Does an iteration cost more after 100 tasks than after 5, with 4 of them looked at?"""
    for targets in ("stored", "recomputed"):
        medians = costs(AGES, subset=4, targets=targets)
        slope = float(np.polyfit(AGES, medians, 1)[0] / np.mean(medians) * 100)
        name = f"subset of 4, {targets}: change of an iteration's cost a task"
        yield Figure(name, abs(slope), 2.0, "%", at_most=True)


def mixed() -> Iterator[Figure]:
    """One batch of several tasks, forward and backward, against a batch a task."""
    for generator in GENERATORS:
        model = hypernetwork(generator, MIXED)
        x, y = torch.rand(MIXED * SAMPLES, 1, 8, 8), torch.arange(MIXED * SAMPLES) % 10
        task = torch.arange(MIXED).repeat_interleave(SAMPLES)

        def at_once(model: Any = model, x: Tensor = x, y: Tensor = y, t: Tensor = task) -> None:
            nn.functional.cross_entropy(model(x, t), y).backward()

        def one_by_one(model: Any = model, x: Tensor = x, y: Tensor = y, t: Tensor = task) -> None:
            for part in zip(x.split(SAMPLES), y.split(SAMPLES), t.split(SAMPLES), strict=True):
                nn.functional.cross_entropy(model(part[0], part[2]), part[1]).backward()

        contenders = {"loop": partial(_timed, one_by_one), "ours": partial(_timed, at_once)}
        seconds = in_turns(contenders, rounds=1)
        name = f"a batch of {MIXED} tasks of {SAMPLES}, {generator}: times {MIXED} batches"
        yield Figure(name, ratio(seconds["loop"], seconds["ours"]), 2.0)
