"""The gates for all steps at once, then the linear scan of h_t = (1 - w_t) h_{t-1} + w_t g_t."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, silu

from clplat.ops.linear_scan import cpu as linear_scan
from clplat.ops.tier import state_dtype

sigmoid_backward = torch.ops.aten.sigmoid_backward  # of the output's gradient and the output
silu_backward = torch.ops.aten.silu_backward  # of the output's gradient and the input


def weight(kind: str, gate: Tensor, extra: Tensor | None) -> Tensor:
    """w, the weight of the new value; accurate where it is small, as 1 - a would not be."""
    if kind == "mingru":
        return gate.sigmoid()
    assert extra is not None
    if kind == "minlstm":  # i / (f + i), where f and i may both be small
        return logsigmoid(extra).sub_(logsigmoid(gate)).sigmoid_()
    return gate.neg().sigmoid_().mul_(1 - extra)


def weight_backward(
    kind: str, grad_w: Tensor, w: Tensor, gate: Tensor, extra: Tensor | None
) -> list[Tensor]:
    """Gradients of gate, and of extra if there is one."""
    if kind == "mingru":
        return [sigmoid_backward(grad_w, w)]
    assert extra is not None
    if kind == "minlstm":
        grad_logit = sigmoid_backward(grad_w, w)
        grad_input_gate = extra.neg().sigmoid_().mul_(grad_logit)
        return [gate.neg().sigmoid_().mul_(grad_logit.neg_()), grad_input_gate]
    closed = gate.neg().sigmoid_()
    grad_bound = (grad_w * closed).sum((0, 1)).neg_()
    return [grad_w.mul_(w).mul_(closed.sub_(1)), grad_bound]


# torch.where costs as much as ten of these products: its two branches are told by maximum.
def candidate(kind: str, value: Tensor) -> Tensor:
    """g, the value that the gate lets in."""
    if kind == "hgrn":
        return silu(value)
    return torch.maximum(value + 0.5, value.sigmoid())


def candidate_backward(kind: str, grad: Tensor, value: Tensor) -> Tensor:
    if kind == "hgrn":
        return silu_backward(grad, value)
    s = value.sigmoid()
    slope = torch.addcmul(s, s, s, value=-1)  # at most 1/4; from 0 on the slope is 1
    return torch.maximum(slope, value.clone().ge_(0), out=slope).mul_(grad)


def forward(
    kind: str,
    gate: Tensor,
    value: Tensor,
    extra: Tensor | None,
    initial: Tensor,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    dtype = state_dtype(value)
    w = weight(kind, gate.to(dtype), None if extra is None else extra.to(dtype))
    new = candidate(kind, value.to(dtype)).mul_(w)
    h, final = linear_scan.forward(1 - w, new, initial, False, cu_seqlens)
    return h.to(value.dtype), final


def backward(
    grad_h: Tensor,
    grad_final: Tensor,
    kind: str,
    gate: Tensor,
    value: Tensor,
    extra: Tensor | None,
    h: Tensor,
    initial: Tensor,
    cu_seqlens: Tensor | None,
) -> list[Tensor]:
    """Gradients of gate, value and initial, and of extra if there is one."""
    like = [tensor for tensor in (gate, value, initial, extra) if tensor is not None]
    dtype = state_dtype(value)
    gate, value, h = gate.to(dtype), value.to(dtype), h.to(dtype)
    extra = None if extra is None else extra.to(dtype)
    w = weight(kind, gate, extra)
    grad_a, grad_new, grad_initial = linear_scan.backward(
        grad_h, grad_final, 1 - w, h, initial, False, cu_seqlens
    )
    grad_w = torch.addcmul(grad_a.neg_(), grad_new, candidate(kind, value), out=grad_a)
    grad_value = candidate_backward(kind, grad_new.mul_(w), value)
    grad_gate, *grad_extra = weight_backward(kind, grad_w, w, gate, extra)
    found = [grad_gate, grad_value, grad_initial, *grad_extra]
    return [gradient.to(x.dtype).contiguous() for gradient, x in zip(found, like, strict=True)]
