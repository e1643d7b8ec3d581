"""Synaptic intelligence (Zenke et al. 2017): weights that the loss fell along are held.

omega_i = sum over updates of -g_i (theta_i after - theta_i before), g the gradient of the task's
loss alone; Omega_i is the sum over experiences of omega_i / (Delta_i^2 + damping), Delta_i what the
experience moved the weight by in all, and never below 0: it is clamped after each experience.
Loss: L_task + strength * sum_i Omega_i (theta_i - theta*_i)^2, theta* the latest experience's.
Avalanche's plugin takes the penalty's gradient into omega, clips Omega at 0.001, and does nothing
on a CPU, where the weights before an update are views of those after it.
"""

from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from clplat.errors import InputError, not_negative
from clplat.grown import extended, leading
from clplat.precision import loss_scale
from strategies.importance import Weights
from strategies.quadratic import add_penalty, add_quadratics, lists


def path_importance(drop: Tensor, moved: Tensor, damping: float) -> Tensor:
    """What the loss fell by along each weight, for the square of its way."""
    return drop / (moved.square() + damping)


class Path:
    """What the loss fell by along each weight since the path began, to first order.

    Its gradients are of the task's loss if it sees an update before any penalty is added to it.
    `start` and `drop` hold what had a gradient since; what is new, or grew, starts late.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.start: Weights = {}
        self.drop: Weights = {}
        self._step: tuple[list[str], list[Tensor], list[Tensor], list[Tensor]] | None = None

    @torch.no_grad()
    def before_update(self, strategy: Any) -> Weights:
        """The gradients, copied and unscaled; none where the scaler will skip the update."""
        self._step = None
        names, parameters, gradients = [], [], []
        for name, parameter in strategy.model.named_parameters():
            if parameter.grad is not None:
                names.append(name)
                parameters.append(parameter)
                gradients.append(parameter.grad)
        scale = loss_scale(strategy)
        if getattr(strategy, "scaler", None) and not _finite(gradients):
            return {}
        gradients = lists._foreach_div(gradients, scale)
        before = lists._foreach_mul(parameters, 1.0)  # copies
        for name, value in zip(names, before, strict=True):
            if name not in self.drop or self.drop[name].shape != value.shape:
                self.start[name] = extended(self.start.get(name), value)
                self.drop[name] = extended(self.drop.get(name), torch.zeros_like(value))
        self._step = names, parameters, gradients, before
        return dict(zip(names, gradients, strict=True))

    @torch.no_grad()
    def after_update(self) -> None:
        if self._step is not None:
            names, parameters, gradients, before = self._step
            fell = lists._foreach_sub(before, parameters)
            lists._foreach_addcmul_([self.drop[name] for name in names], gradients, fell)
            self._step = None

    def state_dict(self) -> dict[str, Any]:
        return {"start": self.start, "drop": self.drop}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.begin()
        self.start, self.drop = state["start"], state["drop"]


def _finite(tensors: list[Tensor]) -> bool:
    return bool(torch.stack([t.isfinite().all() for t in tensors]).all())


class SynapticIntelligence(SupervisedPlugin):
    """Penalises the change of weights that lowered the loss of earlier experiences."""

    def __init__(self, strength: float = 0.1, damping: float = 0.1):
        super().__init__()
        not_negative("strategy", strength=strength)
        if damping <= 0:
            raise InputError(f"strategy.damping={damping}: expected more than 0; raise it")
        self.strength, self.damping = strength, damping
        self.path = Path()
        self.importance: Weights = {}
        self.anchor: Weights = {}

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        self.path.before_update(strategy)
        if self.importance and self.strength:
            add_penalty(strategy, self.importance, self.anchor, self.strength)

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        self.path.after_update()

    @torch.no_grad()
    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        named = strategy.model.named_parameters()
        weights = {n: p.detach().clone() for n, p in named if p.requires_grad}
        new = {name: torch.zeros_like(value) for name, value in weights.items()}
        for name, drop in self.path.drop.items():
            moved = leading(weights[name], drop) - self.path.start[name]
            leading(new[name], drop).copy_(path_importance(drop, moved, self.damping))
        total, _, _ = add_quadratics(self.importance, self.anchor, new, weights)
        self.importance = {name: value.clamp_min(0) for name, value in total.items()}
        self.anchor = weights
        self.path.begin()

    def state_dict(self) -> dict[str, Any]:
        return {
            "importance": self.importance,
            "anchor": self.anchor,
            "path": self.path.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.importance, self.anchor = state["importance"], state["anchor"]
        self.path.load_state_dict(state["path"])
