"""When a recurrent generator gains units, and what has to follow it (after Chandra et al. 2023)."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from clplat.errors import InputError

log = logging.getLogger("clplat")

Weights = dict[str, Tensor]
Widened = Callable[[Weights], Weights]  # a generator's weights before its growth: as after it


class Growth:
    """Adds `by` units half way through a task whose mean loss of an epoch is above `above`, and
    before the experiences `at`.

    Nothing that was generated changes at that moment, and the optimizer's state is kept.
    """

    def __init__(self, by: int, above: float | None, at: Sequence[int]):
        if not isinstance(by, int) or by < 0:
            raise InputError(
                f"strategy.grow_by={by}: expected a whole number of units to add, 0 or more; "
                "change it"
            )
        if not isinstance(at, Sequence):
            raise InputError(f"strategy.grow_at={at}: expected a list of experiences; set [{at}]")
        if not by and (above is not None or at):
            raise InputError(
                f"strategy.grow_by={by}: grow_above and grow_at say when, and nothing is to be "
                "added; set strategy.grow_by=8 or so"
            )
        if by and above is None and not at:
            raise InputError(
                f"strategy.grow_by={by}: nothing says when units are added; set "
                "strategy.grow_above, a loss, or strategy.grow_at, experiences"
            )
        self.by, self.above, self.at = by, above, tuple(at)
        self.losses: list[Tensor] = []  # of the epoch

    def check_experiences(self, count: int) -> None:
        """Refuse an experience that is not there to grow before."""
        for place in self.at:
            if not 0 <= place < count:
                raise InputError(
                    f"strategy.grow_at={list(self.at)}: there are experiences 0 to {count - 1}; "
                    f"leave {place} out"
                )

    def check(self, model: Any) -> None:
        """Refuse a generator that cannot grow."""
        if self.by and not getattr(model.generator.body, "grows", False):
            raise InputError(
                f"strategy.grow_by={self.by}: this generator has no hidden units to be added to; "
                "set hypernet=rnn with an LSTM, GRU or LeakyRNN, or strategy.grow_by=0"
            )

    def before_training_exp(self, strategy: Any) -> None:
        self.losses = []
        if strategy.experience.current_experience in self.at:
            grow(strategy, self.by)

    def count(self, loss: Tensor) -> None:
        """Take note of an iteration's loss."""
        if self.above is not None:
            self.losses.append(loss.detach())

    def after_training_epoch(self, strategy: Any) -> Widened | None:
        """Grows where it is time and the loss too large; returns what makes older weights fit."""
        losses, self.losses = self.losses, []
        half = strategy.clock.train_exp_epochs + 1 == math.ceil(strategy.train_epochs / 2)
        if self.above is None or not half or float(torch.stack(losses).mean()) <= self.above:
            return None
        return grow(strategy, self.by)


def grow(strategy: Any, units: int) -> Widened:
    """Add units to the generator; the optimizer's moments get zeros for what is new."""
    generator, optimizer = strategy.model.generator, strategy.optimizer
    body, shapes = generator.body, {n: p.shape for n, p in generator.named_parameters()}
    # Autograd keeps a parameter's shape in mind for as long as there is a graph with it.
    for name in ("loss", "mb_output"):
        value = getattr(strategy, name)
        if isinstance(value, Tensor):
            setattr(strategy, name, value.detach())
    body.grow(body.hidden + units)
    log.info("the generator has %d units from here on", body.hidden)
    now = dict(generator.named_parameters())

    def placed(name: str, old: Tensor, into: Tensor) -> Tensor:
        return body.placed(name.removeprefix("body."), old, into)

    for name, parameter in now.items():
        state = optimizer.state.get(parameter, {})
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == shapes[name]:
                state[key] = placed(name, value, value.new_zeros(parameter.shape))
    return lambda weights: {
        name: placed(name, value, now[name].detach()) for name, value in weights.items()
    }
