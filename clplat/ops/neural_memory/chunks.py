"""Tokens laid out in chunks, and what each token and each start weighs in the weights after it.

Within a chunk all gradients u are taken at its anchor, so that A and S are linear in them:
A_t = a_t A + b_t S + sum_s c[t, s] u_s, and at the chunk's end S' = e S + sum_s m_s u_s, with A and
S those of its start. The steps' sizes and signs are in c and m.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from clplat.ops.linear_scan import cpu, linear_scan
from clplat.ops.neural_memory.rule import Plan


def into_chunks(x: Tensor, plan: Plan, shift: int = 0, value: float = 0.0) -> Tensor:
    """(B, T, H, ...) -> (chunks, B H, places, ...), `value` on free places.

    A shift of 1 moves every token on by a place, into one chunk more.
    """
    count, front = plan.number + shift, plan.front + shift
    free = (front, plan.chunk * count - front - plan.time)
    x = pad(x.movedim(1, -1), free, value=value)  # (B, H, ..., places)
    x = x.unflatten(-1, (count, plan.chunk)).movedim((-2, -1), (0, 3))
    return x.flatten(1, 2).contiguous()


def out_of_chunks(x: Tensor, plan: Plan, like: Tensor, shift: int = 0) -> Tensor:
    """The way back, in the shape and dtype of `like`."""
    batch, time, heads = like.shape[:3]
    x = x.unflatten(1, (batch, heads)).movedim(3, 1).flatten(0, 1)
    x = x[plan.front + shift :][:time].movedim(0, 1)
    return torch.empty(like.shape, dtype=like.dtype, device=like.device).copy_(x)


class Coefficients(NamedTuple):
    """The first axes are (chunks, B H)."""

    a: Tensor  # (..., places, 1)
    b: Tensor
    c: Tensor  # (..., places, places), lower triangular
    m: Tensor  # (..., places, 1)
    e: Tensor  # (..., 1, 1)


class _Tables(NamedTuple):
    """Rows: places; columns: the gradients of all places, the start of A, the start of S."""

    rate: Tensor  # (chunks, B H, places)
    momentum: Tensor | None
    decay: Tensor
    valid: Tensor  # (chunks, 1, places, 1)
    carried: Tensor  # S after each place, but for the steps' sizes and signs
    kept: Tensor  # A likewise


def _tables(
    rate: Tensor, momentum: Tensor | None, decay: Tensor | None, plan: Plan, dtype: torch.dtype
) -> _Tables:
    """On a free place S keeps its value and does not enter A."""
    size = plan.chunk
    rate = into_chunks(rate.to(dtype), plan)
    place = torch.arange(size * plan.number, device=rate.device) - plan.front
    valid = ((place >= 0) & (place < plan.time)).view(plan.number, 1, size, 1)
    carried = torch.eye(size, size + 2, dtype=dtype, device=rate.device).expand(*rate.shape, -1)
    if momentum is not None:
        momentum = into_chunks(momentum.to(dtype), plan, value=1.0)
        carried = _scan(momentum, carried, size + 1)
    decay = torch.ones_like(rate) if decay is None else into_chunks(decay.to(dtype), plan, value=1)
    return _Tables(rate, momentum, decay, valid, carried, _scan(decay, carried * valid, size))


def _scan(decay: Tensor, x: Tensor, start: int | None, reverse: bool = False) -> Tensor:
    """Rows h_t = decay_t h_{t-1} + x_t, from zeros, or the unit row of column `start`."""
    rows = x.flatten(0, 1)
    initial = rows.new_zeros(rows.shape[0], rows.shape[2])
    if start is not None:
        initial[:, start] = 1
    gates = decay.flatten(0, 1)[..., None].expand_as(rows)
    if x.is_cuda:
        h, _ = linear_scan(gates, rows, initial, reverse=reverse)
    else:  # also where kernels are interpreted, since this one would take most of the tests' time
        h, _ = cpu.forward(gates, rows, initial, reverse, None)
    return h.view(x.shape)


def _scan_backward(decay: Tensor, h: Tensor, grad: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """Gradients of decay and x of `_scan`, from its result h and the gradient of it."""
    grad_x = _scan(pad(decay[..., 1:], (0, 1)), grad, None, reverse=True)
    grad_decay = torch.empty_like(decay)
    torch.linalg.vecdot(grad_x[..., 1:, :], h[..., :-1, :], out=grad_decay[..., 1:])
    grad_decay[..., 0] = grad_x[..., 0, start]
    return grad_decay, grad_x


def coefficients(
    rate: Tensor, momentum: Tensor | None, decay: Tensor | None, plan: Plan, dtype: torch.dtype
) -> Coefficients:
    """From the gates (B, T, H)."""
    size = plan.chunk
    rate, _, _, _, carried, kept = _tables(rate, momentum, decay, plan, dtype)
    return Coefficients(
        kept[..., size, None],
        kept[..., size + 1, None],
        -kept[..., :size] * rate[..., None, :],
        (-carried[..., -1, :size] * rate)[..., None],
        carried[..., -1:, size + 1, None],
    )


def coefficients_backward(
    grad: Coefficients, rate: Tensor, momentum: Tensor | None, decay: Tensor | None, plan: Plan
) -> list[Tensor]:
    """Gradients of rate, and of momentum and decay where there are any."""
    size, gates = plan.chunk, (rate, momentum, decay)
    rate, eta, alpha, valid, carried, kept = _tables(*gates, plan, grad.c.dtype)
    grad_m = grad.m[..., 0]
    grad_rate = -(grad.c * kept[..., :size]).sum(-2) - grad_m * carried[..., -1, :size]
    grad_kept = torch.cat([-grad.c * rate[..., None, :], grad.a, grad.b], -1)
    grad_alpha, grad_carried = _scan_backward(alpha, kept, grad_kept, size)
    grads = [grad_rate, None, grad_alpha]
    if eta is not None:
        grad_carried = grad_carried * valid
        grad_carried[..., -1, :size] -= grad_m * rate
        grad_carried[..., -1, size + 1] += grad.e[..., 0, 0]
        grads[1], _ = _scan_backward(eta, carried, grad_carried, size + 1)
    pairs = zip(grads, gates, strict=True)
    return [out_of_chunks(g, plan, gate) for g, gate in pairs if gate is not None]
