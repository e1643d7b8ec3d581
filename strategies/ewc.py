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

from clplat.batches import experience_batches, prepared
from clplat.data import Columns
from clplat.errors import InputError

Weights = dict[str, Tensor]
KINDS = ("exact", "empirical", "batch")
CHUNK_BYTES = 2**28  # of per-sample gradients at a time


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

    `batches` of (x, y, task) ready for the model; `key` is what the config calls `kind`. In
    evaluation mode: no dropout, and batch norm by its running statistics.
    """
    was_training = model.training
    model.eval()
    weights = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(w) for name, w in weights.items()}
    count, of_batch = 0, {"exact": _exact, "empirical": _empirical, "batch": _batch}[kind]
    chunk = max(1, CHUNK_BYTES // (4 * sum(w.numel() for w in weights.values())))
    for x, y, tasks in batches:
        for task in tasks.unique().tolist():
            rows = tasks == task
            parts = (x[rows], y[rows])
            size = len(parts[0]) if kind == "batch" else chunk
            for px, py in zip(*(part.split(size) for part in parts), strict=True):
                for name, value in _explained(key, of_batch, model, weights, px, py, task).items():
                    total[name] += value
        count += len(x)
    model.train(was_training)
    return {name: value / count for name, value in total.items()}


def _explained(key: str, of_batch: Any, *arguments: Any) -> Weights:
    """What `of_batch` gives; layers that torch.func cannot go through are named."""
    try:
        return of_batch(*arguments)
    except RuntimeError as error:
        if "setup_context" not in str(error) and "atching rule" not in str(error):
            raise
        raise InputError(
            f"{key}: this backbone's layers give no gradients sample by sample, which exact and "
            f"empirical need; set {key}=batch"
        ) from error


def add_quadratics(
    importance: Weights, anchor: Weights, new_importance: Weights, new_anchor: Weights
) -> tuple[Weights, Weights, float]:
    """One importance and anchor for the sum of two penalties, and the constant that is left over.

    a (w - u)^2 + b (w - v)^2 = (a + b) (w - (a u + b v)/(a + b))^2 + a b/(a + b) (u - v)^2.
    A parameter that is new, or grew, has zero importance before.
    """
    total, centre, constant = {}, {}, 0.0
    for name, b in new_importance.items():
        v = new_anchor[name]
        a, u = torch.zeros_like(b), v.clone()
        if name in importance:
            old = tuple(slice(n) for n in importance[name].shape)
            a[old], u[old] = importance[name], anchor[name]
        total[name] = a + b
        share = torch.where(total[name] > 0, b / total[name].clamp_min(1e-45), 1.0)
        centre[name] = u + share * (v - u)
        constant += float((a * share * (u - v).square()).sum())
    return total, centre, constant


def quadratic_penalty(model: nn.Module, importance: Weights, anchor: Weights) -> Tensor:
    """sum_i importance_i (theta_i - anchor_i)^2; what a parameter grew by counts nothing."""
    terms = []
    for name, parameter in model.named_parameters():
        if name in importance:
            then = importance[name].shape
            if parameter.shape != then:
                parameter = parameter[tuple(slice(n) for n in then)]
            terms.append((importance[name] * (parameter - anchor[name]).square()).sum())
    return torch.stack(terms).sum()


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
        self.strength, self.fisher, self.online, self.decay = strength, fisher, online, decay
        self.importance: Weights = {}
        self.anchor: Weights = {}
        self.constant = 0.0

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        if self.importance:
            penalty = quadratic_penalty(strategy.model, self.importance, self.anchor)
            strategy.loss = strategy.loss + self.strength / 2 * (penalty + self.constant)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        batches = (
            [prepared(strategy, x, False), y, task]
            for x, y, task in experience_batches(strategy, strategy.train_mb_size)
        )
        new = fisher(strategy.model, batches, self.fisher)
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
