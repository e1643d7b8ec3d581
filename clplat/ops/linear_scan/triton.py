"""One program a sequence and block of channels; a loop over time carries the state in registers.

The backward pass is the same loop in the other direction. Complex tensors come as pairs of real
numbers. Layout (B, T, D); offsets are 64 bits wide.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from clplat.ops.device import OPTIONS, accumulator, sequence
from clplat.ops.packed import lengths
from clplat.ops.tier import state_dtype

BLOCK = 64  # channels a program; two warps, so that small widths fill a card too


@triton.jit
def load(pointer, mask, STATE: tl.constexpr, COMPLEX: tl.constexpr):
    """Real and imaginary part; of a real number the second is never read, and costs nothing."""
    real = tl.load(pointer, mask, 0.0).to(STATE)
    imaginary = tl.load(pointer + 1, mask, 0.0).to(STATE) if COMPLEX else real
    return real, imaginary


@triton.jit
def store(pointer, real, imaginary, mask, COMPLEX: tl.constexpr):
    tl.store(pointer, real, mask)
    if COMPLEX:
        tl.store(pointer + 1, imaginary, mask)


@triton.jit
def product(a_re, a_im, b_re, b_im, COMPLEX: tl.constexpr):
    if COMPLEX:
        real, imaginary = a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re
    else:
        real, imaginary = a_re * b_re, b_im
    return real, imaginary


@triton.jit(do_not_specialize=["T"])
def forward_kernel(
    a, x, initial, h, final, cu_seqlens, T, D, stride_ab, stride_at, stride_ad,
    REVERSE: tl.constexpr, COMPLEX: tl.constexpr, STATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = d < D
    pair: tl.constexpr = 2 if COMPLEX else 1
    begin, length = sequence(cu_seqlens, T, n)
    row = n.to(tl.int64) * stride_ab if cu_seqlens is None else begin * stride_at
    at_state = pair * (n.to(tl.int64) * D + d)

    h_re, h_im = load(initial + at_state, mask, STATE, COMPLEX)
    for i in range(length):
        t = length - 1 - i if REVERSE else i
        at = pair * ((begin + t) * D + d)
        at_a = row + t.to(tl.int64) * stride_at + d.to(tl.int64) * stride_ad
        a_re, a_im = load(a + at_a, mask, STATE, COMPLEX)
        x_re, x_im = load(x + at, mask, STATE, COMPLEX)
        h_re, h_im = product(a_re, a_im, h_re, h_im, COMPLEX)
        h_re += x_re
        h_im += x_im
        store(h + at, h_re, h_im, mask, COMPLEX)
    store(final + at_state, h_re, h_im, mask, COMPLEX)


@triton.jit(do_not_specialize=["T"])
def backward_kernel(
    grad_h, grad_final, a, h, initial, grad_a, grad_x, grad_initial, cu_seqlens,
    T, D, stride_ab, stride_at, stride_ad,
    REVERSE: tl.constexpr, COMPLEX: tl.constexpr, STATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Carries g = dL/dh_t; then grad_x_t = g, grad_a_t = g conj(h_{t-1}), and g <- g conj(a_t)."""
    n = tl.program_id(0)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = d < D
    pair: tl.constexpr = 2 if COMPLEX else 1
    begin, length = sequence(cu_seqlens, T, n)
    row = n.to(tl.int64) * stride_ab if cu_seqlens is None else begin * stride_at
    at_state = pair * (n.to(tl.int64) * D + d)

    g_re, g_im = load(grad_final + at_state, mask, STATE, COMPLEX)
    for i in range(length):
        t = i if REVERSE else length - 1 - i
        before = t + 1 if REVERSE else t - 1
        at = pair * ((begin + t) * D + d)
        at_a = row + t.to(tl.int64) * stride_at + d.to(tl.int64) * stride_ad
        a_re, a_im = load(a + at_a, mask, STATE, COMPLEX)
        if i < length - 1:
            h_re, h_im = load(h + pair * ((begin + before) * D + d), mask, STATE, COMPLEX)
        else:
            h_re, h_im = load(initial + at_state, mask, STATE, COMPLEX)
        y_re, y_im = load(grad_h + at, mask, STATE, COMPLEX)
        g_re += y_re
        g_im += y_im
        store(grad_x + at, g_re, g_im, mask, COMPLEX)
        da_re, da_im = product(h_re, -h_im, g_re, g_im, COMPLEX)
        store(grad_a + at, da_re, da_im, mask, COMPLEX)
        g_re, g_im = product(a_re, -a_im, g_re, g_im, COMPLEX)
    store(grad_initial + at_state, g_re, g_im, mask, COMPLEX)


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def _launch(kernel, tensors: list[Tensor], a: Tensor, like: Tensor, reverse, cu_seqlens) -> None:
    batch, time, width = like.shape
    if cu_seqlens is not None:
        lengths(cu_seqlens, time)
        batch = len(cu_seqlens) - 1
    kernel[batch, triton.cdiv(width, BLOCK)](
        *(_real(tensor) for tensor in tensors), cu_seqlens, time, width, *_real(a).stride()[:3],
        REVERSE=reverse, COMPLEX=like.is_complex(), STATE=accumulator(like), BLOCK=BLOCK,
        num_warps=2, **OPTIONS,
    )  # fmt: skip


def forward(
    a: Tensor, x: Tensor, initial: Tensor, reverse: bool, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    x, initial = x.contiguous(), initial.contiguous()
    h = torch.empty_like(x)
    final = torch.empty_like(initial, dtype=state_dtype(x))
    _launch(forward_kernel, [a, x, initial, h, final], a, x, reverse, cu_seqlens)
    return h, final


def backward(
    grad_h: Tensor,
    grad_final: Tensor,
    a: Tensor,
    h: Tensor,
    initial: Tensor,
    reverse: bool,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, x and initial."""
    grad_h, grad_final, h, initial = (
        tensor.contiguous() for tensor in (grad_h, grad_final, h, initial)
    )
    grad_a, grad_x, grad_initial = (
        h.new_empty(h.shape, dtype=a.dtype),
        h.new_empty(h.shape),
        torch.empty_like(initial),
    )
    tensors = [grad_h, grad_final, a, h, initial, grad_a, grad_x, grad_initial]
    _launch(backward_kernel, tensors, a, h, reverse, cu_seqlens)
    return grad_a, grad_x, grad_initial
