"""Fast and slow weights with two steps of consolidation, inspired by Wang et al. 2021.

"Few-shot Continual Learning: a Brain-inspired Approach". Only the abstract could be read: fast
weights learn the tasks and slow ones serve few-shot generalisation, both updated interdependently
(meta-plasticity), in two steps. All below is our reading. In an experience fast weights w learn by

    L_task + strength * sum_i I_i (w_i - s_i)^2,

s the slow weights and I their importance. After each, with that of the fast ones on its samples, J:

1. s_i <- (I_i s_i + J_i w_i) / (I_i + J_i), then I <- I + J; what neither needs takes w. It is
   the centre of both penalties' sum, and how mode-IMM merges two networks (Lee et al. 2017).
2. w <- s, and w is refitted to a small memory of all classes so far.

Importance is that of MAS, of batches: one pass an experience, where one along the path of training
would cost at every update. The first experience leaves w as it is, which s is a copy of. The memory
serves the refit alone, which is in full precision and by plain SGD with a momentum of 0.9, neither
penalised nor clipped. Running statistics of batch norm are not averaged: the refit renews them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.models.utils import is_multi_task_module
from torch import nn

from clplat.batches import experience_batches, prepared
from clplat.errors import InputError, at_least, not_negative
from clplat.grown import leading
from clplat.memory import Memory
from strategies.importance import Weights, samples
from strategies.mas import sensitivity
from strategies.quadratic import add_penalty, add_quadratics
from strategies.replay import check_room


def weights_of(model: nn.Module, like: Weights) -> Weights:
    """Copies of the parameters that `like` names."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if n in like}


@torch.no_grad()
def write(model: nn.Module, weights: Weights) -> None:
    """Into the model's parameters; what one has grown by since stays as it is."""
    for name, parameter in model.named_parameters():
        if name in weights:
            leading(parameter, weights[name]).copy_(weights[name])


class FastSlow(SupervisedPlugin):
    """The model's weights are the fast ones; `slow_weights` lends it the slow ones.

    The memory holds `capacity` samples, of each class alike; a refit is `refit_steps` updates of
    SGD at a rate of `refit_lr`, on batches as large as the loop's.
    """

    needs_boundaries = True

    def __init__(
        self,
        strength: float = 0.01,
        capacity: int = 200,
        refit_steps: int = 100,
        refit_lr: float = 0.01,
    ):
        super().__init__()
        not_negative("strategy", strength=strength)
        at_least("strategy", 0, refit_steps=refit_steps)
        if refit_lr <= 0:
            raise InputError(f"strategy.refit_lr={refit_lr}: expected more than 0; raise it")
        self.strength, self.memory = strength, Memory(capacity, "class_balanced")
        self.refit_steps, self.refit_lr = refit_steps, refit_lr
        self.slow: Weights = {}  # empty before the first experience ends
        self.importance: Weights = {}

    def check(self, scenario: Any) -> None:
        """Refuse a memory that cannot hold one sample of each class."""
        if scenario.head is None:
            check_room("FastSlow", self.memory.capacity, scenario)

    @contextmanager
    def slow_weights(self, model: nn.Module) -> Iterator[None]:
        """The model with the slow weights, as far as there are some; then with its own again."""
        fast = weights_of(model, self.slow)
        write(model, self.slow)
        try:
            yield
        finally:
            write(model, fast)

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        if self.importance and self.strength:
            add_penalty(strategy, self.importance, self.slow, self.strength)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        model, first = strategy.model, not self.slow
        new = sensitivity(model, samples(strategy), "batch")
        self.importance, self.slow, _ = add_quadratics(
            self.importance, self.slow, new, weights_of(model, new)
        )
        for columns in experience_batches(strategy):
            self.memory.add(*columns)
        if not first:
            write(model, self.slow)
            self._refit(strategy)

    def _refit(self, strategy: Any) -> None:
        model, groups = strategy.model, strategy.optimizer.param_groups
        parameters = [p for group in groups for p in group["params"]]
        optimizer = torch.optim.SGD(parameters, lr=self.refit_lr, momentum=0.9)
        for _ in range(self.refit_steps):
            drawn = self.memory.sample(strategy.train_mb_size)
            x, y, task = (column.to(strategy.device) for column in drawn)
            x = prepared(strategy, x, training=True)
            output = model(x, task) if is_multi_task_module(model) else model(x)
            optimizer.zero_grad()
            strategy._criterion(output, y).backward()
            optimizer.step()
        optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return {
            "slow": self.slow,
            "importance": self.importance,
            "memory": self.memory.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.slow, self.importance = state["slow"], state["importance"]
        self.memory.load_state_dict(state["memory"])
