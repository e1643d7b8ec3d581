"""What the kernels share, and those of the kinds with one state: Elman's and leaky ones, and GRU.

One program for 16 sequences and a head: a loop over time that carries the state in registers,
float32 although matrices of half precision are multiplied with its rounding. The head's recurrent
matrices are read once and stay in shared memory. Layout: h (T, B, heads, P), grad_x
(T, B, G, heads, P), gates (T, heads, B, G, P), states (B, S, heads, P); offsets are 64 bits wide.
"""

# The checker takes tl.range for a function that never returns, and a constexpr branch for a branch:

import triton
import triton.language as tl

from clplat.ops.device import tanh


@triton.jit
def place(B, P, SIZE: tl.constexpr, ROWS: tl.constexpr):
    """The program's first sequence and its head, its rows and columns, and their mask.

    The first two, in 64 bits, go into pointers; the others, in 32, take fewer registers.
    """
    first = tl.program_id(0).to(tl.int64) * ROWS
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, SIZE)[None, :]
    return first, tl.program_id(1).to(tl.int64), row, column, (first + row < B) & (column < P)


@triton.jit
def matrix(weight, gate, SIZE: tl.constexpr, OPERAND: tl.constexpr):
    """The recurrent matrix of a gate of this head; `weight` is (heads, G, SIZE, SIZE)."""
    i, j = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    return tl.load(weight + (gate * SIZE + i) * SIZE + j).to(OPERAND)


@triton.jit
def read(pointer, mask, STATE: tl.constexpr):
    return tl.load(pointer, mask, 0.0).to(STATE)


@triton.jit
def earlier(states, at, initial, at_initial, t, stride_t, mask, STATE: tl.constexpr):
    """The state before step t, from all states or, before the first, from the initial one."""
    masked = tl.where(mask, t, -1)
    state = read(states + (t - 1) * stride_t + at, masked > 0, STATE)
    return state + read(initial + at_initial, masked == 0, STATE)


@triton.jit
def product(x, r, PRECISION: tl.constexpr):
    """x r: x rounded to the dtype of r, summed in float32 at least."""
    return tl.dot(x.to(r.dtype), r, input_precision=PRECISION)


@triton.jit(do_not_specialize=["T"])
def elman_forward_kernel(
    x, weight, initial, leak, h, gates, final, T, B, heads, P, stride_xb, stride_xt,
    TANH: tl.constexpr, SLOPE: tl.constexpr, STATE: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    first, head, row, column, mask = place(B, P, SIZE, ROWS)
    H, step, stride_xt = heads * P, tl.cast(B, tl.int64) * heads * P, tl.cast(stride_xt, tl.int64)
    start = first * H + head * P
    at, at_x, at_gates = row * H + column, row * stride_xb + column, row * P + column
    x += first * stride_xb + head * P
    h += start
    gates += (head * B + first) * P
    r = matrix(weight + head * SIZE * SIZE, 0, SIZE, OPERAND)
    if leak is not None:
        rate = read(leak + head * P + column, column < P, STATE)
    before = read(initial + start + at, mask, STATE)
    for t in tl.range(0, T, num_stages=STAGES):
        phi = read(x + t * stride_xt + at_x, mask, STATE)
        phi += product(before, r, PRECISION)
        phi = tanh(phi) if TANH else tl.where(phi < 0, SLOPE * phi if SLOPE != 0 else 0.0, phi)
        if leak is not None:
            tl.store(gates + t * step + at_gates, phi, mask)
            before += rate * (phi - before)
        else:
            before = phi
        tl.store(h + t * step + at, before, mask)
    tl.store(final + start + at, before, mask)


@triton.jit(do_not_specialize=["T"])
def elman_backward_kernel(
    grad_h, grad_final, h, gates, weight, initial, leak, grad_x, grad_initial, grad_leak,
    T, B, heads, P, stride_b, stride_t,
    TANH: tl.constexpr, SLOPE: tl.constexpr, STATE: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    first, head, row, column, mask = place(B, P, SIZE, ROWS)
    H, step, stride_t = heads * P, tl.cast(B, tl.int64) * heads * P, tl.cast(stride_t, tl.int64)
    start = first * H + head * P
    at, at_grad, at_gates = row * H + column, row * stride_b + column, row * P + column
    grad_h += first * stride_b + head * P
    h += start
    grad_x += start
    initial += start
    gates += (head * B + first) * P
    r = matrix(weight + head * SIZE * SIZE, 0, SIZE, OPERAND).T
    if leak is not None:
        rate = read(leak + head * P + column, column < P, STATE)
        total = tl.zeros((ROWS, SIZE), STATE)
    dh = read(grad_final + start + at, mask, STATE)
    for k in tl.range(0, T, num_stages=STAGES):
        t = tl.cast(T - 1 - k, tl.int64)
        dh += read(grad_h + t * stride_t + at_grad, mask, STATE)
        if leak is not None:
            phi = read(gates + t * step + at_gates, mask, STATE)
            total += dh * (phi - earlier(h, at, initial, at, t, step, mask, STATE))
            d = rate * dh
            dh -= d
        else:
            phi = read(h + t * step + at, mask, STATE)
            d = dh
            dh = tl.zeros((ROWS, SIZE), STATE)
        d = d * (1 - phi * phi) if TANH else tl.where(phi > 0, d, SLOPE * d)
        tl.store(grad_x + t * step + at, d, mask)
        dh += product(d, r, PRECISION)
    tl.store(grad_initial + start + at, dh, mask)
    if leak is not None:
        grad_leak += tl.program_id(0) * H + head * P
        tl.store(grad_leak + column, tl.sum(total, 0)[None, :], column < P)


@triton.jit(do_not_specialize=["T"])
def gru_forward_kernel(
    x, weight, initial, bias, h, gates, cells, final,
    T, B, heads, P, stride_xb, stride_xt, stride_xg,
    STATE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    STAGES: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    first, head, row, column, mask = place(B, P, SIZE, ROWS)
    H, step, stride_xt = heads * P, tl.cast(B, tl.int64) * heads * P, tl.cast(stride_xt, tl.int64)
    stride_xg = tl.cast(stride_xg, tl.int64)
    at, at_x, at_state = row * H + column, row * stride_xb + column, row * H + column
    at_gates, at_cells = row * 3 * P + column, row * P + column
    x += first * stride_xb + head * P
    h += first * H + head * P
    gates += (head * B + first) * 3 * P
    cells += (head * B + first) * P
    initial += first * H + head * P
    final += first * H + head * P
    weight += head * 3 * SIZE * SIZE
    r_r = matrix(weight, 0, SIZE, OPERAND)
    r_z = matrix(weight, 1, SIZE, OPERAND)
    r_n = matrix(weight, 2, SIZE, OPERAND)
    offset = (
        tl.zeros((1, SIZE), STATE)
        if bias is None
        else read(bias + head * P + column, column < P, STATE)
    )
    before = read(initial + at_state, mask, STATE)
    for t in tl.range(0, T, num_stages=STAGES):
        of_x = x + t * stride_xt + at_x
        r = tl.sigmoid(read(of_x, mask, STATE) + product(before, r_r, PRECISION))
        z = tl.sigmoid(read(of_x + stride_xg, mask, STATE) + product(before, r_z, PRECISION))
        q = product(before, r_n, PRECISION) + offset
        n = tanh(read(of_x + 2 * stride_xg, mask, STATE) + r * q)
        before = n + z * (before - n)
        of_gates = gates + t * 3 * step + at_gates
        tl.store(of_gates, r, mask)
        tl.store(of_gates + P, z, mask)
        tl.store(of_gates + 2 * P, q, mask)
        tl.store(cells + t * step + at_cells, n, mask)
        tl.store(h + t * step + at, before, mask)
    tl.store(final + at_state, before, mask)


@triton.jit(do_not_specialize=["T"])
def gru_backward_kernel(
    grad_h, grad_final, h, gates, cells, weight, initial, grad_x, grad_initial,
    T, B, heads, P, stride_b, stride_t,
    STATE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    STAGES: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    first, head, row, column, mask = place(B, P, SIZE, ROWS)
    H, step, stride_t = heads * P, tl.cast(B, tl.int64) * heads * P, tl.cast(stride_t, tl.int64)
    at_grad, at_x, at_state = row * stride_b + column, row * 3 * H + column, row * H + column
    at_gates, at_cells = row * 3 * P + column, row * P + column
    grad_h += first * stride_b + head * P
    grad_x += first * 3 * H + head * P
    h += first * H + head * P
    gates += (head * B + first) * 3 * P
    cells += (head * B + first) * P
    initial += first * H + head * P
    grad_final += first * H + head * P
    grad_initial += first * H + head * P
    weight += head * 3 * SIZE * SIZE
    r_r = matrix(weight, 0, SIZE, OPERAND).T
    r_z = matrix(weight, 1, SIZE, OPERAND).T
    r_n = matrix(weight, 2, SIZE, OPERAND).T
    dh = read(grad_final + at_state, mask, STATE)
    for k in tl.range(0, T, num_stages=STAGES):
        t = tl.cast(T - 1 - k, tl.int64)
        of_gates = gates + t * 3 * step + at_gates
        r, z = read(of_gates, mask, STATE), read(of_gates + P, mask, STATE)
        q = read(of_gates + 2 * P, mask, STATE)
        n = read(cells + t * step + at_cells, mask, STATE)
        before = earlier(h, at_state, initial, at_state, t, step, mask, STATE)
        dh += read(grad_h + t * stride_t + at_grad, mask, STATE)
        d_n = dh * (1 - z) * (1 - n * n)
        d_z = dh * (before - n) * z * (1 - z)
        d_r = d_n * q * r * (1 - r)
        of_x = grad_x + t * 3 * step + at_x
        tl.store(of_x, d_r, mask)
        tl.store(of_x + H, d_z, mask)
        tl.store(of_x + 2 * H, d_n, mask)
        dh *= z
        dh += product(d_n * r, r_n, PRECISION)
        dh += product(d_r, r_r, PRECISION)
        dh += product(d_z, r_z, PRECISION)
    tl.store(grad_initial + at_state, dh, mask)
