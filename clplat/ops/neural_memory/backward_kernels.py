"""The kernels of a linear memory's backward pass; shapes and order as in `forward_kernels.py`.

First the queries' side, which needs no gradient of the weights; then the walk over the chunks in
reverse; then the keys' side. `ends` (chunks + 1, B H, 2, D, D) are the gradients of `starts`.
"""

import triton
import triton.language as tl

from clplat.ops.neural_memory.forward_kernels import anchor_at
from clplat.ops.neural_memory.tiles import (
    curvature,
    first,
    multiply,
    power,
    products,
    retain_backward,
    sign,
    tokens,
)


@triton.jit(do_not_specialize=["T", "count", "front", "chunk"])
def queries_backward_kernel(
    grad_y, q, k, delta, a, b, c, starts, grad_q, grad_delta, grad_a, grad_b, grad_c,
    T, H, D, count, front, chunk,
    MOVING: tl.constexpr, KIND: tl.constexpr, STATE: tl.constexpr, PRECISION: tl.constexpr,
    P: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradients of what `read_kernel` reads, but for keys and starts."""
    rows = tl.num_programs(0) // count
    n = tl.program_id(0) // rows
    row = (tl.program_id(0) % rows).to(tl.int64)
    step = tl.program_id(0).to(tl.int64)
    head = first(row, n, front, chunk, T, H, D)
    places = tl.arange(0, P)
    inside = places < chunk
    square = inside[:, None] & inside[None, :]
    grid = step * chunk * chunk + (places[:, None] * chunk + places[None, :])
    across = tl.arange(0, BLOCK)
    wide, there = tokens(n, front, chunk, T, H, across, D, P)

    scores = products(
        k + head, q + head, n, front, chunk, T, H, D, KIND, STATE, PRECISION, P, BLOCK, COLUMNS
    )
    mixed = scores * tl.trans(tl.load(c + grid, square, 0.0))
    for block in tl.range(0, tl.cdiv(D, COLUMNS), disable_licm=True):
        columns = block * COLUMNS + tl.arange(0, COLUMNS)
        narrow, present = tokens(n, front, chunk, T, H, columns, D, P)
        dy = tl.load(grad_y + head + narrow, present, 0.0).to(STATE)
        pulled = multiply(mixed, dy, KIND, STATE, PRECISION)
        tl.store(grad_delta + head + narrow, pulled, present)

    d_scores = products(
        grad_y + head, delta + head, n, front, chunk, T, H, D, KIND, STATE, PRECISION,
        P, BLOCK, COLUMNS,
    )  # fmt: skip
    tl.store(grad_c + grid, tl.trans(scores) * d_scores, square)
    d_scores *= tl.load(c + grid, square, 0.0)
    of_a = tl.zeros([P], STATE)
    of_b = tl.zeros([P], STATE)
    for block in tl.range(0, tl.cdiv(D, COLUMNS), disable_licm=True):
        columns = block * COLUMNS + tl.arange(0, COLUMNS)
        mask = (columns < D)[:, None] & (across < D)[None, :]
        at = columns[:, None] * D + across[None, :]
        narrow, present = tokens(n, front, chunk, T, H, columns, D, P)
        query = tl.load(q + head + narrow, present, 0.0).to(STATE)
        key = tl.load(k + head + narrow, present, 0.0).to(STATE)
        dy = tl.load(grad_y + head + wide, there, 0.0).to(STATE)
        d_query = multiply(d_scores, key, KIND, STATE, PRECISION)
        A = tl.load(starts + 2 * step * D * D + at, mask, 0.0)
        back = multiply(dy, tl.trans(A), KIND, STATE, PRECISION)
        of_a += tl.sum(query * back, 1)
        d_query += tl.load(a + step * chunk + places, inside, 0.0)[:, None] * back
        if MOVING:
            S = tl.load(starts + (2 * step + 1) * D * D + at, mask, 0.0)
            back = multiply(dy, tl.trans(S), KIND, STATE, PRECISION)
            of_b += tl.sum(query * back, 1)
            d_query += tl.load(b + step * chunk + places, inside, 0.0)[:, None] * back
        tl.store(grad_q + head + narrow, d_query, present)
    tl.store(grad_a + step * chunk + places, of_a, inside)
    if MOVING:
        tl.store(grad_b + step * chunk + places, of_b, inside)


@triton.jit(do_not_specialize=["T", "count", "front", "chunk"])
def walk_backward_kernel(
    grad_y, q, k, v, a, b, c, m, e, anchor, starts, anchors, grad_delta, grad_v, ends, grad_anchor,
    T, H, D, count, front, chunk,
    LOSS: tl.constexpr, LOSS_PARAMETER: tl.constexpr, RETENTION: tl.constexpr, Q: tl.constexpr,
    MOVING: tl.constexpr, KIND: tl.constexpr, STATE: tl.constexpr, PRECISION: tl.constexpr,
    P: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """From ends[chunks] writes the rest; `grad_anchor` comes as the gradient of the final anchor
    and leaves as that of the initial one. `grad_delta` is what the queries' side found, if tokens
    read their own weights.
    """
    row = tl.program_id(0).to(tl.int64)
    rows = tl.num_programs(0).to(tl.int64)
    exact: tl.constexpr = RETENTION == "decay"
    matrix = row * D * D
    places = tl.arange(0, P)
    inside = places < chunk
    across = tl.arange(0, BLOCK)
    blocks = tl.cdiv(D, COLUMNS) if TOGETHER else 1
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (across < D)[:, None] & (columns < D)[None, :]
    at = across[:, None] * D + columns[None, :]
    dA = tl.load(ends + 2 * (count * rows + row) * D * D + at, mask, 0.0)
    dS = tl.load(ends + (2 * (count * rows + row) + 1) * D * D + at, mask, 0.0)
    dM = tl.load(grad_anchor + matrix + at, mask, 0.0)
    for i in tl.range(0, count + 1, disable_licm=True):
        n = count - i
        step = n * rows + row
        after = step + rows
        last = step * chunk + chunk - 1
        head = first(row, n, front, chunk, T, H, D)
        renewed = (n > 0) & (n * chunk <= front + T)
        total = tl.zeros([1], STATE)
        for block in range(blocks):
            if TOGETHER:
                columns = block * COLUMNS + tl.arange(0, COLUMNS)
                mask = (across < D)[:, None] & (columns < D)[None, :]
                at = across[:, None] * D + columns[None, :]
                later = tl.minimum(after, count * rows + row)
                dA = tl.load(ends + 2 * later * D * D + at, mask, 0.0)
                dS = tl.load(ends + (2 * later + 1) * D * D + at, mask, 0.0)
                dM = tl.load(grad_anchor + matrix + at, mask, 0.0)
            if not exact:
                late = first(row, n, front + 1, chunk, T, H, D)
                wide, there = tokens(n, front + 1, chunk, T, H, across, D, P)
                narrow, present = tokens(n, front + 1, chunk, T, H, columns, D, P)
                query = tl.load(q + late + wide, there, 0.0).to(STATE)
                dy = tl.load(grad_y + late + narrow, present, 0.0).to(STATE)
                dM += multiply(tl.trans(query), dy, KIND, STATE, PRECISION)
            if n < count:
                wide, there = tokens(n, front, chunk, T, H, across, D, P)
                narrow, present = tokens(n, front, chunk, T, H, columns, D, P)
                key = tl.load(k + head + wide, there, 0.0).to(STATE)
                weight = tl.load(c + last * chunk + places, inside, 0.0)[:, None]
                d_delta = weight * multiply(key, dA, KIND, STATE, PRECISION)
                before = tl.load(a + last) * dA
                if MOVING:
                    weight = tl.load(m + step * chunk + places, inside, 0.0)[:, None]
                    d_delta += weight * multiply(key, dS, KIND, STATE, PRECISION)
                    dS = tl.load(e + step) * dS + tl.load(b + last) * dA
                dA = before
                if exact:
                    d_delta += tl.load(grad_delta + head + narrow, present, 0.0).to(STATE)
                if LOSS != "l2":
                    source = anchor_at(n, step, matrix, D, anchor, anchors, starts)
                    M = tl.load(source + at, mask, 0.0)
                    value = tl.load(v + head + narrow, present, 0.0).to(STATE)
                    error = multiply(key, M, KIND, STATE, PRECISION) - value
                    d_delta *= curvature(error, LOSS, LOSS_PARAMETER)
                tl.store(grad_v + head + narrow, -d_delta, present)
                # Keys are loaded anew: to hold them, split for tf32x3, would spill.
                key = tl.trans(tl.load(k + head + wide, there, 0.0).to(STATE))
                dM += multiply(key, d_delta, KIND, STATE, PRECISION)
                if exact:
                    query = tl.trans(tl.load(q + head + wide, there, 0.0).to(STATE))
                    dy = tl.load(grad_y + head + narrow, present, 0.0).to(STATE)
                    weight = tl.load(a + step * chunk + places, inside, 0.0)[:, None]
                    dA += multiply(query, weight * dy, KIND, STATE, PRECISION)
                    if MOVING:
                        weight = tl.load(b + step * chunk + places, inside, 0.0)[:, None]
                        dS += multiply(query, weight * dy, KIND, STATE, PRECISION)
            if TOGETHER:
                M = tl.load(anchors + step * D * D + at, mask, 0.0)
                total += tl.sum(tl.sum(M * dM, 1), 0)
                tl.store(grad_anchor + matrix + at, dM, mask)
            elif renewed:
                if exact:
                    dA += dM
                else:
                    M = tl.load(anchors + step * D * D + at, mask, 0.0)
                    dA += retain_backward(M, dM, RETENTION)
                dM = tl.zeros_like(dM)
            tl.store(ends + 2 * step * D * D + at, dA, mask)
            if MOVING:
                tl.store(ends + (2 * step + 1) * D * D + at, dS, mask)
        if TOGETHER:
            tl.debug_barrier()  # what other threads wrote is read
            if renewed:
                norm = tl.zeros([1], STATE)
                for block in range(blocks):
                    columns = block * COLUMNS + tl.arange(0, COLUMNS)
                    mask = (across < D)[:, None] & (columns < D)[None, :]
                    at = across[:, None] * D + columns[None, :]
                    A = tl.load(starts + 2 * step * D * D + at, mask, 0.0)
                    norm += tl.sum(tl.sum(power(tl.abs(A), Q), 1), 0)
                norm = tl.where(norm == 0, 1, norm)
                scale = power(norm, 2 / Q - 1)
                along = total * (2 - Q) / norm
                for block in range(blocks):
                    columns = block * COLUMNS + tl.arange(0, COLUMNS)
                    mask = (across < D)[:, None] & (columns < D)[None, :]
                    at = across[:, None] * D + columns[None, :]
                    A = tl.load(starts + 2 * step * D * D + at, mask, 0.0)
                    dA = tl.load(ends + 2 * step * D * D + at, mask, 0.0)
                    dM = tl.load(grad_anchor + matrix + at, mask, 0.0)
                    dA += scale * dM + along * (sign(A) * power(tl.abs(A), Q - 1))
                    tl.store(ends + 2 * step * D * D + at, dA, mask)
                    tl.store(grad_anchor + matrix + at, tl.zeros_like(dM), mask)
            tl.debug_barrier()
    if not TOGETHER:
        tl.store(grad_anchor + matrix + at, dM, mask)


@triton.jit(do_not_specialize=["T", "count", "front", "chunk"])
def keys_backward_kernel(
    grad_y, q, k, delta, c, m, anchor, starts, anchors, ends, grad_v,
    grad_k, last_a, last_b, last_c, grad_m, grad_e,
    T, H, D, count, front, chunk,
    MOVING: tl.constexpr, KIND: tl.constexpr, STATE: tl.constexpr, PRECISION: tl.constexpr,
    P: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Gradients of keys, and of the coefficients by the weights at the chunk's end: a, b (chunks,
    B H) and c (chunks, B H, chunk) of its last place. The error's gradient is -grad_v.
    """
    rows = tl.num_programs(0) // count
    n = tl.program_id(0) // rows
    row = (tl.program_id(0) % rows).to(tl.int64)
    step = tl.program_id(0).to(tl.int64)
    head = first(row, n, front, chunk, T, H, D)
    start = starts + 2 * step * D * D
    end = ends + 2 * (step + rows) * D * D
    anchored = anchor_at(n, step, row * D * D, D, anchor, anchors, starts)
    places = tl.arange(0, P)
    inside = places < chunk
    across = tl.arange(0, BLOCK)
    wide, there = tokens(n, front, chunk, T, H, across, D, P)
    if EXACT:
        grid = step * chunk * chunk + (places[:, None] * chunk + places[None, :])
        d_scores = products(
            delta + head, grad_y + head, n, front, chunk, T, H, D, KIND, STATE, PRECISION,
            P, BLOCK, COLUMNS,
        )  # fmt: skip
        d_scores *= tl.trans(tl.load(c + grid, inside[:, None] & inside[None, :], 0.0))

    of_c = tl.zeros([P], STATE)
    of_m = tl.zeros([P], STATE)
    for block in tl.range(0, tl.cdiv(D, COLUMNS), disable_licm=True):
        columns = block * COLUMNS + tl.arange(0, COLUMNS)
        mask = (columns < D)[:, None] & (across < D)[None, :]
        at = columns[:, None] * D + across[None, :]
        narrow, present = tokens(n, front, chunk, T, H, columns, D, P)
        key = tl.load(k + head + narrow, present, 0.0).to(STATE)
        M = tl.load(anchored + at, mask, 0.0)
        d_value = tl.load(grad_v + head + wide, there, 0.0).to(STATE)
        d_key = -multiply(d_value, tl.trans(M), KIND, STATE, PRECISION)
        d = tl.load(delta + head + wide, there, 0.0).to(STATE)
        dA = tl.load(end + at, mask, 0.0)
        back = multiply(d, tl.trans(dA), KIND, STATE, PRECISION)
        of_c += tl.sum(key * back, 1)
        line = (step * chunk + chunk - 1) * chunk + places
        d_key += tl.load(c + line, inside, 0.0)[:, None] * back
        if MOVING:
            dS = tl.load(end + D * D + at, mask, 0.0)
            back = multiply(d, tl.trans(dS), KIND, STATE, PRECISION)
            of_m += tl.sum(key * back, 1)
            d_key += tl.load(m + step * chunk + places, inside, 0.0)[:, None] * back
        if EXACT:
            query = tl.load(q + head + narrow, present, 0.0).to(STATE)
            d_key += multiply(d_scores, query, KIND, STATE, PRECISION)
        tl.store(grad_k + head + narrow, d_key, present)
    tl.store(last_c + step * chunk + places, of_c, inside)
    if MOVING:
        tl.store(grad_m + step * chunk + places, of_m, inside)

    of_a = tl.zeros([COLUMNS], STATE)
    of_b = tl.zeros([COLUMNS], STATE)
    of_e = tl.zeros([COLUMNS], STATE)
    for block in tl.range(0, tl.cdiv(D, COLUMNS), disable_licm=True):
        columns = block * COLUMNS + tl.arange(0, COLUMNS)
        mask = (columns < D)[:, None] & (across < D)[None, :]
        at = columns[:, None] * D + across[None, :]
        dA = tl.load(end + at, mask, 0.0)
        of_a += tl.sum(tl.load(start + at, mask, 0.0) * dA, 1)
        if MOVING:
            S = tl.load(start + D * D + at, mask, 0.0)
            of_b += tl.sum(S * dA, 1)
            of_e += tl.sum(S * tl.load(end + D * D + at, mask, 0.0), 1)
    tl.store(last_a + step, tl.sum(of_a, 0))
    if MOVING:
        tl.store(last_b + step, tl.sum(of_b, 0))
        tl.store(grad_e + step, tl.sum(of_e, 0))
