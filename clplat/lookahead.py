"""The change that an optimizer would make now, computed without making it."""

# pyright: reportPrivateImportUsage=false
# torch._foreach_*, of which torch.optim is made, is one operation on a device for many tensors.

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from clplat.errors import InputError

Tensors = tuple[Tensor, ...] | list[Tensor]
State = dict[str, Any]
Rule = Callable[[Tensors, Tensors, list[State], dict[str, Any]], Tensors]


@torch.no_grad()
def look_ahead(
    optimizer: Optimizer, parameters: Sequence[Tensor], scale: float = 1.0
) -> list[Tensor]:
    """What `optimizer.step()` would now add to each of `parameters`; nothing is changed.

    The look-ahead of output regularisation (von Oswald et al. 2020). Gradients are divided by
    `scale`, a gradient scaler's; a parameter without one gets zeros. Parameters and gradients are
    real and dense. The changes have the parameters' shapes and require no gradient. Raises
    InputError for an optimizer other than torch's SGD, Adam and AdamW, ValueError for a parameter
    that the optimizer does not hold.
    """
    rule = RULES.get(type(optimizer))
    if rule is None:
        raise InputError(
            f"optimizer: {type(optimizer).__name__} has no look-ahead; choose sgd, adam or adamw, "
            "or set strategy.look_ahead=false"
        )
    held = {p for group in optimizer.param_groups for p in group["params"]}
    for i, parameter in enumerate(parameters):
        if parameter not in held:
            raise ValueError(
                f"parameters[{i}], of shape {tuple(parameter.shape)}, is in no group of the "
                "optimizer; look ahead only for parameters that it holds"
            )
    wanted, changes = set(parameters), {}
    for group in optimizer.param_groups:
        moving = {p: p.grad for p in group["params"] if p in wanted and p.grad is not None}
        if moving:
            gradients: Tensors = list(moving.values())
            divisor = -scale if group["maximize"] else scale
            if divisor != 1:
                gradients = torch._foreach_div(gradients, divisor)
            states = [optimizer.state.get(p, {}) for p in moving]
            changes.update(zip(moving, rule([*moving], gradients, states, group), strict=True))
    return [changes[p] if p in changes else torch.zeros_like(p) for p in parameters]


def _sgd(
    parameters: Tensors, gradients: Tensors, states: list[State], group: dict[str, Any]
) -> Tensors:
    """Stochastic gradient descent with momentum."""
    momentum, kept = group["momentum"], 1 - group["dampening"]
    if group["weight_decay"]:
        gradients = torch._foreach_add(gradients, parameters, alpha=group["weight_decay"])
    if momentum:
        held = [state.get("momentum_buffer") for state in states]
        buffers = [  # the first gradient is taken whole, whatever the dampening
            g if buffer is None else (momentum * buffer).add_(g, alpha=kept)
            for g, buffer in zip(gradients, held, strict=True)
        ]
        if group["nesterov"]:
            gradients = torch._foreach_add(gradients, buffers, alpha=momentum)
        else:
            gradients = buffers
    return torch._foreach_mul(gradients, -float(group["lr"]))


def _adam(
    parameters: Tensors, gradients: Tensors, states: list[State], group: dict[str, Any]
) -> Tensors:
    """Adam, its weight decay coupled or decoupled, and AMSGrad."""
    rate, beta1, beta2 = map(float, (group["lr"], *group["betas"]))
    decay, decoupled = group["weight_decay"], group["decoupled_weight_decay"]
    states = [state or _zeros(p, group) for p, state in zip(parameters, states, strict=True)]
    # Steps stay on their device: to read them would be to wait for it.
    steps = torch.stack([state["step"] for state in states]).double() + 1
    if decay and not decoupled:
        gradients = torch._foreach_add(gradients, parameters, alpha=decay)
    mean = torch._foreach_lerp([state["exp_avg"] for state in states], gradients, 1 - beta1)
    square = torch._foreach_mul([state["exp_avg_sq"] for state in states], beta2)
    torch._foreach_addcmul_(square, gradients, gradients, 1 - beta2)
    if group["amsgrad"]:
        torch._foreach_maximum_(square, [state["max_exp_avg_sq"] for state in states])
    torch._foreach_sqrt_(square)
    torch._foreach_div_(square, (1 - beta2**steps).sqrt().unbind())
    torch._foreach_add_(square, group["eps"])
    torch._foreach_div_(mean, square)
    torch._foreach_mul_(mean, (-rate / (1 - beta1**steps)).unbind())
    if decay and decoupled:
        torch._foreach_add_(mean, parameters, alpha=-rate * decay)
    return mean


def _zeros(parameter: Tensor, group: dict[str, Any]) -> State:
    """Adam's state before its first step, on the devices where it keeps it."""
    moments = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    device = parameter.device if group["fused"] or group["capturable"] else "cpu"
    state = dict.fromkeys(moments, torch.zeros_like(parameter))
    return {**state, "step": torch.zeros((), device=device)}


RULES: dict[type[Optimizer], Rule] = {SGD: _sgd, Adam: _adam, AdamW: _adam}
