"""A linear memory of D <= 64 by kernels; coefficients come from `chunks.py`.

A memory of two layers, and one wider than 64, runs through `cpu.py` (batched matrix products).
"""

import functools
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from clplat.ops.device import OPTIONS, accumulator, float32_precision, operand
from clplat.ops.neural_memory import cpu
from clplat.ops.neural_memory.backward_kernels import (
    keys_backward_kernel,
    queries_backward_kernel,
    walk_backward_kernel,
)
from clplat.ops.neural_memory.chunks import Coefficients, coefficients, coefficients_backward
from clplat.ops.neural_memory.forward_kernels import read_kernel, recall_kernel, walk_kernel
from clplat.ops.neural_memory.rule import Plan, Rule, plan
from clplat.ops.tier import state_dtype

WIDEST = 64
COLUMNS = 16  # of the weights, at a time; more of them spill in float32


@functools.cache
def _warn_of_width() -> None:
    warnings.warn(
        f"neural_memory: heads wider than {WIDEST} have no kernel and run as separate matrix "
        "products; use more heads for speed",
        stacklevel=2,
    )


def _has_kernel(state: list[Tensor]) -> bool:
    width = state[0].shape[-1]
    if len(state) == 3 and width > WIDEST:
        _warn_of_width()
    return len(state) == 3 and width <= WIDEST


def _launch(
    kernel: Any,
    tensors: Sequence[Tensor | None],
    like: Tensor,
    layout: Plan,
    programs: tuple[int, ...],
    *strides: int,
    **settings: Any,
) -> None:
    _, time, heads, width = like.shape
    kernel[programs](
        *tensors, time, heads, width, layout.number, layout.front, layout.chunk, *strides,
        **settings, KIND=operand(like), STATE=accumulator(like),
        PRECISION=float32_precision() if like.dtype == torch.float32 else "ieee",
        P=max(64 if like.dtype == torch.float32 else 16, triton.next_power_of_2(layout.chunk)),
        BLOCK=max(16, triton.next_power_of_2(width)), COLUMNS=COLUMNS,
        num_warps=4, num_stages=1, **OPTIONS,
    )  # fmt: skip


class _Walk(NamedTuple):
    """What the walk over the chunks needs and finds."""

    q: Tensor
    k: Tensor
    v: Tensor
    weighing: Coefficients
    anchor: Tensor  # (B H, D, D), the initial one
    starts: Tensor  # (chunks + 1, B H, 2, D, D)
    anchors: Tensor | None  # (chunks + 1, B H, D, D)
    delta: Tensor  # (B, T, H, D)
    layout: Plan
    rule: Rule
    moving: bool

    @property
    def programs(self) -> int:
        """One for every chunk of every head."""
        return self.layout.number * len(self.anchor)

    @property
    def blocks(self) -> int:
        return triton.cdiv(self.q.shape[3], COLUMNS)

    def along(self, kernel: Any, tensors: Sequence[Tensor | None]) -> None:
        """Launches a kernel that goes along the chunks."""
        rule, together = self.rule, self.rule.retention == "lq"
        programs = len(self.anchor), 1 if together else self.blocks
        _launch(
            kernel, tensors, self.q, self.layout, programs,
            LOSS=rule.loss, LOSS_PARAMETER=rule.loss_parameter, RETENTION=rule.retention,
            Q=rule.retention_parameter, MOVING=self.moving, TOGETHER=together,
        )  # fmt: skip

    def recall(self, x: Tensor, backward: bool = False) -> Tensor:
        """What the newest anchors answer to x; or the gradient of x from that of the answers."""
        assert self.anchors is not None
        y, late = torch.empty_like(x), self.layout._replace(number=len(self.anchors))
        programs = len(self.anchors) * len(self.anchor), self.blocks
        strides = (1, x.shape[3]) if backward else (x.shape[3], 1)
        _launch(recall_kernel, [x, self.anchors, y], x, late, programs, *strides)
        return y


def _walk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    state: list[Tensor],
    momentum: Tensor | None,
    decay: Tensor | None,
    rule: Rule,
) -> _Walk:
    dtype, layout = state_dtype(q), plan(rule, q.shape[1])
    weighing = coefficients(rate, momentum, decay, layout, dtype)
    weighing = Coefficients(*(x.contiguous() for x in weighing))
    q, k, v = (x.contiguous() for x in (q, k, v))
    weights, velocity, anchor = (x.to(dtype).flatten(0, 1).contiguous() for x in state)
    rows, width, _ = weights.shape
    starts = weights.new_empty(layout.number + 1, rows, 2, width, width)
    starts[0, :, 0], starts[0, :, 1] = weights, velocity
    anchors = None
    if not rule.exact:
        anchors = weights.new_empty(layout.number + 1, rows, width, width)
        anchors[0] = anchor
    moving, delta = momentum is not None, torch.empty_like(v)
    walk = _Walk(q, k, v, weighing, anchor, starts, anchors, delta, layout, rule, moving)
    walk.along(walk_kernel, [k, v, *weighing, anchor, starts, anchors, delta])
    return walk


def _copy(x: Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous tensor of its own, as an op's outputs have to be, of the shape of `like`."""
    return x.reshape(like.shape).to(dtype, copy=True, memory_format=torch.contiguous_format)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    state: list[Tensor],
    momentum: Tensor | None,
    decay: Tensor | None,
    rule: Rule,
) -> list[Tensor]:
    """y, then the final A, S and anchor."""
    if not _has_kernel(state):
        return cpu.forward(q, k, v, rate, state, momentum, decay, rule)
    walk = _walk(q, k, v, rate, state, momentum, decay, rule)
    if walk.anchors is not None:
        y, anchor = walk.recall(walk.q), walk.anchors[-1]
    else:
        y = torch.empty_like(walk.q)
        tensors = [walk.q, walk.k, walk.delta, *walk.weighing[:3], walk.starts, y]
        programs = walk.programs, walk.blocks
        _launch(read_kernel, tensors, y, walk.layout, programs, MOVING=walk.moving)
        newest = walk.layout.number - (not walk.layout.complete)
        anchor = walk.starts[newest, :, 0] if newest else walk.anchor
    velocity = walk.starts[-1, :, 1] if walk.moving else state[1].to(walk.starts.dtype)
    final = walk.starts[-1, :, 0], velocity, anchor
    return [y, *(_copy(x, like, x.dtype) for x, like in zip(final, state, strict=True))]


def backward(
    gradients: list[Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    state: list[Tensor],
    momentum: Tensor | None,
    decay: Tensor | None,
    rule: Rule,
) -> list[Tensor]:
    """Gradients of q, k, v, rate, the state, and of momentum and decay where there are any."""
    if not _has_kernel(state):
        return cpu.backward(gradients, q, k, v, rate, state, momentum, decay, rule)
    walk = _walk(q, k, v, rate, state, momentum, decay, rule)
    grad_y, weighing = gradients[0].contiguous(), walk.weighing
    grad_weighing = Coefficients(*(torch.zeros_like(x) for x in weighing))
    grad_k, grad_v, grad_delta = (torch.empty_like(walk.v) for _ in range(3))
    if rule.exact:
        grad_q = torch.empty_like(walk.q)
        tensors = [
            grad_y, walk.q, walk.k, walk.delta, *weighing[:3], walk.starts,
            grad_q, grad_delta, *grad_weighing[:3],
        ]  # fmt: skip
        _launch(
            queries_backward_kernel, tensors, q, walk.layout, (walk.programs,), MOVING=walk.moving
        )
    else:
        grad_q = walk.recall(grad_y, backward=True)

    ends = torch.empty_like(walk.starts)
    ends[-1] = torch.stack([x.flatten(0, 1) for x in gradients[1:3]], 1)
    grad_anchor = gradients[3].flatten(0, 1).contiguous().clone()
    tensors = [
        grad_y, walk.q, walk.k, walk.v, *weighing, walk.anchor, walk.starts, walk.anchors,
        grad_delta if rule.exact else None, grad_v, ends, grad_anchor,
    ]  # fmt: skip
    walk.along(walk_backward_kernel, tensors)

    last = Coefficients(*(torch.empty_like(x[..., -1, :]) for x in weighing))
    tensors = [
        grad_y, walk.q, walk.k, walk.delta, weighing.c, weighing.m, walk.anchor, walk.starts,
        walk.anchors, ends, grad_v, grad_k, last.a, last.b, last.c, *grad_weighing[3:],
    ]  # fmt: skip
    _launch(
        keys_backward_kernel, tensors, q, walk.layout, (walk.programs,), MOVING=walk.moving,
        EXACT=rule.exact,
    )  # fmt: skip
    grad_weighing.c[..., -1, :] += last.c
    grad_weighing.a[..., -1, :] += last.a
    if walk.moving:
        grad_weighing.b[..., -1, :] += last.b

    gates = coefficients_backward(grad_weighing, rate, momentum, decay, walk.layout)
    first = ends[0, :, 0], ends[0, :, 1] if walk.moving else gradients[2], grad_anchor
    states = [_copy(x, like, like.dtype) for x, like in zip(first, state, strict=True)]
    return [grad_q, grad_k, grad_v, gates[0], *states, *gates[1:]]
