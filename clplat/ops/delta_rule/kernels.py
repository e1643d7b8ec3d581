"""The four kernels. One program a sequence, chunk and head, sequences and chunks along the grid's
first axis, which alone holds more than 65,535; of the two that carry the state or its
gradient, a sequence, head and block of the state's columns.

Layout (B, T, H, width): a row is a token and head. Chunks begin where a sequence does; what is kept
a chunk lies in its `slot`.
"""

import triton
import triton.language as tl

from clplat.ops.delta_rule.tiles import (
    chunk_rows,
    dots_of_keys,
    invert,
    load_rows,
    product,
    slot,
    state_place,
    steps_between,
    store_rows,
)
from clplat.ops.device import sequence


@triton.jit(do_not_specialize=["T", "chunks"])
def chunk_kernel(
    q, k, beta, log_decay, mix, write, inverse, chunks, cu_seqlens, T, H, K, V,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PART: tl.constexpr,
    STATE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of a chunk: `mix` and `write`, see `cpu.py`, and (I + A)^-1 where asked for."""
    n, chunk, h = tl.program_id(0) // chunks, tl.program_id(0) % chunks, tl.program_id(1)
    begin, length = sequence(cu_seqlens, T, n)
    if chunk * C < length:
        rows, exists = chunk_rows(begin, length, chunk, h, H, C)
        rate = tl.load(beta + rows, exists, 0.0).to(STATE)
        steps = steps_between(tl.load(log_decay + rows, exists, 0.0).to(STATE), C)
        between = tl.exp(tl.cumsum(steps, 0))
        leave = tl.exp(tl.sum(steps, 0))[:, None]
        i, j = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
        qk, kk = dots_of_keys(q, k, rows, exists, K, C, PART, STATE, OPERAND, PRECISION)

        strict = tl.where(i > j, rate[:, None] * between * kk, 0.0)
        inverted = invert(strict, C, STATE, PRECISION)
        read = tl.where(i >= j, between * qk, 0.0)
        mixed = product(read, inverted, OPERAND, PRECISION)
        store_rows(mix, mixed, rows, exists, 0, C, C)
        if inverse is not None:
            store_rows(inverse, inverted, rows, exists, 0, C, C)
        for first in range(0, K, PART):
            left = leave * load_rows(k, rows, exists, first, K, PART, OPERAND)
            written = product(tl.trans(inverted), left, OPERAND, PRECISION)
            store_rows(write, written, rows, exists, first, K, PART)


@triton.jit(do_not_specialize=["T"])
def forward_kernel(
    q, k, v, beta, log_decay, initial, mix, write, y, final, z, states, cu_seqlens, T, H, K, V,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PART: tl.constexpr,
    STATE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes y and the final state; or, where y is None, z and the states before each chunk."""
    n, h, first = tl.program_id(0) // H, tl.program_id(0) % H, tl.program_id(1) * BV
    begin, length = sequence(cu_seqlens, T, n)
    at, inside = state_place(tl.program_id(0).to(tl.int64), 0, first, K, V, BK, BV)
    S = tl.load(initial + at, inside, 0.0).to(STATE)
    for chunk in range(tl.cdiv(length, C)):
        rows, exists = chunk_rows(begin, length, chunk, h, H, C)
        k_tile = load_rows(k, rows, exists, 0, K, BK, OPERAND)
        v_tile = load_rows(v, rows, exists, first, V, BV, OPERAND)
        written = load_rows(write, rows, exists, 0, K, BK, OPERAND)
        rate = tl.load(beta + rows, exists, 0.0).to(STATE)
        g = tl.load(log_decay + rows, exists, 0.0).to(STATE)
        enter = tl.exp(tl.cumsum(g, 0))[:, None]
        z_tile = rate[:, None] * (v_tile - enter * product(k_tile, S, OPERAND, PRECISION))
        if y is not None:
            q_tile = load_rows(q, rows, exists, 0, K, BK, OPERAND)
            mixed = load_rows(mix, rows, exists, 0, C, C, OPERAND)
            y_tile = enter * product(q_tile, S, OPERAND, PRECISION)
            y_tile += product(mixed, z_tile, OPERAND, PRECISION)
            store_rows(y, y_tile, rows, exists, first, V, BV)
        else:
            store_rows(z, z_tile, rows, exists, first, V, BV)
            kept, _ = state_place(slot(begin, n, chunk, C) * H + h, 0, first, K, V, BK, BV)
            tl.store(states + kept, S, inside)
        S = tl.exp(tl.sum(g, 0)) * S + product(tl.trans(written), z_tile, OPERAND, PRECISION)
    if y is not None:
        tl.store(final + at, S, inside)


@triton.jit(do_not_specialize=["T"])
def reverse_kernel(
    grad_y, grad_final, q, k, beta, log_decay, mix, write, grad_z, grad_states, grad_initial,
    cu_seqlens, T, H, K, V,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PART: tl.constexpr,
    STATE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes the gradients of z, of the state after each chunk, and of the initial state."""
    n, h, first = tl.program_id(0) // H, tl.program_id(0) % H, tl.program_id(1) * BV
    begin, length = sequence(cu_seqlens, T, n)
    at, inside = state_place(tl.program_id(0).to(tl.int64), 0, first, K, V, BK, BV)
    grad_S = tl.load(grad_final + at, inside, 0.0).to(STATE)
    count = tl.cdiv(length, C)
    for index in range(count):
        chunk = count - 1 - index
        rows, exists = chunk_rows(begin, length, chunk, h, H, C)
        kept, _ = state_place(slot(begin, n, chunk, C) * H + h, 0, first, K, V, BK, BV)
        tl.store(grad_states + kept, grad_S, inside)
        q_tile = load_rows(q, rows, exists, 0, K, BK, OPERAND)
        k_tile = load_rows(k, rows, exists, 0, K, BK, OPERAND)
        mixed = load_rows(mix, rows, exists, 0, C, C, OPERAND)
        written = load_rows(write, rows, exists, 0, K, BK, OPERAND)
        grad_y_tile = load_rows(grad_y, rows, exists, first, V, BV, OPERAND)
        rate = tl.load(beta + rows, exists, 0.0).to(STATE)
        g = tl.load(log_decay + rows, exists, 0.0).to(STATE)
        enter = tl.exp(tl.cumsum(g, 0))
        grad_z_tile = product(tl.trans(mixed), grad_y_tile, OPERAND, PRECISION)
        grad_z_tile += product(written, grad_S, OPERAND, PRECISION)
        store_rows(grad_z, grad_z_tile, rows, exists, first, V, BV)
        grad_S *= tl.exp(tl.sum(g, 0))
        grad_S += product(tl.trans(q_tile), enter[:, None] * grad_y_tile, OPERAND, PRECISION)
        grad_S -= product(
            tl.trans(k_tile), (rate * enter)[:, None] * grad_z_tile, OPERAND, PRECISION
        )
    tl.store(grad_initial + at, grad_S, inside)


@triton.jit(do_not_specialize=["T", "chunks"])
def gradient_kernel(
    grad_y, q, k, v, beta, log_decay, inverse, z, grad_z, states, grad_states,
    grad_q, grad_k, grad_v, grad_beta, grad_log_decay, chunks, cu_seqlens, T, H, K, V,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PART: tl.constexpr,
    STATE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a chunk's inputs; see `dense_backward` in `cpu.py`."""
    n, chunk, h = tl.program_id(0) // chunks, tl.program_id(0) % chunks, tl.program_id(1)
    begin, length = sequence(cu_seqlens, T, n)
    if chunk * C < length:
        rows, exists = chunk_rows(begin, length, chunk, h, H, C)
        kept = slot(begin, n, chunk, C) * H + h
        inverted = load_rows(inverse, rows, exists, 0, C, C, OPERAND)
        rate = tl.load(beta + rows, exists, 0.0).to(STATE)
        g = tl.load(log_decay + rows, exists, 0.0).to(STATE)
        steps = steps_between(g, C)
        between = tl.exp(tl.cumsum(steps, 0))
        enter = tl.exp(tl.cumsum(g, 0))
        leave = tl.exp(tl.sum(steps, 0))
        i, j = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]

        read = tl.zeros([C, C], STATE)
        strict = tl.zeros([C, C], STATE)
        dbeta = tl.zeros([C], STATE)
        for column in range(0, V, BV):
            grad_y_tile = load_rows(grad_y, rows, exists, column, V, BV, OPERAND)
            grad_z_tile = load_rows(grad_z, rows, exists, column, V, BV, OPERAND)
            z_tile = load_rows(z, rows, exists, column, V, BV, OPERAND)
            v_tile = load_rows(v, rows, exists, column, V, BV, STATE)
            u = tl.trans(product(inverted, z_tile, OPERAND, PRECISION))
            read += product(grad_y_tile, u, OPERAND, PRECISION)
            strict -= product(grad_z_tile, u, OPERAND, PRECISION)
            dbeta += tl.sum(grad_z_tile * v_tile, 1)
            store_rows(grad_v, rate[:, None] * grad_z_tile, rows, exists, column, V, BV)

        qk, kk = dots_of_keys(q, k, rows, exists, K, C, PART, STATE, OPERAND, PRECISION)
        read = tl.where(i >= j, read * between, 0.0)
        strict = tl.where(i > j, strict * between, 0.0)
        dbeta += tl.sum(strict * kk, 1)
        strict *= rate[:, None]
        # log_decay l is part of the sum from j to i for j < l <= i; of that from the start to i
        # for i >= l; of that from j to the end for j < l; and of that over the chunk.
        later = tl.cumsum(read * qk + strict * kk, 0, reverse=True)
        dg = tl.sum(tl.where(i > j, later, 0.0), 1)
        strict += tl.trans(strict)

        entering = tl.zeros([C], STATE)
        leaving = tl.zeros([C], STATE)
        across = tl.zeros([PART], STATE)
        for first in range(0, K, PART):
            dq = tl.zeros([C, PART], STATE)
            dk = tl.zeros([C, PART], STATE)
            erase = tl.zeros([C, PART], STATE)
            for column in range(0, V, BV):
                at, inside = state_place(kept, first, column, K, V, PART, BV)
                S = tl.load(states + at, inside, 0.0).to(OPERAND)
                grad_S = tl.load(grad_states + at, inside, 0.0).to(OPERAND)
                grad_y_tile = load_rows(grad_y, rows, exists, column, V, BV, OPERAND)
                grad_z_tile = load_rows(grad_z, rows, exists, column, V, BV, OPERAND)
                z_tile = load_rows(z, rows, exists, column, V, BV, OPERAND)
                u = product(inverted, z_tile, OPERAND, PRECISION)
                dq += product(grad_y_tile, tl.trans(S), OPERAND, PRECISION)
                erase += product(grad_z_tile, tl.trans(S), OPERAND, PRECISION)
                dk += product(u, tl.trans(grad_S), OPERAND, PRECISION)
                across += tl.sum(S.to(STATE) * grad_S.to(STATE), 1)
            q_tile = load_rows(q, rows, exists, first, K, PART, OPERAND)
            k_tile = load_rows(k, rows, exists, first, K, PART, OPERAND)
            dq *= enter[:, None]
            dk *= leave[:, None]
            erase *= enter[:, None]
            erased = tl.sum(erase * k_tile, 1)
            dbeta -= erased
            entering += tl.sum(dq * q_tile, 1) - rate * erased
            leaving += tl.sum(dk * k_tile, 1)
            dq += product(read, k_tile, OPERAND, PRECISION)
            store_rows(grad_q, dq, rows, exists, first, K, PART)
            dk += product(tl.trans(read), q_tile, OPERAND, PRECISION)
            dk += product(strict, k_tile, OPERAND, PRECISION) - rate[:, None] * erase
            store_rows(grad_k, dk, rows, exists, first, K, PART)

        tl.store(grad_beta + rows, dbeta, exists)
        dg += tl.cumsum(entering, 0, reverse=True)
        dg += tl.cumsum(leaving, 0) - leaving
        dg += tl.sum(across, 0) * tl.exp(tl.sum(g, 0))
        tl.store(grad_log_decay + rows, dg, exists)
