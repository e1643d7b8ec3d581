"""What the kernels of a linear memory do with tiles: products, losses, retentions and tokens."""

import triton
import triton.language as tl

TINY = tl.constexpr(1.1754943508222875e-38)  # the least normal float32


@triton.jit
def multiply(x, y, KIND: tl.constexpr, STATE: tl.constexpr, PRECISION: tl.constexpr):
    """x y, by the matrix units: operands in the dtype of the inputs, sums in that of states."""
    return tl.dot(x.to(KIND), y.to(KIND), input_precision=PRECISION, out_dtype=STATE)


@triton.jit
def power(x, EXPONENT: tl.constexpr):
    """Of x >= 0; 0 stays 0."""
    if EXPONENT == 0:
        result = tl.full(x.shape, 1, x.dtype)
    elif EXPONENT == 1:
        result = x
    elif EXPONENT == 2:
        result = x * x
    elif EXPONENT == 3:
        result = x * x * x
    elif EXPONENT == 4:
        result = x * x * (x * x)
    else:
        result = tl.where(x > 0, tl.exp2(EXPONENT * tl.log2(tl.maximum(x, TINY))), 0)
    return result


@triton.jit
def sign(x):
    return (x > 0).to(x.dtype) - (x < 0).to(x.dtype)


@triton.jit
def slope(e, LOSS: tl.constexpr, PARAMETER: tl.constexpr):
    """The derivative of the inner loss by the error."""
    if LOSS == "huber":
        result = tl.minimum(tl.maximum(e, -PARAMETER), PARAMETER)
    elif LOSS == "lp":
        result = sign(e) * power(tl.abs(e), PARAMETER - 1)
    else:
        result = e
    return result


@triton.jit
def curvature(e, LOSS: tl.constexpr, PARAMETER: tl.constexpr):
    """The second derivative."""
    if LOSS == "huber":
        result = (tl.abs(e) <= PARAMETER).to(e.dtype)
    elif LOSS == "lp":
        steep = (PARAMETER - 1) * power(tl.abs(e), PARAMETER - 2)
        result = tl.where(tl.abs(e) >= TINY, steep, 0)
    else:
        result = tl.full(e.shape, 1, e.dtype)
    return result


@triton.jit
def retain(weights, mask, RETENTION: tl.constexpr):
    """The matrix that tokens meet, but for "lq"; zeros outside of `mask`, as in `weights`."""
    if RETENTION == "softmax":
        top = tl.max(tl.where(mask, weights, float("-inf")), 0)
        top = tl.where(top == float("-inf"), 0, top)
        parts = tl.where(mask, tl.exp(weights - top[None, :]), 0)
        result = parts / tl.maximum(tl.sum(parts, 0), TINY)[None, :]
    else:
        result = weights
    return result


@triton.jit
def retain_backward(kept, grad, RETENTION: tl.constexpr):
    return kept * (grad - tl.sum(kept * grad, 0)[None, :]) if RETENTION == "softmax" else grad


@triton.jit
def first(row, n, front, chunk, T, H, D):
    """Offset of chunk n's first place in head `row` of (B, T, H, D)."""
    return ((row // H * T + n * chunk - front) * H + row % H) * D


@triton.jit
def tokens(n, front, chunk, T, H, columns, D, P: tl.constexpr):
    """Offsets of chunk n's places from its first, and which of them hold tokens."""
    places = tl.arange(0, P)
    t = n * chunk - front + places
    there = (places < chunk) & (t >= 0) & (t < T)
    return places[:, None] * (H * D) + columns[None, :], there[:, None] & (columns < D)[None, :]


@triton.jit
def products(
    x, y, n, front, chunk, T, H, D, KIND: tl.constexpr, STATE: tl.constexpr,
    PRECISION: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """x y' of chunk n's tokens (P, P), some columns at a time: whole operands would spill."""
    result = tl.zeros([P, P], STATE)
    for block in tl.range(0, tl.cdiv(D, COLUMNS), disable_licm=True):
        columns = block * COLUMNS + tl.arange(0, COLUMNS)
        offsets, there = tokens(n, front, chunk, T, H, columns, D, P)
        left = tl.load(x + offsets, there, 0.0).to(STATE)
        right = tl.load(y + offsets, there, 0.0).to(STATE)
        result += multiply(left, tl.trans(right), KIND, STATE, PRECISION)
    return result
