"""What the kernels do with tiles: products, rows and states in memory, and a triangle's inverse."""

import triton
import triton.language as tl


@triton.jit
def product(a, b, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """Matrix product of operands rounded to OPERAND, summed in float32 at least."""
    return tl.dot(
        a.to(OPERAND),
        b.to(OPERAND),
        input_precision=PRECISION,
        out_dtype=tl.float64 if tl.float64 == OPERAND else tl.float32,
    )


@triton.jit
def chunk_rows(begin, length, chunk, h, H, C: tl.constexpr):
    """A chunk's rows, and which of them are tokens of the sequence."""
    t = chunk * C + tl.arange(0, C)
    return (begin + t) * H + h, t < length


@triton.jit
def load_rows(pointer, rows, exists, first, WIDTH, BLOCK: tl.constexpr, OPERAND: tl.constexpr):
    """(C, BLOCK): the columns from `first`."""
    column = first + tl.arange(0, BLOCK)
    at = rows[:, None] * WIDTH + column[None, :]
    return tl.load(pointer + at, exists[:, None] & (column < WIDTH)[None, :], 0.0).to(OPERAND)


@triton.jit
def store_rows(pointer, value, rows, exists, first, WIDTH, BLOCK: tl.constexpr):
    column = first + tl.arange(0, BLOCK)
    at = rows[:, None] * WIDTH + column[None, :]
    tl.store(pointer + at, value, exists[:, None] & (column < WIDTH)[None, :])


@triton.jit
def state_place(place, row, column, K, V, BK: tl.constexpr, BV: tl.constexpr):
    """Offsets and mask of a part (BK, BV) of the state at `place`."""
    i, j = row + tl.arange(0, BK), column + tl.arange(0, BV)
    at = (place * K + i[:, None]) * V + j[None, :]
    return at, (i < K)[:, None] & (j < V)[None, :]


@triton.jit
def slot(begin, n, chunk, C: tl.constexpr):
    """Where a chunk's state is kept: a place of its own whatever the sequences' lengths."""
    return begin // C + n + chunk


@triton.jit
def steps_between(g, C: tl.constexpr):
    """(C, C) log decay l in column j if l > j; summed over l <= i it leads from j to i."""
    i = tl.arange(0, C)
    return tl.where(i[:, None] > i[None, :], g[:, None], 0.0)


@triton.jit
def invert(strict, C: tl.constexpr, STATE: tl.constexpr, PRECISION: tl.constexpr):
    """(I + strict)^-1 of a strictly lower triangle, from that of its diagonal blocks of 2, 4, ...

    The inverse of [[P, 0], [R, Q]] is [[P^-1, 0], [-Q^-1 R P^-1, Q^-1]]. A series of powers of
    `strict` would take as few products, but its terms grow beyond all bounds before they cancel.
    """
    i, j = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    inverse = tl.where(i == j, 1.0, tl.where(i // 2 == j // 2, -strict, 0.0))
    size = 2
    while size < C:
        corner = (i // size != j // size) & (i // (2 * size) == j // (2 * size))
        right = product(tl.where(corner, strict, 0.0), inverse, STATE, PRECISION)
        inverse -= product(inverse, right, STATE, PRECISION)
        size *= 2
    return inverse


@triton.jit
def dots_of_keys(
    q, k, rows, exists, K, C: tl.constexpr, PART: tl.constexpr,
    STATE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(C, C) products of a chunk's queries with its keys, and of its keys with each other."""
    qk = tl.zeros([C, C], STATE)
    kk = tl.zeros([C, C], STATE)
    for first in range(0, K, PART):
        keys = tl.trans(load_rows(k, rows, exists, first, K, PART, OPERAND))
        qk += product(load_rows(q, rows, exists, first, K, PART, OPERAND), keys, OPERAND, PRECISION)
        kk += product(tl.trans(keys), keys, OPERAND, PRECISION)
    return qk, kk
