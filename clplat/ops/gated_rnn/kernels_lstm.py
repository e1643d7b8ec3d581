"""The kernels of LSTM and sLSTM; see kernels.py."""

import triton
import triton.language as tl

from clplat.ops.device import tanh
from clplat.ops.gated_rnn.kernels import earlier, matrix, place, product, read


@triton.jit(do_not_specialize=["T"])
def lstm_forward_kernel(
    x, weight, initial, h, gates, cells, final, T, B, heads, P, stride_xb, stride_xt, stride_xg,
    STATE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    STAGES: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    first, head, row, column, mask = place(B, P, SIZE, ROWS)
    H, step, stride_xt = heads * P, tl.cast(B, tl.int64) * heads * P, tl.cast(stride_xt, tl.int64)
    stride_xg = tl.cast(stride_xg, tl.int64)
    at, at_x, at_state = row * H + column, row * stride_xb + column, row * 2 * H + column
    at_gates, at_cells = row * 4 * P + column, row * P + column
    x += first * stride_xb + head * P
    h += first * H + head * P
    gates += (head * B + first) * 4 * P
    cells += (head * B + first) * P
    initial += first * 2 * H + head * P
    final += first * 2 * H + head * P
    weight += head * 4 * SIZE * SIZE
    r_i = matrix(weight, 0, SIZE, OPERAND)
    r_f = matrix(weight, 1, SIZE, OPERAND)
    r_g = matrix(weight, 2, SIZE, OPERAND)
    r_o = matrix(weight, 3, SIZE, OPERAND)
    before, c = read(initial + at_state, mask, STATE), read(initial + H + at_state, mask, STATE)
    for t in tl.range(0, T, num_stages=STAGES):
        of_x = x + t * stride_xt + at_x
        i = read(of_x, mask, STATE) + product(before, r_i, PRECISION)
        f = read(of_x + stride_xg, mask, STATE) + product(before, r_f, PRECISION)
        g = read(of_x + 2 * stride_xg, mask, STATE) + product(before, r_g, PRECISION)
        o = read(of_x + 3 * stride_xg, mask, STATE) + product(before, r_o, PRECISION)
        i, f, g, o = tl.sigmoid(i), tl.sigmoid(f), tanh(g), tl.sigmoid(o)
        c = f * c + i * g
        before = o * tanh(c)
        of_gates = gates + t * 4 * step + at_gates
        tl.store(of_gates, i, mask)
        tl.store(of_gates + P, f, mask)
        tl.store(of_gates + 2 * P, g, mask)
        tl.store(of_gates + 3 * P, o, mask)
        tl.store(cells + t * step + at_cells, c, mask)
        tl.store(h + t * step + at, before, mask)
    tl.store(final + at_state, before, mask)
    tl.store(final + H + at_state, c, mask)


@triton.jit(do_not_specialize=["T"])
def lstm_backward_kernel(
    grad_h, grad_final, gates, cells, weight, initial, grad_x, grad_initial,
    T, B, heads, P, stride_b, stride_t,
    STATE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    STAGES: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    first, head, row, column, mask = place(B, P, SIZE, ROWS)
    H, step, stride_t = heads * P, tl.cast(B, tl.int64) * heads * P, tl.cast(stride_t, tl.int64)
    at_grad, at_x, at_state = row * stride_b + column, row * 4 * H + column, row * 2 * H + column
    at_gates, at_cells = row * 4 * P + column, row * P + column
    grad_h += first * stride_b + head * P
    grad_x += first * 4 * H + head * P
    gates += (head * B + first) * 4 * P
    cells += (head * B + first) * P
    initial += first * 2 * H + head * P
    grad_final += first * 2 * H + head * P
    grad_initial += first * 2 * H + head * P
    weight += head * 4 * SIZE * SIZE
    r_i = matrix(weight, 0, SIZE, OPERAND).T
    r_f = matrix(weight, 1, SIZE, OPERAND).T
    r_g = matrix(weight, 2, SIZE, OPERAND).T
    r_o = matrix(weight, 3, SIZE, OPERAND).T
    dh, dc = read(grad_final + at_state, mask, STATE), read(grad_final + H + at_state, mask, STATE)
    for k in tl.range(0, T, num_stages=STAGES):
        t = tl.cast(T - 1 - k, tl.int64)
        of_gates = gates + t * 4 * step + at_gates
        i, f = read(of_gates, mask, STATE), read(of_gates + P, mask, STATE)
        g, o = read(of_gates + 2 * P, mask, STATE), read(of_gates + 3 * P, mask, STATE)
        tanh_c = tanh(read(cells + t * step + at_cells, mask, STATE))
        c_before = earlier(cells, at_cells, initial + H, at_state, t, step, mask, STATE)
        dh += read(grad_h + t * stride_t + at_grad, mask, STATE)
        dc += dh * o * (1 - tanh_c * tanh_c)
        d_i, d_f = dc * g * i * (1 - i), dc * c_before * f * (1 - f)
        d_g, d_o = dc * i * (1 - g * g), dh * tanh_c * o * (1 - o)
        dc *= f
        of_x = grad_x + t * 4 * step + at_x
        tl.store(of_x, d_i, mask)
        tl.store(of_x + H, d_f, mask)
        tl.store(of_x + 2 * H, d_g, mask)
        tl.store(of_x + 3 * H, d_o, mask)
        dh = product(d_i, r_i, PRECISION) + product(d_f, r_f, PRECISION)
        dh += product(d_g, r_g, PRECISION) + product(d_o, r_o, PRECISION)
    tl.store(grad_initial + at_state, dh, mask)
    tl.store(grad_initial + H + at_state, dc, mask)


@triton.jit(do_not_specialize=["T"])
def slstm_forward_kernel(
    x, weight, initial, h, gates, cells, final, T, B, heads, P, stride_xb, stride_xt, stride_xg,
    STATE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    STAGES: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    first, head, row, column, mask = place(B, P, SIZE, ROWS)
    H, step, stride_xt = heads * P, tl.cast(B, tl.int64) * heads * P, tl.cast(stride_xt, tl.int64)
    stride_xg = tl.cast(stride_xg, tl.int64)
    at, at_x, at_state = row * H + column, row * stride_xb + column, row * 4 * H + column
    at_gates, at_cells = row * 4 * P + column, row * 3 * P + column
    x += first * stride_xb + head * P
    h += first * H + head * P
    gates += (head * B + first) * 4 * P
    cells += (head * B + first) * 3 * P
    initial += first * 4 * H + head * P
    final += first * 4 * H + head * P
    weight += head * 4 * SIZE * SIZE
    r_i = matrix(weight, 0, SIZE, OPERAND)
    r_f = matrix(weight, 1, SIZE, OPERAND)
    r_z = matrix(weight, 2, SIZE, OPERAND)
    r_o = matrix(weight, 3, SIZE, OPERAND)
    before, c = read(initial + at_state, mask, STATE), read(initial + H + at_state, mask, STATE)
    n = read(initial + 2 * H + at_state, mask, STATE)
    m = read(initial + 3 * H + at_state, mask, STATE)
    for t in tl.range(0, T, num_stages=STAGES):
        of_x = x + t * stride_xt + at_x
        i = read(of_x, mask, STATE) + product(before, r_i, PRECISION)
        f = read(of_x + stride_xg, mask, STATE) + product(before, r_f, PRECISION)
        z = read(of_x + 2 * stride_xg, mask, STATE) + product(before, r_z, PRECISION)
        o = read(of_x + 3 * stride_xg, mask, STATE) + product(before, r_o, PRECISION)
        slope = tl.sigmoid(-f)  # of log f
        log_f = tl.minimum(f, 0.0) - tl.log(1 + tl.exp(-tl.abs(f)))
        m_before, m = m, tl.maximum(log_f + m, i)
        i, f, z, o = tl.exp(i - m), tl.exp(log_f + m_before - m), tanh(z), tl.sigmoid(o)
        c = f * c + i * z
        n = f * n + i
        before = o * c / n
        of_gates = gates + t * 4 * step + at_gates
        tl.store(of_gates, i, mask)
        tl.store(of_gates + P, f, mask)
        tl.store(of_gates + 2 * P, z, mask)
        tl.store(of_gates + 3 * P, o, mask)
        of_cells = cells + t * 3 * step + at_cells
        tl.store(of_cells, c, mask)
        tl.store(of_cells + P, n, mask)
        tl.store(of_cells + 2 * P, slope, mask)
        tl.store(h + t * step + at, before, mask)
    tl.store(final + at_state, before, mask)
    tl.store(final + H + at_state, c, mask)
    tl.store(final + 2 * H + at_state, n, mask)
    tl.store(final + 3 * H + at_state, m, mask)


@triton.jit(do_not_specialize=["T"])
def slstm_backward_kernel(
    grad_h, grad_final, gates, cells, weight, initial, grad_x, grad_initial,
    T, B, heads, P, stride_b, stride_t,
    STATE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    STAGES: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    first, head, row, column, mask = place(B, P, SIZE, ROWS)
    H, step, stride_t = heads * P, tl.cast(B, tl.int64) * heads * P, tl.cast(stride_t, tl.int64)
    at_grad, at_x, at_state = row * stride_b + column, row * 4 * H + column, row * 4 * H + column
    at_gates, at_cells = row * 4 * P + column, row * 3 * P + column
    grad_h += first * stride_b + head * P
    grad_x += first * 4 * H + head * P
    gates += (head * B + first) * 4 * P
    cells += (head * B + first) * 3 * P
    initial += first * 4 * H + head * P
    grad_final += first * 4 * H + head * P
    grad_initial += first * 4 * H + head * P
    weight += head * 4 * SIZE * SIZE
    r_i = matrix(weight, 0, SIZE, OPERAND).T
    r_f = matrix(weight, 1, SIZE, OPERAND).T
    r_z = matrix(weight, 2, SIZE, OPERAND).T
    r_o = matrix(weight, 3, SIZE, OPERAND).T
    dh, dc = read(grad_final + at_state, mask, STATE), read(grad_final + H + at_state, mask, STATE)
    dn = read(grad_final + 2 * H + at_state, mask, STATE)
    for k in tl.range(0, T, num_stages=STAGES):
        t = tl.cast(T - 1 - k, tl.int64)
        of_gates, of_cells = gates + t * 4 * step + at_gates, cells + t * 3 * step + at_cells
        of_x = grad_x + t * 4 * step + at_x
        dh += read(grad_h + t * stride_t + at_grad, mask, STATE)
        # A gate after another: all at once would not fit the registers.
        o, n = read(of_gates + 3 * P, mask, STATE), tl.load(of_cells + P, mask, 1.0).to(STATE)
        mean = read(of_cells, mask, STATE) / n
        d_o = dh * mean * o * (1 - o)
        tl.store(of_x + 3 * H, d_o, mask)
        dc += dh * o / n
        dn -= dh * o / n * mean
        i, z = read(of_gates, mask, STATE), read(of_gates + 2 * P, mask, STATE)
        d_i, d_z = (dc * z + dn) * i, dc * i * (1 - z * z)
        tl.store(of_x, d_i, mask)
        tl.store(of_x + 2 * H, d_z, mask)
        c_before = earlier(cells, at_cells, initial + H, at_state, t, 3 * step, mask, STATE)
        n_before = earlier(cells + P, at_cells, initial + 2 * H, at_state, t, 3 * step, mask, STATE)
        d_f = (dc * c_before + dn * n_before) * read(of_cells + 2 * P, mask, STATE)
        f = read(of_gates + P, mask, STATE)
        d_f *= f
        tl.store(of_x + H, d_f, mask)
        dc *= f
        dn *= f
        dh = product(d_i, r_i, PRECISION) + product(d_f, r_f, PRECISION)
        dh += product(d_z, r_z, PRECISION) + product(d_o, r_o, PRECISION)
    tl.store(grad_initial + at_state, dh, mask)
    tl.store(grad_initial + H + at_state, dc, mask)
    tl.store(grad_initial + 2 * H + at_state, dn, mask)
    tl.store(grad_initial + 3 * H + at_state, tl.zeros_like(dn), mask)
