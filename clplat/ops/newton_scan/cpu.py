"""Newton's method over the whole sequence: each iteration is one linear scan.

The unknowns are the states of all steps. Where they miss h_t = f(h_{t-1}, x_t) by a residual, the
linear scan with the Jacobian of f (a diagonal) carries the corrections on through time.

It does several times the work of going step by step, which pays only where a step is too small
to keep a processor busy: with few channels.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from clplat.ops.linear_scan import cpu as linear_scan
from clplat.ops.tier import state_dtype

NARROW = 64  # channels of the whole batch up to which Newton's method is the faster
TILE = 2**16  # elements that the backward pass holds at once, few enough for the cache


class Linear(NamedTuple):
    """A step h -> f(h, x) and its derivatives, all steps at once: tensors (B, T, D)."""

    new: Tensor  # f(h, x)
    slope: Tensor  # df/dh
    by_x: list[Tensor]  # df/dx, for each gate
    factors: list[Tensor]  # what each gate's recurrent weight multiplies


def elman(x: Tensor, recurrent: Tensor, h: Tensor) -> Linear:
    new = torch.addcmul(x, recurrent, h).tanh_()
    by_x = 1 - new * new
    return Linear(new, by_x * recurrent, [by_x], [h])


def gru(x: Tensor, recurrent: Tensor, h: Tensor) -> Linear:
    (x_r, x_z, x_n), (r_r, r_z, r_n) = x.unbind(-2), recurrent
    r, z = torch.addcmul(x_r, r_r, h).sigmoid_(), torch.addcmul(x_z, r_z, h).sigmoid_()
    reset = r * h
    n = torch.addcmul(x_n, r_n, reset).tanh_()
    by_n = (1 - z) * (1 - n * n)
    by_z = (h - n) * z * (1 - z)
    by_r = by_n * r_n * reset * (1 - r)
    slope = z + by_z * r_z + by_r * r_r + by_n * r_n * r
    return Linear(torch.lerp(n, h, z), slope, [by_r, by_z, by_n], [h, h, reset])


LINEARISE = {"elman": elman, "gru": gru}


def solve(
    kind: str, x: Tensor, recurrent: Tensor, initial: Tensor, iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What `forward` returns, and the iterations taken: -1 where it went step by step."""
    dtype = state_dtype(x)
    half, x, recurrent = x.dtype, x.to(dtype), recurrent.to(dtype)
    states = x.new_zeros(x.shape[0], x.shape[1] + 1, x.shape[-1])
    states[:, 0] = initial
    count = -1
    if initial.numel() <= NARROW:
        count = _newton(kind, x, recurrent, states, iterations, tolerance)
    if count < 0:
        _step_by_step(kind, x, recurrent, states)
    h, final = states[:, 1:].to(half, copy=True), states[:, -1].clone()
    return h, final, torch.tensor([count])


def _newton(
    kind: str, x: Tensor, recurrent: Tensor, states: Tensor, iterations: int, tolerance: float
) -> int:
    """Fills `states` (B, T + 1, D), the initial one first; the iterations taken, -1 if in vain."""
    before, h = states[:, :-1], states[:, 1:]
    change = torch.empty_like(h, memory_format=torch.contiguous_format)
    nothing = torch.zeros_like(states[:, 0])
    for count in range(1, iterations + 1):
        new, slope, _, _ = LINEARISE[kind](x, recurrent, before)
        residual = new.sub_(h)
        worst = residual.abs().max().item()
        if not math.isfinite(worst):
            break
        # Beyond a slope of 1 the corrections would grow with every step, and Newton diverge.
        linear_scan.scan(slope.clamp_(-1, 1), residual, nothing, False, change)
        h.add_(change)
        if worst <= tolerance:
            return count
    return -1


def _step_by_step(kind: str, x: Tensor, recurrent: Tensor, states: Tensor) -> None:
    """Fills `states` (B, T + 1, D), the initial one first."""
    h, *after = states.unbind(1)
    if kind == "elman":
        for now, new in zip(x.unbind(1), after, strict=True):
            h = torch.addcmul(now, recurrent, h, out=new).tanh_()
        return
    gates, (_, _, r_n) = recurrent[:2], recurrent
    for x_rz, x_n, new in zip(x[:, :, :2].unbind(1), x[:, :, 2].unbind(1), after, strict=True):
        r, z = torch.addcmul(x_rz, gates, h[:, None]).sigmoid_().unbind(1)
        n = torch.addcmul(x_n, r_n, r.mul_(h)).tanh_()
        h = torch.lerp(n, h, z, out=new)


def forward(
    kind: str, x: Tensor, recurrent: Tensor, initial: Tensor, iterations: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    return solve(kind, x, recurrent, initial, iterations, tolerance)[:2]


def backward(
    grad_h: Tensor,
    grad_final: Tensor,
    kind: str,
    x: Tensor,
    recurrent: Tensor,
    h: Tensor,
    initial: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, recurrent and initial: a reverse scan with the slopes at the solution."""
    dtype, like = state_dtype(x), (x, recurrent, initial)
    grad_h, recurrent, initial = grad_h.to(dtype), recurrent.to(dtype), initial.to(dtype)
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    grad_recurrent, carry = torch.zeros_like(recurrent), grad_final
    size = max(1, TILE // initial.numel())
    for start in reversed(range(0, x.shape[1], size)):
        tile = slice(start, start + size)
        entering = h[:, start - 1].to(dtype) if start else initial
        before = torch.cat([entering[:, None], h[:, tile][:, :-1].to(dtype)], 1)
        _, slope, by_x, factors = LINEARISE[kind](x[:, tile].to(dtype), recurrent, before)
        # Its other result, the gradient of the slope, is of no use here, so any states will do.
        _, grad, carry = linear_scan.backward(
            grad_h[:, tile], carry, slope, before, entering, False, None
        )
        by_x = [grad * each for each in by_x]
        sums = [(each * factor).sum((0, 1)) for each, factor in zip(by_x, factors, strict=True)]
        grad_recurrent += torch.stack(sums).view(recurrent.shape)
        grad_x[:, tile] = torch.stack(by_x, -2).view(x[:, tile].shape)
    return grad_x, grad_recurrent.to(like[1].dtype), carry.to(like[2].dtype)
