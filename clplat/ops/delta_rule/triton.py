"""The chunks of `cpu.py` by four kernels, two of them parallel over chunks.

`chunk_kernel` computes what needs no state; `forward_kernel` carries a block of the state's columns
in registers from chunk to chunk. For the gradients both run again, the latter to keep the states;
`reverse_kernel` carries the state's gradient from the last chunk to the first; and
`gradient_kernel` turns it into those of the inputs, parallel over chunks again.

The kernels fit the registers for K up to 128 in half precision and 64 in float32; for 128 in
float32 they are right but slow. Wider keys are left to cpu.py, which runs on a GPU too.
"""

import functools
import warnings
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from clplat.ops.delta_rule import cpu
from clplat.ops.delta_rule.kernels import (
    chunk_kernel,
    forward_kernel,
    gradient_kernel,
    reverse_kernel,
)
from clplat.ops.device import OPTIONS, accumulator, float32_precision, operand
from clplat.ops.packed import lengths
from clplat.ops.tier import state_dtype

WIDEST = 128  # keys


@functools.cache
def _warn_of_width() -> None:
    warnings.warn(
        f"delta_rule: keys wider than {WIDEST} have no kernel; a slower form runs", stacklevel=2
    )


def _fits(q: Tensor) -> bool:
    """Whether the kernels hold the keys; if not, the user is told, once."""
    if q.shape[-1] > WIDEST:
        _warn_of_width()
    return q.shape[-1] <= WIDEST


class Plan(NamedTuple):
    """What the launches of one call share."""

    chunk: int  # tokens
    chunks: int  # of the longest sequence
    slots: int  # for the states kept, a head
    count: int  # of sequences
    blocks: int  # of V
    sizes: tuple[Tensor | None, int, int, int, int]  # cu_seqlens, T, H, K, V
    constants: dict[str, Any]


def _plan(q: Tensor, v: Tensor, cu_seqlens: Tensor | None) -> Plan:
    batch, time, heads, keys = q.shape
    values = v.shape[-1]
    counts = [time] * batch if cu_seqlens is None else lengths(cu_seqlens, time)
    state = accumulator(q)
    half = q.dtype != state_dtype(q)
    # As large as the registers of every target hold; three products of tf32 need many.
    chunk, part, block_v, stages = (32, 64, 32, 3) if half else (16, 16, 16, 1)
    block_v = min(block_v, _block(values))
    constants = {
        "C": chunk,
        "BK": _block(keys),
        "BV": block_v,
        "PART": min(part, _block(keys)),
        "STATE": state,
        "OPERAND": operand(q),
        "PRECISION": float32_precision(),
        "num_warps": 4,
        "num_stages": stages,
        **OPTIONS,
    }
    return Plan(
        chunk,
        triton.cdiv(max(counts), chunk),
        batch * time // chunk + len(counts),
        len(counts),
        triton.cdiv(values, block_v),
        (cu_seqlens, time, heads, keys, values),
        constants,
    )


def _block(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


def _prepare(
    plan: Plan, q: Tensor, k: Tensor, beta: Tensor, log_decay: Tensor, inverse: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`mix` (B, T, H, C) and `write` (B, T, H, K) of every chunk."""
    mix, write = q.new_empty(*q.shape[:3], plan.chunk), torch.empty_like(q)
    chunk_kernel[plan.count * plan.chunks, plan.sizes[2]](
        q, k, beta, log_decay, mix, write, inverse, plan.chunks, *plan.sizes, **plan.constants
    )
    return mix, write


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    initial: Tensor,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    if not _fits(q):
        return cpu.forward(q, k, v, beta, log_decay, initial, cu_seqlens)
    q, k, v, beta, log_decay, initial = (
        x.contiguous() for x in (q, k, v, beta, log_decay, initial)
    )
    plan = _plan(q, v, cu_seqlens)
    mix, write = _prepare(plan, q, k, beta, log_decay, None)
    y, final = torch.empty_like(v), torch.empty_like(initial, dtype=state_dtype(q))
    forward_kernel[plan.count * plan.sizes[2], plan.blocks](
        q, k, v, beta, log_decay, initial, mix, write, y, final, None, None,
        *plan.sizes, **plan.constants,
    )  # fmt: skip
    return y, final


def backward(
    grad_y: Tensor,
    grad_final: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    initial: Tensor,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v, beta, log_decay and initial."""
    if not _fits(q):
        inputs = q, k, v, beta, log_decay, initial, cu_seqlens
        return cpu.backward(grad_y, grad_final, *inputs)
    grad_y, grad_final, q, k, v, beta, log_decay, initial = (
        x.contiguous() for x in (grad_y, grad_final, q, k, v, beta, log_decay, initial)
    )
    plan = _plan(q, v, cu_seqlens)
    inverse = q.new_empty(*q.shape[:3], plan.chunk)
    mix, write = _prepare(plan, q, k, beta, log_decay, inverse)
    z, grad_z = torch.empty_like(v), torch.empty_like(v)
    states = q.new_empty(plan.slots, *initial.shape[1:])
    grad_states = torch.empty_like(states)
    grads = [torch.empty_like(x) for x in (q, k, v, beta, log_decay, initial)]
    forward_kernel[plan.count * plan.sizes[2], plan.blocks](
        q, k, v, beta, log_decay, initial, mix, write, None, None, z, states,
        *plan.sizes, **plan.constants,
    )  # fmt: skip
    reverse_kernel[plan.count * plan.sizes[2], plan.blocks](
        grad_y, grad_final, q, k, beta, log_decay, mix, write, grad_z, grad_states, grads[-1],
        *plan.sizes, **plan.constants,
    )  # fmt: skip
    gradient_kernel[plan.count * plan.chunks, plan.sizes[2]](
        grad_y, q, k, v, beta, log_decay, inverse, z, grad_z, states, grad_states, *grads[:-1],
        plan.chunks, *plan.sizes, **plan.constants,
    )  # fmt: skip
    return tuple(grads)
