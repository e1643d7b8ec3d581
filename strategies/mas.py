"""Memory aware synapses (Aljundi et al. 2018): weights that answers depend on are held.

Omega = mean over samples of | d ||F(x)||^2 / d theta |, summed over experiences; without labels.
Loss: L_task + strength * sum_i Omega_i (theta_i - theta*_i)^2, theta* the latest experience's.
Avalanche's plugin takes the absolute value of a batch's mean gradient, in which samples cancel, has
dropout on while it does, and averages over experiences with weights that forget the first ones.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.models.utils import is_multi_task_module
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from clplat.data import Columns
from clplat.errors import InputError, not_negative
from strategies.importance import Weights, mean_importance, samples
from strategies.quadratic import add_penalty, add_quadratics

KINDS = ("exact", "batch")


def _squared_norms(model: nn.Module, task: int) -> Callable[[Weights, Tensor], Tensor]:
    inputs = (task,) if is_multi_task_module(model) else ()

    def squared_norms(weights: Weights, x: Tensor) -> Tensor:
        return functional_call(model, weights, (x, *inputs)).square().flatten(1).sum(1)

    return squared_norms


def _exact(model: nn.Module, weights: Weights, x: Tensor, y: Tensor, task: int) -> Weights:
    """Sum over samples of |d ||F(x)||^2|."""
    squared_norms = _squared_norms(model, task)
    per_sample = vmap(grad(lambda w, one: squared_norms(w, one[None])[0]), in_dims=(None, 0))
    return {name: g.abs().sum(0) for name, g in per_sample(weights, x).items()}


def _batch(model: nn.Module, weights: Weights, x: Tensor, y: Tensor, task: int) -> Weights:
    """|d sum over samples of ||F(x)||^2|."""
    leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
    with torch.enable_grad():
        total = _squared_norms(model, task)(leaves, x).sum()
    grads = torch.autograd.grad(
        total, [*leaves.values()], allow_unused=True, materialize_grads=True
    )
    return {name: g.abs() for name, g in zip(leaves, grads, strict=True)}


def sensitivity(model: nn.Module, batches: Iterable[Columns], kind: str) -> Weights:
    """How much the squared norm of the output depends on every trainable parameter.

    Mean over samples of the absolute gradient (exact), or of that of each batch's sum (batch).
    `batches` of (x, y, task) ready for the model.
    """
    of_batch = {"exact": _exact, "batch": _batch}[kind]
    return mean_importance(model, batches, of_batch, kind == "batch", "strategy.importance")


class MAS(SupervisedPlugin):
    """Penalises the change of weights that the answers to earlier samples depend on.

    `importance`: exact (absolute gradient of each sample) or batch (of a batch's sum: cheaper, and
    samples of opposite sign cancel).
    """

    def __init__(self, strength: float = 1.0, importance: str = "exact"):
        super().__init__()
        not_negative("strategy", strength=strength)
        if importance not in KINDS:
            raise InputError(f"strategy.importance={importance}: choose one of {', '.join(KINDS)}")
        self.strength, self.kind = strength, importance
        self.importance: Weights = {}
        self.anchor: Weights = {}

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        if self.importance and self.strength:
            add_penalty(strategy, self.importance, self.anchor, self.strength)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        new = sensitivity(strategy.model, samples(strategy), self.kind)
        weights = {n: p.detach().clone() for n, p in strategy.model.named_parameters() if n in new}
        self.importance, _, _ = add_quadratics(self.importance, self.anchor, new, weights)
        self.anchor = weights

    def state_dict(self) -> dict[str, Any]:
        return {"importance": self.importance, "anchor": self.anchor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.importance, self.anchor = state["importance"], state["anchor"]
