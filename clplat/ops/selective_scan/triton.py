"""One program a sequence and block of channels; the state (BLOCK_E, BLOCK_N) stays in registers.

Steps go in groups, whose inputs are loaded together so that their latencies overlap. The forward
pass keeps the state before every chunk. The backward pass takes the chunks from the last: it runs
through one, noting the state before each group in a scratch buffer, then takes the groups from
the last: their states once more, now kept in registers, and back over them. B and C are shared by
all channels, A and D by all sequences: each program writes its part of their gradients.

Offsets are 64 bits wide. A step past the end has dt = 0 and grad_y = 0, and so changes nothing.
"""

import triton
import triton.language as tl
from torch import Tensor

from clplat.ops.device import OPTIONS, accumulator, sequence
from clplat.ops.packed import lengths
from clplat.ops.selective_scan.chunks import CHUNK, count_rows
from clplat.ops.tier import state_dtype

GROUP = 4  # steps whose states the backward pass holds in registers
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def inside(row, end, column, width):
    """Which columns there are: none of a row past the end."""
    return column < tl.where(row < end, width, 0)


@triton.jit
def load_group(matrix, first, end, column, width, STATE: tl.constexpr, GROUP: tl.constexpr):
    """A tuple of GROUP rows of a matrix from row `first` on, zero from row `end` on."""
    rows = ()
    for j in tl.static_range(GROUP):
        at = matrix + (first + j) * width + column
        mask = inside(first + j, end, column, width)
        rows += (tl.load(at, mask, 0.0).to(STATE),)
    return rows


@triton.jit
def decay_of(dt, rate, NEGATIVE: tl.constexpr):
    """exp(dt A), where rate = A log2(e); the GPU's exponential is that of base 2."""
    decay = tl.exp2(dt[:, None] * rate)
    return 2 * decay - 1 if NEGATIVE else decay


@triton.jit
def input_of(x, dt, B):
    return (dt * x)[:, None] * B


@triton.jit(do_not_specialize=["T"])
def forward_kernel(
    x, dt, A, B, C, D, initial, y, final, starts, cu_seqlens, T, E, N,
    NEGATIVE: tl.constexpr, STATE: tl.constexpr, CHUNK: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0)
    e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    s = tl.arange(0, BLOCK_N)
    in_e, in_s = e < E, s < N
    tile, in_tile = e[:, None] * N + s, in_e[:, None] & in_s
    begin, length = sequence(cu_seqlens, T, n)
    end = begin + length
    state = n.to(tl.int64) * E * N + tile
    start = (begin // CHUNK + n).to(tl.int64) * E * N + tile

    rate = tl.load(A + tile, in_tile, 0.0).to(STATE) * LOG2_E
    skip = tl.load(D + e, in_e, 0.0).to(STATE)
    h = tl.load(initial + state, in_tile, 0.0).to(STATE)
    for step in range(0, length, GROUP):
        first = begin + step
        if step % CHUNK == 0:
            tl.store(starts + start, h, in_tile)
            start += E * N
        x_group = load_group(x, first, end, e, E, STATE, GROUP)
        dt_group = load_group(dt, first, end, e, E, STATE, GROUP)
        B_group = load_group(B, first, end, s, N, STATE, GROUP)
        C_group = load_group(C, first, end, s, N, STATE, GROUP)
        for j in tl.static_range(GROUP):
            decay = decay_of(dt_group[j], rate, NEGATIVE)
            h = decay * h + input_of(x_group[j], dt_group[j], B_group[j])
            read = tl.sum(h * C_group[j], 1) + skip * x_group[j]
            tl.store(y + (first + j) * E + e, read, inside(first + j, end, e, E))
    tl.store(final + state, h, in_tile)


@triton.jit(do_not_specialize=["T"])
def backward_kernel(
    grad_y, grad_final, x, dt, A, B, C, D, starts,
    grad_x, grad_dt, grad_A, grad_B, grad_C, grad_D, grad_initial, scratch,
    cu_seqlens, T, E, N,
    NEGATIVE: tl.constexpr, STATE: tl.constexpr, CHUNK: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Carries g = dL/dh_t back over the steps; adds up the gradients of A and D on the way."""
    n = tl.program_id(0)
    block, blocks = tl.program_id(1), tl.num_programs(1)
    e = block * BLOCK_E + tl.arange(0, BLOCK_E)
    s = tl.arange(0, BLOCK_N)
    in_e, in_s = e < E, s < N
    tile, in_tile = e[:, None] * N + s, in_e[:, None] & in_s
    begin, length = sequence(cu_seqlens, T, n)
    end = begin + length
    state = n.to(tl.int64) * E * N + tile
    start = (begin // CHUNK + n).to(tl.int64) * E * N + tile

    size: tl.constexpr = BLOCK_E * BLOCK_N
    slots: tl.constexpr = CHUNK // GROUP
    slot = tl.arange(0, BLOCK_E)[:, None] * BLOCK_N + s
    scratch += (n.to(tl.int64) * blocks + block) * slots * size

    rate = tl.load(A + tile, in_tile, 0.0).to(STATE) * LOG2_E
    skip = tl.load(D + e, in_e, 0.0).to(STATE)
    g = tl.load(grad_final + state, in_tile, 0.0).to(STATE)
    sum_A = tl.zeros_like(g)
    sum_D = tl.zeros_like(skip)
    for back in range(tl.cdiv(length, CHUNK)):
        chunk = tl.cdiv(length, CHUNK) - 1 - back
        groups = tl.cdiv(min(length - chunk * CHUNK, CHUNK), GROUP)
        h = tl.load(starts + start + chunk.to(tl.int64) * E * N, in_tile, 0.0)
        tl.debug_barrier()  # the chunk before has been read
        for group in range(groups):
            tl.store(scratch + group * size + slot, h)
            first = begin + chunk * CHUNK + group * GROUP
            x_group = load_group(x, first, end, e, E, STATE, GROUP)
            dt_group = load_group(dt, first, end, e, E, STATE, GROUP)
            B_group = load_group(B, first, end, s, N, STATE, GROUP)
            for j in tl.static_range(GROUP):
                decay = decay_of(dt_group[j], rate, NEGATIVE)
                h = decay * h + input_of(x_group[j], dt_group[j], B_group[j])
        tl.debug_barrier()  # this one has been written
        for group_back in range(groups):
            group = groups - 1 - group_back
            first = begin + chunk * CHUNK + group * GROUP
            x_group = load_group(x, first, end, e, E, STATE, GROUP)
            dt_group = load_group(dt, first, end, e, E, STATE, GROUP)
            dy_group = load_group(grad_y, first, end, e, E, STATE, GROUP)
            B_group = load_group(B, first, end, s, N, STATE, GROUP)
            C_group = load_group(C, first, end, s, N, STATE, GROUP)
            h = tl.load(scratch + group * size + slot)
            states, decays = (h,), ()
            for j in tl.static_range(GROUP):
                decays += (decay_of(dt_group[j], rate, NEGATIVE),)
                h = decays[j] * h + input_of(x_group[j], dt_group[j], B_group[j])
                states += (h,)
            for j in tl.static_range(GROUP - 1, -1, -1):
                t = first + j
                x_t, dt_t, dy = x_group[j], dt_group[j], dy_group[j]
                g += dy[:, None] * C_group[j]
                part = (t * blocks + block) * N + s
                in_part = inside(t, end, s, N)
                grad_C_t = tl.sum(dy[:, None] * states[j + 1], 0)
                grad_B_t = tl.sum((dt_t * x_t)[:, None] * g, 0)
                tl.store(grad_C + part, grad_C_t, in_part)
                tl.store(grad_B + part, grad_B_t, in_part)

                grad_input = tl.sum(g * B_group[j], 1)
                # exp(dt A) is decay, or half of decay + 1, of which decay has twice the gradient.
                slope = decays[j] + 1 if NEGATIVE else decays[j]
                grad_log = g * states[j] * slope
                sum_A += grad_log * dt_t[:, None]
                sum_D += dy * x_t
                grad_dt_t = tl.sum(grad_log * rate, 1) / LOG2_E + grad_input * x_t
                at, in_row = t * E + e, inside(t, end, e, E)
                tl.store(grad_dt + at, grad_dt_t, in_row)
                tl.store(grad_x + at, grad_input * dt_t + skip * dy, in_row)
                g *= decays[j]
    tl.store(grad_initial + state, g, in_tile)
    tl.store(grad_A + state, sum_A, in_tile)
    tl.store(grad_D + n.to(tl.int64) * E + e, sum_D, in_e)


def _blocks(A: Tensor) -> tuple[int, int]:
    """Channels and width of a program's state; eight numbers a thread, at most eight warps."""
    width = triton.next_power_of_2(A.shape[1])
    return max(1, min(16, 2048 // width)), width


def _launch(kernel, tensors: list[Tensor], x: Tensor, A: Tensor, negative, cu_seqlens) -> None:
    batch, time, channels = x.shape
    if cu_seqlens is not None:
        lengths(cu_seqlens, time)
        batch = len(cu_seqlens) - 1
    block_e, block_n = _blocks(A)
    kernel[batch, triton.cdiv(channels, block_e)](
        *tensors, cu_seqlens, time, *A.shape,
        NEGATIVE=negative, STATE=accumulator(x), CHUNK=CHUNK, GROUP=GROUP,
        BLOCK_E=block_e, BLOCK_N=block_n, num_warps=max(1, block_e * block_n // 256), **OPTIONS,
    )  # fmt: skip


def forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    initial: Tensor,
    negative_eigenvalues: bool,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the final state and the states at the chunks' starts."""
    inputs = [tensor.contiguous() for tensor in (x, dt, A, B, C, D, initial)]
    y = x.new_empty(x.shape)
    final = initial.new_empty(initial.shape, dtype=state_dtype(x))
    starts = final.new_empty(count_rows(x.shape[0] * x.shape[1], len(initial)), *A.shape)
    tensors = [*inputs, y, final, starts]
    _launch(forward_kernel, tensors, x, A, negative_eigenvalues, cu_seqlens)
    return y, final, starts


def backward(
    grad_y: Tensor,
    grad_final: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    starts: Tensor,
    negative_eigenvalues: bool,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, A, B, C, D and initial."""
    inputs = [t.contiguous() for t in (grad_y, grad_final, x, dt, A, B, C, D, starts)]
    block_e, block_n = _blocks(A)
    rows, blocks = len(grad_final), triton.cdiv(x.shape[2], block_e)
    grad_x, grad_dt = x.new_empty(x.shape), dt.new_empty(dt.shape)
    grad_A, grad_D = starts.new_empty(rows, *A.shape), starts.new_empty(rows, *D.shape)
    grad_B, grad_C = (starts.new_empty(*x.shape[:2], blocks, A.shape[1]) for _ in "BC")
    grad_initial = grad_final.new_empty(grad_final.shape)
    scratch = starts.new_empty(rows, blocks, CHUNK // GROUP, block_e, block_n)
    outputs = [grad_x, grad_dt, grad_A, grad_B, grad_C, grad_D, grad_initial, scratch]
    _launch(backward_kernel, [*inputs, *outputs], x, A, negative_eigenvalues, cu_seqlens)
    return (
        grad_x,
        grad_dt,
        grad_A.sum(0).to(A.dtype),
        grad_B.sum(2).to(B.dtype),
        grad_C.sum(2).to(C.dtype),
        grad_D.sum(0).to(D.dtype),
        grad_initial,
    )
