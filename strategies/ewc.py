"""Elastic weight consolidation (Kirkpatrick et al. 2017; online form: Schwarz et al. 2018).

Loss: L_task + strength/2 * sum_t sum_i F_t,i (theta_i - theta*_t,i)^2, F the diagonal of the
Fisher information. A sum of quadratics is one quadratic (Huszar 2018), so the penalty of all past
experiences is kept as one importance and one anchor: cost and memory do not grow with their number.
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

KINDS = ("exact", "empirical", "batch")


def _log_probability(model: nn.Module, task: int) -> Callable[[Weights, Tensor, Tensor], Tensor]:
    inputs = (task,) if is_multi_task_module(model) else ()

    def log_probability(weights: Weights, x: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, weights, (x[None], *inputs))
        return logits.log_softmax(1)[0].gather(0, label[None])[0]

    return log_probability


def _exact(model: nn.Module, weights: Weights, x: Tensor, y: Tensor, task: int) -> Weights:
    """Sum over samples of E_{c ~ model} (d log p_c)^2, by one backward a class."""
    per_sample = vmap(grad(_log_probability(model, task)), in_dims=(None, 0, 0))
    inputs = (task,) if is_multi_task_module(model) else ()
    probabilities = functional_call(model, weights, (x, *inputs)).softmax(1)  # (B, C)
    total = {name: torch.zeros_like(w) for name, w in weights.items()}
    for label in (probabilities.sum(0) > 0).nonzero()[:, 0]:
        gradients = per_sample(weights, x, label.expand(len(x)))
        for name, g in gradients.items():
            total[name] += torch.einsum("b,b...->...", probabilities[:, label], g.square())
    return total


def _empirical(model: nn.Module, weights: Weights, x: Tensor, y: Tensor, task: int) -> Weights:
    """Sum over samples of (d log p_y)^2 at the true label."""
    per_sample = vmap(grad(_log_probability(model, task)), in_dims=(None, 0, 0))
    return {name: g.square().sum(0) for name, g in per_sample(weights, x, y).items()}


def _batch(model: nn.Module, weights: Weights, x: Tensor, y: Tensor, task: int) -> Weights:
    """(d mean loss)^2 of the batch, times its size: what many implementations use."""
    inputs = (task,) if is_multi_task_module(model) else ()
    leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
    with torch.enable_grad():
        output = functional_call(model, leaves, (x, *inputs))
        loss = nn.functional.cross_entropy(output, y)
    grads = torch.autograd.grad(loss, [*leaves.values()], allow_unused=True, materialize_grads=True)
    return {name: len(x) * g.square() for name, g in zip(leaves, grads, strict=True)}


def fisher(
    model: nn.Module, batches: Iterable[Columns], kind: str, key: str = "strategy.fisher"
) -> Weights:
    """Diagonal of the Fisher information, mean over samples, of every trainable parameter.

    `batches` of (x, y, task) ready for the model; `key` is what the config calls `kind`.
    """
    of_batch = {"exact": _exact, "empirical": _empirical, "batch": _batch}[kind]
    return mean_importance(model, batches, of_batch, kind == "batch", key)


class EWC(SupervisedPlugin):
    """Penalises the change of weights that earlier experiences need.

    `fisher`: exact (expectation over the model's own predictions), empirical (true labels) or
    batch (square of the batch's mean gradient). `online`: one running importance, decayed by
    `decay` at each experience and anchored at the latest weights; otherwise the sum of one penalty
    an experience. Avalanche's `ewc_lambda` is half of `strength`: it leaves out the 1/2.
    """

    one_target = True  # a class for each sample

    def __init__(
        self, strength: float, fisher: str = "exact", online: bool = False, decay: float = 1.0
    ):
        super().__init__()
        if fisher not in KINDS:
            raise InputError(f"strategy.fisher={fisher}: choose one of {', '.join(KINDS)}")
        not_negative("strategy", strength=strength, decay=decay)
        self.strength, self.fisher, self.online, self.decay = strength, fisher, online, decay
        self.importance: Weights = {}
        self.anchor: Weights = {}
        self.constant = 0.0

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        if self.importance and self.strength:
            add_penalty(strategy, self.importance, self.anchor, self.strength / 2)
            strategy.loss += self.strength / 2 * self.constant

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        new = fisher(strategy.model, samples(strategy), self.fisher)
        weights = {n: p.detach().clone() for n, p in strategy.model.named_parameters() if n in new}
        if self.online:
            decayed = {name: self.decay * value for name, value in self.importance.items()}
            self.importance, _, _ = add_quadratics(decayed, self.anchor, new, weights)
            self.anchor = weights
        else:
            self.importance, self.anchor, constant = add_quadratics(
                self.importance, self.anchor, new, weights
            )
            self.constant += constant

    def state_dict(self) -> dict[str, Any]:
        return {
            "importance": self.importance,
            "anchor": self.anchor,
            "constant": self.constant,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
