"""One matrix of a memory over one chunk: how rows read it, how it is written, and both backward.

The chunk writes the outer products of inputs w and deltas d to it; rows x read, each by the weights
after its own token, a (x A) + b (x S) + (c * x w') d.
"""

from typing import NamedTuple

from torch import Tensor
from torch.linalg import vecdot

from clplat.ops.neural_memory.chunks import Coefficients


class Matrix(NamedTuple):
    """w, d: (B H, places, .); A and S at the chunk's start; S is None without momentum."""

    w: Tensor
    d: Tensor
    a: Tensor
    s: Tensor | None


def read(x: Tensor, matrix: Matrix, co: Coefficients) -> Tensor:
    w, d, a, s = matrix
    y = (x @ w.mT).mul_(co.c) @ d
    y.baddbmm_(co.a * x, a)
    return y if s is None else y.baddbmm_(co.b * x, s)


def write(matrix: Matrix, co: Coefficients) -> tuple[Tensor, Tensor | None]:
    """A and S after the chunk."""
    w, d, a, s = matrix
    carried = co.a[:, -1:] * a
    if s is not None:
        carried.addcmul_(co.b[:, -1:], s)
        s = (co.e * s).baddbmm_(w.mT, co.m * d)
    return carried.baddbmm_(w.mT, co.c[:, -1, :, None] * d), s


def write_backward(
    grad_a: Tensor,
    grad_s: Tensor | None,
    matrix: Matrix,
    co: Coefficients,
    grad_co: Coefficients,
) -> Matrix:
    """Gradients before the chunk from those of A and S after it; those of the coefficients are
    added to `grad_co`.
    """
    w, d, a, s = matrix
    last = co.c[:, -1, :, None]
    back = w @ grad_a
    grad_co.c[:, -1].add_(vecdot(back, d))
    grad_co.a[:, -1, 0].add_((a * grad_a).sum((-2, -1)))
    grad_w, grad_d = (last * d) @ grad_a.mT, back.mul_(last)
    before = co.a[:, -1:] * grad_a
    if s is not None:
        assert grad_s is not None
        back = w @ grad_s
        grad_co.m.add_(vecdot(back, d)[..., None])
        grad_co.b[:, -1, 0].add_((s * grad_a).sum((-2, -1)))
        grad_co.e.add_((s * grad_s).sum((-2, -1), keepdim=True))
        grad_w.baddbmm_(co.m * d, grad_s.mT)
        grad_d.addcmul_(co.m, back)
        grad_s = (co.e * grad_s).addcmul_(co.b[:, -1:], grad_a)
    return Matrix(grad_w, grad_d, before, grad_s)


def read_backward(
    grad: Tensor,
    x: Tensor,
    matrix: Matrix,
    co: Coefficients,
    grad_matrix: Matrix,
    grad_co: Coefficients,
) -> Tensor:
    """The gradient of x from that of `read`; those of the matrix and the coefficients are added."""
    w, d, a, s = matrix
    scores, grad_scores = x @ w.mT, grad @ d.mT
    grad_co.c.addcmul_(scores, grad_scores)
    grad_matrix.d.baddbmm_(scores.mul_(co.c).mT, grad)
    grad_matrix.w.baddbmm_(grad_scores.mul_(co.c).mT, x)
    grad_matrix.a.baddbmm_((co.a * x).mT, grad)
    back = grad @ a.mT
    grad_co.a.add_(vecdot(x, back)[..., None])
    grad_x = back.mul_(co.a).baddbmm_(grad_scores, w)
    if s is not None:
        assert grad_matrix.s is not None
        grad_matrix.s.baddbmm_((co.b * x).mT, grad)
        back = grad @ s.mT
        grad_co.b.add_(vecdot(x, back)[..., None])
        grad_x.addcmul_(co.b, back)
    return grad_x
