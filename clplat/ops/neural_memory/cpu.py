"""Chunk by chunk in matrices, never the weights of a token; on any device.

The backward pass first goes over the chunks again to find the weights at their starts, then over
them in reverse.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from clplat.ops.neural_memory.chunks import (
    Coefficients,
    coefficients,
    coefficients_backward,
    into_chunks,
    out_of_chunks,
)
from clplat.ops.neural_memory.inner import (
    Lesson,
    Matrices,
    answer,
    answer_backward,
    gelu,
    gelu_backward,
    learn,
    learn_backward,
    retain_backward,
)
from clplat.ops.neural_memory.matrix import Matrix, read, read_backward, write, write_backward
from clplat.ops.neural_memory.reference import retain
from clplat.ops.neural_memory.rule import Plan, Rule, plan
from clplat.ops.tier import state_dtype


class Chunks(NamedTuple):
    """All tokens, laid out."""

    q: Tensor  # (chunks, B H, places, D); a place late where tokens read the newest anchor
    k: Tensor
    v: Tensor
    coefficients: Coefficients

    def weighing(self, n: int) -> Coefficients:
        return Coefficients(*(x[n] for x in self.coefficients))


class Memory(NamedTuple):
    """A and S, and the anchor that tokens learn at; S is of None without momentum."""

    weights: Matrices
    velocity: list[Tensor | None]
    anchor: Matrices

    def matrices(self, lesson: Lesson) -> list[Matrix]:
        parts = lesson.inputs, lesson.deltas, self.weights, self.velocity
        return [Matrix(*part) for part in zip(*parts, strict=True)]


def _lay_out(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    momentum: Tensor | None,
    decay: Tensor | None,
    rule: Rule,
    layout: Plan,
) -> Chunks:
    dtype = state_dtype(q)
    return Chunks(
        into_chunks(q.to(dtype), layout, shift=not rule.exact),
        into_chunks(k.to(dtype), layout),
        into_chunks(v.to(dtype), layout),
        coefficients(rate, momentum, decay, layout, dtype),
    )


def _memory(flat: list[Tensor], dtype: torch.dtype, moving: bool) -> Memory:
    """From A, S and anchor (B, H, ., .) in one list."""
    rows = [x.to(dtype).flatten(0, 1) for x in flat]
    count = len(rows) // 3
    velocity = rows[count : 2 * count] if moving else [None] * count
    return Memory(rows[:count], list(velocity), rows[2 * count :])


def _flatten(memory: Memory, like: list[Tensor], still: list[Tensor]) -> list[Tensor]:
    """The way back, as new tensors; where there is no momentum, S is that of `still`."""
    found = [x for part in memory for x in part]
    return [
        (other if x is None else x)
        .reshape(shape.shape)
        .to(shape.dtype, copy=True, memory_format=torch.contiguous_format)
        for x, other, shape in zip(found, still, like, strict=True)
    ]


def _renews(n: int, layout: Plan) -> bool:
    """Chunk n is whole, so that it ends with a new anchor."""
    return n + 1 < layout.number or layout.complete


def _walk(
    start: Memory, chunks: Chunks, rule: Rule, layout: Plan
) -> Iterator[tuple[Memory, Lesson | None]]:
    """The memory at every chunk's start and what the chunk teaches; then the memory at the end."""
    for n in range(layout.number):
        lesson = learn(chunks.k[n], chunks.v[n], start.anchor, rule)
        yield start, lesson
        weighing = chunks.weighing(n)
        written = [write(matrix, weighing) for matrix in start.matrices(lesson)]
        weights, velocity, anchor = [a for a, _ in written], [s for _, s in written], start.anchor
        if _renews(n, layout):
            anchor = [retain(a, rule.retention, rule.retention_parameter) for a in weights]
        start = Memory(weights, velocity, anchor)
    yield start, None


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
    layout = plan(rule, q.shape[1])
    chunks = _lay_out(q, k, v, rate, momentum, decay, rule, layout)
    memory, outputs = _memory(state, state_dtype(q), momentum is not None), []
    for n, (memory, lesson) in enumerate(_walk(memory, chunks, rule, layout)):
        if not rule.exact:
            outputs.append(answer(chunks.q[n], memory.anchor))
        elif lesson is not None:
            x = chunks.q[n]
            for i, matrix in enumerate(memory.matrices(lesson)):
                x = read(gelu(x) if i else x, matrix, chunks.weighing(n))
            outputs.append(x)
    y = out_of_chunks(torch.stack(outputs), layout, q, shift=not rule.exact)
    wide = [x.to(state_dtype(q)) for x in state]
    return [y, *_flatten(memory, wide, wide)]


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
    dtype, moving, shift = state_dtype(q), momentum is not None, not rule.exact
    layout = plan(rule, q.shape[1])
    chunks = _lay_out(q, k, v, rate, momentum, decay, rule, layout)
    starts = [m for m, _ in _walk(_memory(state, dtype, moving), chunks, rule, layout)]

    grad_y = into_chunks(gradients[0].to(dtype), layout, shift)
    grad = Chunks(
        torch.empty_like(chunks.q),
        torch.empty_like(chunks.k),
        torch.empty_like(chunks.v),
        Coefficients(*(torch.zeros_like(x) for x in chunks.coefficients)),
    )
    carry = _memory(gradients[1:], dtype, moving)
    if not rule.exact:
        grad.q[-1], more = answer_backward(chunks.q[-1], starts[-1].anchor, grad_y[-1])
        carry = carry._replace(anchor=_sum(carry.anchor, more))
    for n in reversed(range(layout.number)):
        if _renews(n, layout):
            carry = _renew_backward(carry, starts[n + 1], rule)
        carry = _chunk_backward(n, carry, grad_y[n], starts[n], chunks, grad, rule)

    gates = coefficients_backward(grad.coefficients, rate, momentum, decay, layout)
    inputs = [
        out_of_chunks(grad.q, layout, q, shift),
        out_of_chunks(grad.k, layout, k),
        out_of_chunks(grad.v, layout, v),
    ]
    return [*inputs, gates[0], *_flatten(carry, state, gradients[1:]), *gates[1:]]


def _sum(first: Matrices, second: Matrices) -> Matrices:
    return [x + y for x, y in zip(first, second, strict=True)]


def _renew_backward(carry: Memory, after: Memory, rule: Rule) -> Memory:
    """The anchor after the chunk was made from A after it, and had no other origin."""
    pairs = zip(after.weights, after.anchor, carry.anchor, strict=True)
    more = [retain_backward(a, anchor, grad, rule) for a, anchor, grad in pairs]
    nothing = [torch.zeros_like(grad) for grad in carry.anchor]
    return carry._replace(weights=_sum(carry.weights, more), anchor=nothing)


def _chunk_backward(
    n: int, carry: Memory, grad_y: Tensor, start: Memory, chunks: Chunks, grad: Chunks, rule: Rule
) -> Memory:
    """Writes the gradients of chunk n into `grad`; the gradient of the memory at its start."""
    weighing, grad_weighing = chunks.weighing(n), grad.weighing(n)
    lesson = learn(chunks.k[n], chunks.v[n], start.anchor, rule)
    matrices = start.matrices(lesson)
    ends = zip(carry.weights, carry.velocity, matrices, strict=True)
    found = [write_backward(a, s, matrix, weighing, grad_weighing) for a, s, matrix in ends]
    anchor = carry.anchor
    if rule.exact:
        xs, hidden = [chunks.q[n]], []
        for matrix in matrices[:-1]:
            hidden.append(read(xs[-1], matrix, weighing))
            xs.append(gelu(hidden[-1]))
        for i in reversed(range(len(matrices))):
            grad_y = read_backward(grad_y, xs[i], matrices[i], weighing, found[i], grad_weighing)
            grad_y = gelu_backward(grad_y, hidden[i - 1]) if i else grad_y
        grad.q[n] = grad_y
    else:
        grad.q[n], more = answer_backward(chunks.q[n], start.anchor, grad_y)
        anchor = _sum(anchor, more)
    grad_inputs, grad_deltas = [x.w for x in found], [x.d for x in found]
    grad.k[n], grad.v[n], more = learn_backward(
        lesson, start.anchor, rule, grad_inputs, grad_deltas
    )
    return Memory([x.a for x in found], [x.s for x in found], _sum(anchor, more))
