"""Quadratic penalties on the change of weights: sums of them, and their gradients."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clplat.grown import leading
from clplat.precision import loss_scale
from strategies.importance import Weights

lists: Any = torch  # whose functions of lists of tensors have no public types


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
            leading(a, importance[name]).copy_(importance[name])
            leading(u, anchor[name]).copy_(anchor[name])
        total[name] = a + b
        share = torch.where(total[name] > 0, b / total[name].clamp_min(1e-45), 1.0)
        centre[name] = u + share * (v - u)
        constant += float((a * share * (u - v).square()).sum())
    return total, centre, constant


def penalty_and_gradients(
    weights: Sequence[Tensor], importance: Sequence[Tensor], anchor: Sequence[Tensor]
) -> tuple[Tensor, Sequence[Tensor]]:
    """sum_i importance_i (theta_i - anchor_i)^2, and its gradient for each tensor."""
    moved = lists._foreach_sub(weights, anchor)
    halves = lists._foreach_mul(importance, moved)
    dots = [half.flatten() @ by.flatten() for half, by in zip(halves, moved, strict=True)]
    return torch.stack(dots).sum(), lists._foreach_mul(halves, 2.0)


@torch.no_grad()
def add_penalty(strategy: Any, importance: Weights, anchor: Weights, strength: float) -> None:
    """Adds strength * sum_i importance_i (theta_i - anchor_i)^2 to an update about to be made.

    To `strategy.loss`, and its gradient, which has a closed form, to the parameters' gradients:
    cheaper than through a graph. What a parameter grew by counts nothing. Parameters that the batch
    does not reach, such as another task's head, have a gradient of 0 and the penalty's, so that an
    optimizer's momentum and weight decay act on them, and the penalty holds them.
    """
    names, weights, gradients = [], [], []
    for name, parameter in strategy.model.named_parameters():
        if name in importance and parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            names.append(name)
            weights.append(leading(parameter, importance[name]))
            gradients.append(leading(parameter.grad, importance[name]))
    value, added = penalty_and_gradients(
        weights, [importance[n] for n in names], [anchor[n] for n in names]
    )
    lists._foreach_add_(gradients, added, alpha=strength * loss_scale(strategy))
    strategy.loss = strategy.loss.detach() + strength * value
