"""Newton's method block by block of time: one program a sequence and block of channels.

The state that enters a block is exact, so the iterations of a block see no error of the blocks
before; a block that does not converge is computed step by step. Within a block each iteration is
one scan over the rows of a tile (time, channels). Layout (B, T, D), or (B, T, 3, D) for the gates
of a GRU; offsets are 64 bits wide.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from clplat.ops.device import OPTIONS, accumulator, tanh
from clplat.ops.tier import state_dtype

STEPS = 32  # of a block of time
CHANNELS = 16  # of a program


@triton.jit
def compose(a_first, b_first, a_second, b_second):
    """Of h -> a h + b, the first and then the second."""
    return a_first * a_second, a_second * b_first + b_second


@triton.jit
def shift(tile, first, row):
    """The rows of the tile one further down, `first` on top."""
    above = tl.broadcast_to(tl.maximum(row - 1, 0), tile.shape)
    return tl.where(row == 0, first, tl.gather(tile, above, 0))


@triton.jit
def load_gates(pointer, at, D, mask, KIND: tl.constexpr, STATE: tl.constexpr):
    """Those of r, z and n from the place of r on; an Elman network has n alone."""
    if KIND == "gru":
        r = tl.load(pointer + at, mask, 0.0).to(STATE)
        z = tl.load(pointer + at + D, mask, 0.0).to(STATE)
        n = tl.load(pointer + at + 2 * D, mask, 0.0).to(STATE)
    else:
        n = tl.load(pointer + at, mask, 0.0).to(STATE)
        r, z = n, n
    return r, z, n


@triton.jit
def store_gates(pointer, at, D, r, z, n, mask, KIND: tl.constexpr):
    if KIND == "gru":
        tl.store(pointer + at, r, mask)
        tl.store(pointer + at + D, z, mask)
        tl.store(pointer + at + 2 * D, n, mask)
    else:
        tl.store(pointer + at, n, mask)


@triton.jit
def linearise(h, x_r, x_z, x_n, r_r, r_z, r_n, KIND: tl.constexpr):
    """f(h, x), df/dh, df/dx for each gate, and what the recurrent weight of n multiplies."""
    if KIND == "gru":
        r = tl.sigmoid(x_r + r_r * h)
        z = tl.sigmoid(x_z + r_z * h)
        reset = r * h
        n = tanh(x_n + r_n * reset)
        new = n + z * (h - n)
        by_n = (1 - z) * (1 - n * n)
        by_z = (h - n) * z * (1 - z)
        by_r = by_n * r_n * reset * (1 - r)
        slope = z + by_z * r_z + by_r * r_r + by_n * r_n * r
    else:
        reset = h
        new = tanh(x_n + r_n * h)
        by_n = 1 - new * new
        by_r, by_z = by_n, by_n
        slope = by_n * r_n
    return new, slope, by_r, by_z, by_n, reset


@triton.jit(do_not_specialize=["T", "iterations"])
def forward_kernel(
    x, recurrent, initial, h, final, counts, T, D, iterations, tolerance,
    KIND: tl.constexpr, STATE: tl.constexpr, STEPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    begin = tl.program_id(0).to(tl.int64) * T
    d = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    gates: tl.constexpr = 3 if KIND == "gru" else 1
    at_state = tl.program_id(0).to(tl.int64) * D + d
    counts += (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * tl.cdiv(T, STEPS)
    r_r, r_z, r_n = load_gates(recurrent, d, D, d < D, KIND, STATE)
    row = tl.arange(0, STEPS)[:, None]

    entering = tl.load(initial + at_state, d < D, 0.0).to(STATE)
    for block in range(tl.cdiv(T, STEPS)):
        start = block * STEPS
        mask = (start + row < T) & (d < D)
        at = (begin + start) * D
        x_r, x_z, x_n = load_gates(x + at * gates, row * (D * gates) + d, D, mask, KIND, STATE)
        states = tl.zeros([STEPS, CHANNELS], STATE)
        off = 1
        count = 0
        while (off > 0) & (count < iterations):
            before = shift(states, entering, row)
            new, slope, _, _, _, _ = linearise(before, x_r, x_z, x_n, r_r, r_z, r_n, KIND)
            residual = new - states
            # Beyond a slope of 1 the corrections would grow with every step, and Newton diverge.
            slope = tl.minimum(tl.maximum(slope, -1.0), 1.0)
            _, change = tl.associative_scan((slope, residual), 0, compose)
            states += change
            off = tl.max(tl.where((tl.abs(residual) <= tolerance) | (start + row >= T), 0, 1))
            count += 1
        if off == 0:
            tl.store(h + at + (row * D + d), states, mask)
            last = tl.minimum(T - start, STEPS) - 1
            entering = tl.sum(tl.where(row == last, states, 0.0), 0, keep_dims=True)
        else:
            count = -1
            for t in range(start, tl.minimum(T, start + STEPS)):
                at_t = (begin + t) * D
                now_r, now_z, now_n = load_gates(x, at_t * gates + d, D, d < D, KIND, STATE)
                entering, _, _, _, _, _ = linearise(
                    entering, now_r, now_z, now_n, r_r, r_z, r_n, KIND
                )
                tl.store(h + at_t + d, entering, d < D)
        tl.store(counts + block, count)
    tl.store(final + at_state, entering, d < D)


@triton.jit(do_not_specialize=["T"])
def backward_kernel(
    grad_h, grad_final, x, recurrent, h, initial, grad_x, grad_recurrent, grad_initial, T, D,
    KIND: tl.constexpr, STATE: tl.constexpr, STEPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Tiles run from the last step to the first. With g_t = dL/dh_t, what a step passes back is
    m_t = slope_t g_t = slope_t (grad_h_t + m_{t+1}): a linear scan. The gradient of `recurrent`
    is summed over the sequence here, and over the batch by the caller.
    """
    b = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    gates: tl.constexpr = 3 if KIND == "gru" else 1
    at_state = b * D + d
    r_r, r_z, r_n = load_gates(recurrent, d, D, d < D, KIND, STATE)
    first = tl.load(initial + at_state, d < D, 0.0).to(STATE)
    row = tl.arange(0, STEPS)[:, None]
    sum_r = tl.zeros([1, CHANNELS], STATE)
    sum_z = tl.zeros([1, CHANNELS], STATE)
    sum_n = tl.zeros([1, CHANNELS], STATE)

    passed = tl.load(grad_final + at_state, d < D, 0.0).to(STATE)
    for block in range(tl.cdiv(T, STEPS)):
        start = T - 1 - block * STEPS
        t = start - row
        mask = (t >= 0) & (d < D)
        at = (b * T + start) * D
        within = d - row * D
        within_x = d - row * (D * gates)
        before = tl.load(h + (at - D) + within, mask & (t > 0), 0.0).to(STATE)
        before = tl.where(t == 0, first, before)
        x_r, x_z, x_n = load_gates(x + at * gates, within_x, D, mask, KIND, STATE)
        _, slope, by_r, by_z, by_n, reset = linearise(before, x_r, x_z, x_n, r_r, r_z, r_n, KIND)
        grad = tl.load(grad_h + at + within, mask, 0.0).to(STATE)
        slope = tl.where(mask, slope, 1.0)  # beyond the first step: what was passed stays
        own = tl.where(mask, slope * grad, 0.0)
        own += tl.where(row == 0, slope * passed, 0.0)
        _, back = tl.associative_scan((slope, own), 0, compose)
        grad = tl.where(mask, grad + shift(back, passed, row), 0.0)
        passed = tl.sum(tl.where(row == STEPS - 1, back, 0.0), 0, keep_dims=True)
        by_r, by_z, by_n = by_r * grad, by_z * grad, by_n * grad
        store_gates(grad_x + at * gates, within_x, D, by_r, by_z, by_n, mask, KIND)
        sum_r += tl.sum(by_r * before, 0, keep_dims=True)
        sum_z += tl.sum(by_z * before, 0, keep_dims=True)
        sum_n += tl.sum(by_n * reset, 0, keep_dims=True)
    tl.store(grad_initial + at_state, passed, d < D)
    store_gates(grad_recurrent, b * gates * D + d, D, sum_r, sum_z, sum_n, d < D, KIND)


def _channels(width: int) -> int:
    return min(CHANNELS, triton.next_power_of_2(width))


def solve(
    kind: str, x: Tensor, recurrent: Tensor, initial: Tensor, iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What `forward` returns, and the iterations taken by each block: -1 where it went step by
    step.
    """
    x, recurrent, initial = x.contiguous(), recurrent.contiguous(), initial.contiguous()
    (batch, width), time = initial.shape, x.shape[1]
    h = x.new_empty(batch, time, width)
    final = x.new_empty(batch, width, dtype=state_dtype(x))
    channels = _channels(width)
    grid = batch, triton.cdiv(width, channels)
    counts = x.new_empty(*grid, triton.cdiv(time, STEPS), dtype=torch.int32)
    forward_kernel[grid](
        x, recurrent, initial, h, final, counts, time, width, iterations, tolerance,
        KIND=kind, STATE=accumulator(x), STEPS=STEPS, CHANNELS=channels, num_warps=4, **OPTIONS,
    )  # fmt: skip
    return h, final, counts


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
    """Gradients of x, recurrent and initial."""
    given = [tensor.contiguous() for tensor in (grad_h, grad_final, x, recurrent, h, initial)]
    (batch, width), time = initial.shape, x.shape[1]
    grad_x, grad_initial = x.new_empty(x.shape), initial.new_empty(initial.shape)
    sums = x.new_empty(batch, *recurrent.shape, dtype=state_dtype(x))
    channels = _channels(width)
    backward_kernel[batch, triton.cdiv(width, channels)](
        *given, grad_x, sums, grad_initial, time, width,
        KIND=kind, STATE=accumulator(x), STEPS=STEPS, CHANNELS=channels, num_warps=4, **OPTIONS,
    )  # fmt: skip
    return grad_x, sums.sum(0).to(recurrent.dtype), grad_initial
