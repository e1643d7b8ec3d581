"""Learning-rate schedules within an experience: pure functions of the share of it that is done."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from avalanche.core import SupervisedPlugin
from torch import Size
from torch.nn import Parameter

from clplat.errors import InputError, TrainingError
from clplat.snapshot import Snapshot, held, put_back, snapshot

Schedule = Callable[[float], float]  # share of the experience done, 0..1 -> factor of the peak rate


@dataclass(frozen=True)
class Resuming:
    """A schedule for the first experience and one for later ones, each ending in an annealing.

    A later experience takes up from the weights as they were before the last one's annealing,
    which is the share `annealing` of an experience, at its end.
    """

    first: Schedule
    later: Schedule
    annealing: float


def constant() -> None:
    """The peak rate throughout: no schedule at all, so that nothing is done at each iteration."""


def cosine(final: float = 0.0) -> Schedule:
    """From 1 to `final` along half a cosine (Loshchilov & Hutter 2017, one cycle an experience)."""
    if not 0 <= final <= 1:
        raise InputError(f"schedule.final={final}: a share of the peak rate is in 0..1; lower it")
    return lambda done: final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))


def step(milestones: Sequence[float] = (0.5, 0.75), gamma: float = 0.1) -> Schedule:
    """Multiply by `gamma` at each milestone, given as shares of the experience."""
    if isinstance(gamma, str) or not 0 < gamma <= 1:
        raise InputError(
            f"schedule.gamma={gamma}: expected a factor above 0 and at most 1; for example "
            "schedule.gamma=0.1"
        )
    if any(not 0 <= m <= 1 for m in milestones):
        raise InputError(
            f"schedule.milestones={list(milestones)}: each is a share of the experience, in 0..1; "
            "divide epochs by train.epochs"
        )
    return lambda done: gamma ** sum(done >= m for m in milestones)


def warm_cosine(warmup: float = 0.1, start: float = 0.01, final: float = 0.0) -> Schedule:
    """Every experience anew: from `start` to 1 along a line, to `final` along half a cosine.

    Re-warming and re-decaying (Ibrahim et al. 2024). `warmup` is a share of the experience.
    """
    _check_rates(start=start, final=final)
    _check_phases(warmup=warmup)
    rise, fall = _line(start, 1), cosine(final)
    rest = 1 - warmup
    return lambda done: rise(done / warmup) if done < warmup else fall(_along(done, warmup, rest))


def warmup_stable_decay(
    warmup: float = 0.1, decay: float = 0.2, start: float = 0.01, final: float = 0.0
) -> Schedule:
    """Every experience anew: from `start` to 1 along a line, 1, to `final` along a line.

    Warm-up, stable, decay (Hu et al. 2024). `warmup` and `decay` are shares of the experience.
    """
    _check_rates(start=start, final=final)
    _check_phases(warmup=warmup, decay=decay)
    rise, fall = _line(start, 1), _line(1, final)
    begin = 1 - decay
    return lambda done: rise(done / warmup) if done < warmup else fall(_along(done, begin, decay))


def infinite(
    warmup: float = 0.1,
    cooldown: float = 0.3,
    annealing: float = 0.1,
    constant: float = 0.1,
    final: float = 0.01,
) -> Resuming:
    """At `constant`, with an annealing to `final` that the next experience does not start from.

    The infinite schedule (Ibrahim et al. 2024; Singh et al. 2025). The first experience comes to
    `constant` by a warm-up from 0 to 1 along a line and a cooldown along half a cosine; each ends
    with an exponential annealing. `warmup`, `cooldown`, `annealing` are shares of the experience,
    `constant` and `final` of the peak rate.
    """
    if not 0 < final <= constant <= 1:
        raise InputError(
            f"schedule.constant={constant}, schedule.final={final}: shares of the peak rate, "
            "expected 0 < final <= constant <= 1; for example constant=0.1 and final=0.01"
        )
    _check_phases(warmup=warmup, cooldown=cooldown, annealing=annealing)
    fall = cosine(constant)

    def first(done: float) -> float:
        if done < warmup:
            return done / warmup
        return fall((done - warmup) / cooldown) if done < warmup + cooldown else later(done)

    def later(done: float) -> float:
        return constant * (final / constant) ** _along(done, 1 - annealing, annealing)

    return Resuming(first, later, annealing)


def _along(done: float, begin: float, length: float) -> float:
    """How much of a phase is done: 0 before it, 1 after it."""
    return min(max((done - begin) / length, 0.0), 1.0) if length else 0.0


def _line(start: float, end: float) -> Schedule:
    return lambda done: start + (end - start) * done


def _check_rates(**rates: float) -> None:
    for key, rate in rates.items():
        if not 0 <= rate <= 1:
            raise InputError(
                f"schedule.{key}={rate}: expected a share of the peak rate, in 0..1; for example "
                f"schedule.{key}=0.01"
            )


def _check_phases(**shares: float) -> None:
    for key, share in shares.items():
        if not 0 <= share <= 1:
            raise InputError(
                f"schedule.{key}={share}: expected a share of the experience, in 0..1; for example "
                f"schedule.{key}=0.1"
            )
    if (together := math.fsum(shares.values())) > 1:
        given = ", ".join(f"schedule.{key}={share}" for key, share in shares.items())
        raise InputError(
            f"{given}: phases that are {together:g} experiences long together; expected at most 1; "
            "shorten one of them"
        )


class LearningRate(SupervisedPlugin):
    """Sets each group's rate before every iteration; each experience starts at the peak again.

    The peak is kept in the group as `initial_lr`, where torch's schedulers keep it too, so that it
    is saved and restored with the optimizer.

    With a `Resuming` schedule a copy of weights, running statistics and optimizer state is held,
    on the model's device, from the beginning of an annealing to that of the next experience, which
    begins by putting it back. What the network gained since stays as it is; so do buffers that are
    no statistics of a normalisation, such as class means. A run is resumed with the loop's clock
    restored too. Raises TrainingError if a parameter grew in place after an annealing began.
    """

    def __init__(self, schedule: Schedule | Resuming):
        super().__init__()
        self.schedule = schedule
        self.kept: Snapshot | None = None
        self.kept_in = 0  # the experience
        self._shapes: list[tuple[str, Parameter, Size]] = []

    # Before the model adapts, and before strategies look at it in `before_training_exp`.
    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        if self.kept is None or strategy.clock.train_exp_counter == self.kept_in:
            return
        for name, parameter, shape in self._shapes:
            if parameter.shape != shape:  # unlike in a replaced one, no one knows what is where
                raise TrainingError(
                    f"schedule.annealing: {name} grew from {tuple(shape)} to "
                    f"{tuple(parameter.shape)} after the annealing began, and the weights from "
                    "before it no longer fit; anneal less, or choose another schedule"
                )
        strategy.make_optimizer()  # an evaluation may have replaced parameters
        put_back(strategy.model, strategy.optimizer, self.kept)
        self.kept, self._shapes = None, []

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        total = max(1, strategy.train_epochs * len(strategy.dataloader))
        done, schedule = strategy.clock.train_exp_iterations / total, self.schedule
        if isinstance(schedule, Resuming):
            if self.kept is None and done >= 1 - schedule.annealing:
                self.kept = snapshot(strategy.model, strategy.optimizer)
                self.kept_in = strategy.clock.train_exp_counter
            if self.kept is not None and not self._shapes:  # also where a run is taken up again
                parameters = held(strategy.model, strategy.optimizer)
                self._shapes = [(name, p, p.shape) for name, p in parameters.items()]
            schedule = schedule.later if strategy.clock.train_exp_counter else schedule.first
        factor = schedule(done)
        for group in strategy.optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.kept, "kept_in": self.kept_in}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kept, self.kept_in, self._shapes = state["kept"], state["kept_in"], []
