"""Two levels: blocks of the sequence side by side, then their last states one after another.

A loop over time would pay PyTorch's cost of a call T times; here it is about 5 sqrt(T) times, on
tensors sqrt(T) times as large. Nothing of the input's size is made but the output.
"""

import math

import torch
from torch import Tensor

from clplat.ops.packed import lengths
from clplat.ops.tier import state_dtype


def scan(a: Tensor, x: Tensor, initial: Tensor, reverse: bool, out: Tensor) -> None:
    """Writes the states (B, T, D) of h_t = a_t h_{t-1} + x_t into `out`."""
    time = x.shape[1]
    block = math.isqrt(time)
    whole = time // block * block
    carry = initial
    for start, end, size in ((time, whole, 1), (whole, 0, block))[:: 1 if reverse else -1]:
        if start != end:
            part = slice(min(start, end), max(start, end))
            blocks = (tensor[:, part].unflatten(1, (-1, size)) for tensor in (a, x, out))
            carry = _scan_blocks(*blocks, initial=carry, reverse=reverse)


def _scan_blocks(a: Tensor, x: Tensor, out: Tensor, initial: Tensor, reverse: bool) -> Tensor:
    """The scan of (B, blocks, size, D) into `out`; the last state."""
    direction = -1 if reverse else 1
    # The steps inside the blocks, (B, blocks, D) each; unbound at once, since an index costs more.
    steps = list(zip(a.unbind(2), x.unbind(2), out.unbind(2), strict=True))[::direction]

    # What each block does to the state that enters it: state -> product * state + end.
    product, end = steps[0][0].clone(), steps[0][1].clone()
    for a_i, x_i, _ in steps[1:]:
        torch.addcmul(x_i, a_i, end, out=end)
        product.mul_(a_i)

    entering = x.new_empty(x.shape[0], x.shape[1] + 1, x.shape[3])
    states = entering.unbind(1)[::direction]
    states[0].copy_(initial)
    blocks = list(zip(product.unbind(1), end.unbind(1), strict=True))[::direction]
    for (product_j, end_j), before, after in zip(blocks, states, states[1:], strict=False):
        torch.addcmul(end_j, product_j, before, out=after)

    h = entering[:, 1:] if reverse else entering[:, :-1]
    for a_i, x_i, out_i in steps:
        h = torch.addcmul(x_i, a_i, h, out=out_i)
    return states[-1]


def forward(
    a: Tensor, x: Tensor, initial: Tensor, reverse: bool, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    dtype = state_dtype(x)
    half, a, x, initial = x.dtype, a.to(dtype), x.to(dtype), initial.to(dtype)
    h = torch.empty_like(x, memory_format=torch.contiguous_format)
    if cu_seqlens is None:
        scan(a, x, initial, reverse, h)
        final = h[:, 0 if reverse else -1].clone()
    else:
        first, last = _ends(cu_seqlens, x, reverse)
        x = x.index_add(1, first, (a[0, first] * initial)[None])
        scan(a.index_fill(1, first, 0), x, initial[:1], reverse, h)
        final = h[0, last]
    return h.to(half), final


def backward(
    grad_h: Tensor,
    grad_final: Tensor,
    a: Tensor,
    h: Tensor,
    initial: Tensor,
    reverse: bool,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, x and initial; that of x is the same scan in the other direction."""
    dtype, dtypes = state_dtype(h), (a.dtype, h.dtype, initial.dtype)
    grad_h, a, h, initial = (g.to(dtype) for g in (grad_h, a.conj(), h.conj(), initial.conj()))
    if cu_seqlens is None:
        first = -1 if reverse else 0
        grad_a, grad_x = _backward(grad_h, grad_final, a, h, reverse)
        grad_a[:, first] = grad_x[:, first] * initial
        grad_initial = grad_x[:, first] * a[:, first]
    else:
        first, last = _ends(cu_seqlens, h, reverse)
        grad_h = grad_h.index_add(1, last, grad_final[None])
        nothing = torch.zeros_like(h[:, 0])
        grad_a, grad_x = _backward(grad_h, nothing, a.index_fill(1, first, 0), h, reverse)
        grad_a[0, first] = grad_x[0, first] * initial
        grad_initial = grad_x[0, first] * a[0, first]
    return grad_a.to(dtypes[0]), grad_x.to(dtypes[1]), grad_initial.to(dtypes[2])


def _ends(cu_seqlens: Tensor, x: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """Where each packed sequence's scan begins, and where it ends; decay 0 parts them."""
    lengths(cu_seqlens, x.shape[1])
    starts, ends = cu_seqlens[:-1], cu_seqlens[1:] - 1
    return (ends, starts) if reverse else (starts, ends)


def _backward(
    grad_h: Tensor, grad_final: Tensor, a: Tensor, h: Tensor, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of a (all but the first step's) and of x, from the conjugates of a and h."""
    here, there = (slice(1, None), slice(None, -1))[:: -1 if reverse else 1]
    last = 0 if reverse else -1
    grad_x = torch.empty_like(grad_h, memory_format=torch.contiguous_format)
    torch.add(grad_h[:, last], grad_final, out=grad_x[:, last])
    if h.shape[1] > 1:
        scan(a[:, here], grad_h[:, there], grad_x[:, last], not reverse, grad_x[:, there])
    grad_a = torch.empty_like(grad_x)
    torch.mul(grad_x[:, here], h[:, there], out=grad_a[:, here])
    return grad_a, grad_x
