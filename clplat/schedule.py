"""Learning-rate schedules within an experience: pure functions of the share of it that is done."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from avalanche.core import SupervisedPlugin

from clplat.errors import InputError

Schedule = Callable[[float], float]  # share of the experience done, 0..1 -> factor of the peak rate


def constant() -> None:
    """The peak rate throughout: no schedule at all, so that nothing is done at each iteration."""


def cosine(final: float = 0.0) -> Schedule:
    """From 1 to `final` along half a cosine (Loshchilov & Hutter 2017, one cycle an experience)."""
    if not 0 <= final <= 1:
        raise InputError(f"schedule.final={final}: a share of the peak rate is in 0..1; lower it")
    return lambda done: final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))


def step(milestones: Sequence[float] = (0.5, 0.75), gamma: float = 0.1) -> Schedule:
    """Multiply by `gamma` at each milestone, given as shares of the experience."""
    if any(not 0 <= m <= 1 for m in milestones):
        raise InputError(
            f"schedule.milestones={list(milestones)}: each is a share of the experience, in 0..1; "
            "divide epochs by train.epochs"
        )
    return lambda done: gamma ** sum(done >= m for m in milestones)


class LearningRate(SupervisedPlugin):
    """Sets each group's rate before every iteration; each experience starts at the peak again.

    The peak is kept in the group as `initial_lr`, where torch's schedulers keep it too, so that it
    is saved and restored with the optimizer.
    """

    def __init__(self, schedule: Schedule):
        super().__init__()
        self.schedule = schedule

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        total = max(1, strategy.train_epochs * len(strategy.dataloader))
        factor = self.schedule(strategy.clock.train_exp_iterations / total)
        for group in strategy.optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
