"""The kernels of a linear memory, x W with W (D, D): the walk over its chunks, and the reading.

The walk takes a head's chunks one after another and does no more than it must; the other kernels
take all chunks at once. The columns of W learn apart from each other, so that a program of the walk
takes a few of them and carries their weights in registers. Only retention "lq" (TOGETHER) needs all
of them, and carries them through memory, since they would not fit.

Shapes: q, k, v, y, delta (B, T, H, D); a, b, m (chunks, B H, chunk); c (chunks, B H, chunk,
chunk); e (chunks, B H). `starts` (chunks + 1, B H, 2, D, D): A and S at every chunk's start, then
at the end (S only with momentum). `anchors` (chunks + 1, B H, D, D) likewise, where tokens read
anchors; else None, and the anchor is the A of its chunk's start, but for the first, which is the
initial state's.
"""

import triton
import triton.language as tl

from clplat.ops.neural_memory.tiles import first, multiply, power, products, retain, slope, tokens


@triton.jit
def anchor_at(n, step, matrix, D, anchor, anchors, starts):
    """Where the weights are that chunk n learns at."""
    if anchors is not None:
        place = anchors + step * D * D
    elif n == 0:
        place = anchor + matrix
    else:
        place = starts + 2 * step * D * D
    return place


@triton.jit(do_not_specialize=["T", "count", "front", "chunk"])
def walk_kernel(
    k, v, a, b, c, m, e, anchor, starts, anchors, delta_out, T, H, D, count, front, chunk,
    LOSS: tl.constexpr, LOSS_PARAMETER: tl.constexpr, RETENTION: tl.constexpr, Q: tl.constexpr,
    MOVING: tl.constexpr, KIND: tl.constexpr, STATE: tl.constexpr, PRECISION: tl.constexpr,
    P: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """From starts[0] (and anchors[0]) writes the rest, and the slopes of the errors, delta."""
    row = tl.program_id(0).to(tl.int64)
    rows = tl.num_programs(0).to(tl.int64)
    places = tl.arange(0, P)
    inside = places < chunk
    across = tl.arange(0, BLOCK)
    blocks = tl.cdiv(D, COLUMNS) if TOGETHER else 1
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (across < D)[:, None] & (columns < D)[None, :]
    at = across[:, None] * D + columns[None, :]
    A = tl.load(starts + 2 * row * D * D + at, mask, 0.0)
    S = tl.load(starts + (2 * row + 1) * D * D + at, mask, 0.0)
    M = tl.load(anchor + row * D * D + at, mask, 0.0)
    for n in tl.range(0, count, disable_licm=True):
        step = n * rows + row
        after = step + rows
        last = step * chunk + chunk - 1
        head = first(row, n, front, chunk, T, H, D)
        wide, there = tokens(n, front, chunk, T, H, across, D, P)
        key = tl.load(k + head + wide, there, 0.0).to(STATE)
        total = tl.zeros([1], STATE)
        for block in range(blocks):
            if TOGETHER:
                columns = block * COLUMNS + tl.arange(0, COLUMNS)
                mask = (across < D)[:, None] & (columns < D)[None, :]
                at = across[:, None] * D + columns[None, :]
                A = tl.load(starts + 2 * step * D * D + at, mask, 0.0)
                S = tl.load(starts + (2 * step + 1) * D * D + at, mask, 0.0)
                M = tl.load(anchors + step * D * D + at, mask, 0.0)
            narrow, present = tokens(n, front, chunk, T, H, columns, D, P)
            value = tl.load(v + head + narrow, present, 0.0).to(STATE)
            delta = slope(multiply(key, M, KIND, STATE, PRECISION) - value, LOSS, LOSS_PARAMETER)
            if delta_out is not None:
                tl.store(delta_out + head + narrow, delta, present)
            share = tl.load(c + last * chunk + places, inside, 0.0)[:, None] * delta
            A *= tl.load(a + last)
            A += multiply(tl.trans(key), share, KIND, STATE, PRECISION)
            if MOVING:
                A += tl.load(b + last) * S
                share = tl.load(m + step * chunk + places, inside, 0.0)[:, None] * delta
                S *= tl.load(e + step)
                S += multiply(tl.trans(key), share, KIND, STATE, PRECISION)
                tl.store(starts + (2 * after + 1) * D * D + at, S, mask)
            tl.store(starts + 2 * after * D * D + at, A, mask)
            total += tl.sum(tl.sum(power(tl.abs(A), Q), 1), 0) if TOGETHER else 0
        whole = (n + 1) * chunk <= front + T
        if TOGETHER:
            tl.debug_barrier()  # what other threads wrote is read
            scale = power(tl.where(total == 0, 1, total), 2 / Q - 1)
            for block in range(blocks):
                columns = block * COLUMNS + tl.arange(0, COLUMNS)
                mask = (across < D)[:, None] & (columns < D)[None, :]
                at = across[:, None] * D + columns[None, :]
                A = tl.load(starts + 2 * after * D * D + at, mask, 0.0)
                M = tl.load(anchors + step * D * D + at, mask, 0.0)
                tl.store(anchors + after * D * D + at, tl.where(whole, A * scale, M), mask)
            tl.debug_barrier()
        elif whole:
            M = retain(A, mask, RETENTION)
        if anchors is not None and not TOGETHER:
            tl.store(anchors + after * D * D + at, M, mask)


@triton.jit(do_not_specialize=["T", "count", "front", "chunk"])
def read_kernel(
    q, k, delta, a, b, c, starts, y, T, H, D, count, front, chunk,
    MOVING: tl.constexpr, KIND: tl.constexpr, STATE: tl.constexpr, PRECISION: tl.constexpr,
    P: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Answers by the weights after each token."""
    rows = tl.num_programs(0) // count
    n = tl.program_id(0) // rows
    row = (tl.program_id(0) % rows).to(tl.int64)
    step = tl.program_id(0).to(tl.int64)
    head = first(row, n, front, chunk, T, H, D)
    places = tl.arange(0, P)
    inside = places < chunk
    across = tl.arange(0, BLOCK)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (across < D)[:, None] & (columns < D)[None, :]
    at = across[:, None] * D + columns[None, :]

    scores = products(
        q + head, k + head, n, front, chunk, T, H, D, KIND, STATE, PRECISION, P, BLOCK, COLUMNS
    )
    grid = step * chunk * chunk + (places[:, None] * chunk + places[None, :])
    scores *= tl.load(c + grid, inside[:, None] & inside[None, :], 0.0)
    narrow, there = tokens(n, front, chunk, T, H, columns, D, P)
    d = tl.load(delta + head + narrow, there, 0.0).to(STATE)
    out = multiply(scores, d, KIND, STATE, PRECISION)

    wide, present = tokens(n, front, chunk, T, H, across, D, P)
    query = tl.load(q + head + wide, present, 0.0).to(STATE)
    A = tl.load(starts + 2 * step * D * D + at, mask, 0.0)
    weight = tl.load(a + step * chunk + places, inside, 0.0)[:, None]
    out += weight * multiply(query, A, KIND, STATE, PRECISION)
    if MOVING:
        S = tl.load(starts + (2 * step + 1) * D * D + at, mask, 0.0)
        weight = tl.load(b + step * chunk + places, inside, 0.0)[:, None]
        out += weight * multiply(query, S, KIND, STATE, PRECISION)
    tl.store(y + head + narrow, out, there)


@triton.jit(do_not_specialize=["T", "count", "front", "chunk"])
def recall_kernel(
    x, anchors, y, T, H, D, count, front, chunk, stride_in, stride_out,
    KIND: tl.constexpr, STATE: tl.constexpr, PRECISION: tl.constexpr,
    P: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Answers by the newest anchor, a place late; with the strides exchanged, their gradients."""
    rows = tl.num_programs(0) // count
    n = tl.program_id(0) // rows
    row = (tl.program_id(0) % rows).to(tl.int64)
    step = tl.program_id(0).to(tl.int64)
    head = first(row, n, front + 1, chunk, T, H, D)
    across = tl.arange(0, BLOCK)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (across < D)[:, None] & (columns < D)[None, :]
    at = across[:, None] * stride_in + columns[None, :] * stride_out

    wide, there = tokens(n, front + 1, chunk, T, H, across, D, P)
    part = tl.load(x + head + wide, there, 0.0).to(STATE)
    M = tl.load(anchors + step * D * D + at, mask, 0.0)
    narrow, there = tokens(n, front + 1, chunk, T, H, columns, D, P)
    tl.store(y + head + narrow, multiply(part, M, KIND, STATE, PRECISION), there)
