"""Two phases: the states at the chunks' ends, one after another; then all chunks side by side.

The states run forward for the output, and in the other direction for the gradients, by the same
kernel. Sequence n keeps those of its chunk c in slot begin // CHUNK + n + c, which no other
sequence reaches. Chunks lie along the grid's first axis, which alone holds more than 65,535. Widths
beyond a block are looped over. Layout (B, T, H, ...); a chunk's offset is 64 bits wide, those in it
are 32, which saves registers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from clplat.ops.device import OPTIONS, accumulator, operand, sequence
from clplat.ops.packed import lengths
from clplat.ops.tier import state_dtype


@triton.jit
def tile(pointer, rows, live, first, WIDTH: tl.constexpr, BLOCK: tl.constexpr, DTYPE: tl.constexpr):
    """Rows of `WIDTH` numbers, of each a block from column `first` on; zeros where not `live`."""
    columns = first + tl.arange(0, BLOCK)
    mask = live[:, None] & (columns < WIDTH)[None, :]
    return tl.load(pointer + (rows[:, None] * WIDTH + columns[None, :]), mask, 0.0).to(DTYPE)


@triton.jit
def write(pointer, x, rows, live, first, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    columns = first + tl.arange(0, BLOCK)
    mask = live[:, None] & (columns < WIDTH)[None, :]
    tl.store(pointer + (rows[:, None] * WIDTH + columns[None, :]), x, mask)


@triton.jit
def decay_entering(log_decay, step, count, H, STATE: tl.constexpr):
    """From the chunk's first step up to each; and over all of the chunk."""
    each = tl.load(log_decay + step * H, step < count, 0.0).to(STATE)
    return tl.exp(tl.cumsum(each, 0)), tl.exp(tl.sum(each, 0))


@triton.jit
def decay_leaving(log_decay, step, count, H, STATE: tl.constexpr):
    """From after each step up to the chunk's last."""
    after = tl.load(log_decay + (step + 1) * H, step + 1 < count, 0.0).to(STATE)
    return tl.exp(tl.cumsum(after, 0, reverse=True))


@triton.jit
def decay_between(log_decay, step, count, H, STATE: tl.constexpr):
    """From after step s (column) up to step t (row), 0 for s > t.

    Each sum on its own: in a difference of two, a reset would drown all that comes after it.
    """
    each = tl.load(log_decay + step * H, step < count, 0.0).to(STATE)
    row, column = step[:, None], step[None, :]
    sums = tl.cumsum(tl.where(row > column, each[:, None], 0.0), 0)
    return tl.exp(tl.where(row >= column, sums, float("-inf")))


@triton.jit(do_not_specialize=["T"])
def states_kernel(
    k, v, log_decay, initial, states, final, cu_seqlens, T, H,
    K: tl.constexpr, V: tl.constexpr, REVERSE: tl.constexpr, STATE: tl.constexpr,
    OPERAND: tl.constexpr, CHUNK: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """The states that enter the chunks; in reverse (k is q, v is grad_y), their gradients."""
    head = tl.program_id(0)
    first_k, first_v = tl.program_id(1) * BLOCK_K, tl.program_id(2) * BLOCK_V
    n, h = head // H, head % H
    begin, length = sequence(cu_seqlens, T, n)
    step = tl.arange(0, CHUNK)
    row = first_k + tl.arange(0, BLOCK_K)
    here = head.to(tl.int64) * K * V

    state = tile(initial + here, row, row < K, first_v, V, BLOCK_V, STATE)
    chunks = tl.cdiv(length, CHUNK)
    for i in range(chunks):
        c = chunks - 1 - i if REVERSE else i
        slot = ((begin // CHUNK + n + c) * H + h) * K * V
        write(states + slot, state, row, row < K, first_v, V, BLOCK_V)
        at, count = (begin + c * CHUNK) * H + h, min(length - c * CHUNK, CHUNK)
        decay, whole = decay_entering(log_decay + at, step, count, H, STATE)
        if not REVERSE:
            decay = decay_leaving(log_decay + at, step, count, H, STATE)
        left = tile(k + at * K, step * H, step < count, first_k, K, BLOCK_K, STATE)
        left *= decay[:, None]
        right = tile(v + at * V, step * H, step < count, first_v, V, BLOCK_V, OPERAND)
        state = tl.dot(tl.trans(left.to(OPERAND)), right, state * whole, "ieee")
    write(final + here, state, row, row < K, first_v, V, BLOCK_V)


@triton.jit(do_not_specialize=["T", "chunks"])
def output_kernel(
    q, k, v, log_decay, states, y, chunks, cu_seqlens, T, H,
    K: tl.constexpr, V: tl.constexpr, REVERSE: tl.constexpr, STATE: tl.constexpr,
    OPERAND: tl.constexpr, CHUNK: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """What q reads of the steps up to its own; in reverse, of those from its own on, which is the
    gradient of v where q is k, k is q, v is grad_y, and states are their gradients.
    """
    n, c, h = tl.program_id(0) // chunks, tl.program_id(0) % chunks, tl.program_id(1)
    begin, length = sequence(cu_seqlens, T, n)
    step = tl.arange(0, CHUNK)
    count = min(length - c * CHUNK, CHUNK)
    rows, live = step * H, step < count
    at, slot = (begin + c * CHUNK) * H + h, ((begin // CHUNK + n + c) * H + h) * K * V
    if count > 0:
        scores = tl.zeros([CHUNK, CHUNK], STATE)
        for a in range(0, K, BLOCK_K):
            q_a = tile(q + at * K, rows, live, a, K, BLOCK_K, OPERAND)
            k_a = tile(k + at * K, rows, live, a, K, BLOCK_K, OPERAND)
            scores = tl.dot(q_a, tl.trans(k_a), scores, "ieee")
        between = decay_between(log_decay + at, step, count, H, STATE)
        if REVERSE:
            weights = (scores * tl.trans(between)).to(OPERAND)
            decay = decay_leaving(log_decay + at, step, count, H, STATE)
        else:
            weights = (scores * between).to(OPERAND)
            decay, _ = decay_entering(log_decay + at, step, count, H, STATE)
        for b in range(0, V, BLOCK_V):
            answers = tl.zeros([CHUNK, BLOCK_V], STATE)
            for a in range(0, K, BLOCK_K):
                row = a + tl.arange(0, BLOCK_K)
                q_a = tile(q + at * K, rows, live, a, K, BLOCK_K, OPERAND)
                state = tile(states + slot, row, row < K, b, V, BLOCK_V, OPERAND)
                answers = tl.dot(q_a, state, answers, "ieee")
            v_b = tile(v + at * V, rows, live, b, V, BLOCK_V, OPERAND)
            answers = tl.dot(weights, v_b, answers * decay[:, None], "ieee")
            write(y + at * V, answers, rows, live, b, V, BLOCK_V)


@triton.jit(do_not_specialize=["T", "chunks"])
def gradient_kernel(
    q, k, v, log_decay, grad_y, states, grad_states, grad_q, grad_k, grad_log_decay,
    chunks, cu_seqlens, T, H,
    K: tl.constexpr, V: tl.constexpr, STATE: tl.constexpr, OPERAND: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    n, c, h = tl.program_id(0) // chunks, tl.program_id(0) % chunks, tl.program_id(1)
    begin, length = sequence(cu_seqlens, T, n)
    step = tl.arange(0, CHUNK)
    count = min(length - c * CHUNK, CHUNK)
    rows, live = step * H, step < count
    at, slot = (begin + c * CHUNK) * H + h, ((begin // CHUNK + n + c) * H + h) * K * V
    if count > 0:
        scores = tl.zeros([CHUNK, CHUNK], STATE)
        for a in range(0, K, BLOCK_K):
            q_a = tile(q + at * K, rows, live, a, K, BLOCK_K, OPERAND)
            k_a = tile(k + at * K, rows, live, a, K, BLOCK_K, OPERAND)
            scores = tl.dot(q_a, tl.trans(k_a), scores, "ieee")
        grad_scores = tl.zeros([CHUNK, CHUNK], STATE)
        for b in range(0, V, BLOCK_V):
            grad_b = tile(grad_y + at * V, rows, live, b, V, BLOCK_V, OPERAND)
            v_b = tile(v + at * V, rows, live, b, V, BLOCK_V, OPERAND)
            grad_scores = tl.dot(grad_b, tl.trans(v_b), grad_scores, "ieee")
        grad_scores *= decay_between(log_decay + at, step, count, H, STATE)
        # A pair's sum of log decays holds the steps after s up to t: each gets the pair's gradient.
        later = tl.cumsum(scores * grad_scores, 0, reverse=True)
        grad_decay = tl.sum(tl.where(step[:, None] > step[None, :], later, 0.0), 1)
        grad_scores = grad_scores.to(OPERAND)
        entering, whole = decay_entering(log_decay + at, step, count, H, STATE)
        leaving = decay_leaving(log_decay + at, step, count, H, STATE)

        grad_entering = tl.zeros([CHUNK], STATE)
        grad_leaving = tl.zeros([CHUNK], STATE)
        grad_whole = tl.zeros([BLOCK_K], STATE)
        for a in range(0, K, BLOCK_K):
            row = a + tl.arange(0, BLOCK_K)
            grad_q_a = tl.zeros([CHUNK, BLOCK_K], STATE)
            grad_k_a = tl.zeros([CHUNK, BLOCK_K], STATE)
            for b in range(0, V, BLOCK_V):
                state = tile(states + slot, row, row < K, b, V, BLOCK_V, OPERAND)
                grad_state = tile(grad_states + slot, row, row < K, b, V, BLOCK_V, OPERAND)
                grad_b = tile(grad_y + at * V, rows, live, b, V, BLOCK_V, OPERAND)
                v_b = tile(v + at * V, rows, live, b, V, BLOCK_V, OPERAND)
                grad_q_a = tl.dot(grad_b, tl.trans(state), grad_q_a, "ieee")
                grad_k_a = tl.dot(v_b, tl.trans(grad_state), grad_k_a, "ieee")
                grad_whole += tl.sum(state.to(STATE) * grad_state.to(STATE), 1)
            q_a = tile(q + at * K, rows, live, a, K, BLOCK_K, OPERAND)
            k_a = tile(k + at * K, rows, live, a, K, BLOCK_K, OPERAND)
            grad_q_a *= entering[:, None]
            grad_k_a *= leaving[:, None]
            grad_entering += tl.sum(grad_q_a * q_a.to(STATE), 1)
            grad_leaving += tl.sum(grad_k_a * k_a.to(STATE), 1)
            grad_q_a = tl.dot(grad_scores, k_a, grad_q_a, "ieee")
            grad_k_a = tl.dot(tl.trans(grad_scores), q_a, grad_k_a, "ieee")
            write(grad_q + at * K, grad_q_a, rows, live, a, K, BLOCK_K)
            write(grad_k + at * K, grad_k_a, rows, live, a, K, BLOCK_K)

        grad_decay += tl.cumsum(grad_entering, 0, reverse=True) + whole * tl.sum(grad_whole, 0)
        grad_decay += tl.cumsum(grad_leaving, 0) - grad_leaving
        tl.store(grad_log_decay + at + rows, grad_decay, live)


class _Launch:
    """What the launches of one call share."""

    def __init__(self, q: Tensor, v: Tensor, cu_seqlens: Tensor | None) -> None:
        batch, time, self.H, self.K = q.shape
        self.V = v.shape[-1]
        self.cu_seqlens, self.time, longest, count = cu_seqlens, time, time, batch
        if cu_seqlens is not None:
            longest, count = max(lengths(cu_seqlens, time)), len(cu_seqlens) - 1
        half = q.dtype in (torch.float16, torch.bfloat16)
        # Products in float32 are not for matrix units; larger tiles of it would spill.
        chunk, self.block = (64, 64) if half else (32, 32)
        self.count, self.chunks = count, triton.cdiv(longest, chunk)
        self.slots = batch * time // chunk + count
        self.constants = {
            "K": self.K, "V": self.V, "STATE": accumulator(q), "CHUNK": chunk,
            "OPERAND": operand(q), **OPTIONS,
        }  # fmt: skip

    def blocks(self, most: int) -> dict[str, int]:
        """For K and V: powers of two, at least the 16 that a product needs."""
        block_k, block_v = (
            max(16, min(most, triton.next_power_of_2(width))) for width in (self.K, self.V)
        )
        return {"BLOCK_K": block_k, "BLOCK_V": block_v}

    def states(
        self, k: Tensor, v: Tensor, log_decay: Tensor, initial: Tensor, reverse: bool
    ) -> tuple[Tensor, Tensor]:
        """The states beside the chunks, in the dtype of k, and the one after them all."""
        states = k.new_empty(self.slots, self.H, self.K, self.V)
        final = torch.empty_like(initial, dtype=state_dtype(k))
        blocks = self.blocks(self.block)
        grid = (self.count * self.H, *map(triton.cdiv, (self.K, self.V), blocks.values()))
        states_kernel[grid](
            k, v, log_decay, initial, states, final, self.cu_seqlens, self.time, self.H,
            REVERSE=reverse, num_warps=8, **blocks, **self.constants,
        )  # fmt: skip
        return states, final

    def output(self, *tensors: Tensor, reverse: bool) -> None:
        output_kernel[self.count * self.chunks, self.H](
            *tensors, self.chunks, self.cu_seqlens, self.time, self.H,
            REVERSE=reverse, **self.blocks(self.block), **self.constants,
        )  # fmt: skip

    def gradients(self, *tensors: Tensor) -> None:
        # Beside two matrices of a chunk by a chunk, larger blocks would spill.
        gradient_kernel[self.count * self.chunks, self.H](
            *tensors,
            self.chunks,
            self.cu_seqlens,
            self.time,
            self.H,
            **self.blocks(32),
            **self.constants,
        )


def _operand(x: Tensor) -> Tensor:
    """As the kernels read it. Float16 ends at 65,504, which sums over a sequence may pass."""
    return (x.float() if x.dtype == torch.float16 else x).contiguous()


def forward(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, initial: Tensor, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    dtype = q.dtype
    q, k, v, log_decay, initial = map(_operand, (q, k, v, log_decay, initial))
    launch, y = _Launch(q, v, cu_seqlens), torch.empty_like(v)
    states, final = launch.states(k, v, log_decay, initial, reverse=False)
    launch.output(q, k, v, log_decay, states, y, reverse=False)
    return y.to(dtype), final


def backward(
    grad_y: Tensor,
    grad_final: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    initial: Tensor,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v, log_decay and initial."""
    dtypes = [x.dtype for x in (q, k, v, log_decay, initial)]
    inputs = tuple(map(_operand, (q, k, v, log_decay, grad_y)))
    q, k, v, log_decay, grad_y = inputs
    launch = _Launch(q, v, cu_seqlens)
    states, _ = launch.states(k, v, log_decay, initial.contiguous(), reverse=False)
    grad_final = grad_final.contiguous()
    grad_states, grad_initial = launch.states(q, grad_y, log_decay, grad_final, reverse=True)
    grad_q, grad_k, grad_v, grad_log_decay = (torch.empty_like(x) for x in inputs[:4])
    launch.output(k, q, grad_y, log_decay, grad_states, grad_v, reverse=True)
    launch.gradients(*inputs, states, grad_states, grad_q, grad_k, grad_log_decay)
    found = grad_q, grad_k, grad_v, grad_log_decay, grad_initial
    return tuple(x.to(dtype) for x, dtype in zip(found, dtypes, strict=True))
