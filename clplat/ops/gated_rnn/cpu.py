"""A loop over time without allocations; one product with the recurrent matrix a step.

Backward, all that the gradients of the gates are multiples of (slopes and the like) is computed
for a piece of the sequence at once, so that the loop itself is left with few calls a step.

Layout: h (T, heads, B, P), gates (T, heads, B, G, P), a state (S, heads, B, P).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu_, logsigmoid

from clplat.ops.gated_rnn.kinds import SLOPE, empty_trace
from clplat.ops.tier import state_dtype

sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
leaky_relu_backward = torch.ops.aten.leaky_relu_backward.grad_input
tanh_backward = torch.ops.aten.tanh_backward.grad_input

# Elements of h in a piece of the backward pass: several such tensors stay in a processor's cache.
PIECE = 65536


def by_head(x: Tensor, heads: int) -> Tensor:
    """(B, n, ..., H) -> (n, heads, B, ..., P), a view."""
    return x.unflatten(-1, (heads, -1)).movedim(-2, 1).transpose(0, 2)


def steps(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """What the tensors hold at each time; the views are made at once."""
    return zip(*(tensor.unbind() for tensor in tensors), strict=True)


def elman(nonlinear, x, matrix, state, leak, h, gates, cells):
    before = state[0]
    phis = h if leak is None else gates[:, :, :, 0]
    for x_t, phi, h_t in steps(x[:, :, :, 0], phis, h):
        nonlinear(phi.copy_(x_t).baddbmm_(before, matrix))
        before = phi if leak is None else torch.lerp(before, phi, leak, out=h_t)
    return (before,)


def lstm(x, matrix, state, _, h, gates, cells):
    before, c = state
    scratch = torch.empty_like(c)
    views = (x, gates, gates.flatten(3), gates[:, :, :, :2], *gates.unbind(3), *cells.unbind(3), h)
    for x_t, gates_t, product, i_f, i, f, g, o, c_t, h_t in steps(*views):
        gates_t.copy_(x_t)
        product.baddbmm_(before, matrix)
        i_f.sigmoid_()
        g.tanh_()
        o.sigmoid_()
        c = torch.mul(f, c, out=c_t).addcmul_(i, g)
        before = torch.mul(o, torch.tanh(c, out=scratch), out=h_t)
    return before, c


def gru(x, matrix, state, bias, h, gates, cells):
    before = state[0]
    bias = torch.zeros_like(before[:, :1]) if bias is None else bias
    of_x = x[:, :, :, :2], x[:, :, :, 2]
    of_gates = gates.flatten(3), gates[:, :, :, :2], *gates.unbind(3)
    for x_r_z, x_n, product, r_z, r, z, q, n, h_t in steps(*of_x, *of_gates, *cells.unbind(3), h):
        r_z.copy_(x_r_z)
        q.copy_(bias)
        product.baddbmm_(before, matrix)
        r_z.sigmoid_()
        torch.addcmul(x_n, r, q, out=n).tanh_()
        before = torch.lerp(n, before, z, out=h_t)
    return (before,)


def slstm(x, matrix, state, _, h, gates, cells):
    before, c, n, m = state
    views = (x, gates, gates.flatten(3), gates[:, :, :, :2], *gates.unbind(3), *cells.unbind(3), h)
    for x_t, gates_t, product, i_f, i, f, z, o, c_t, n_t, slope, h_t in steps(*views):
        gates_t.copy_(x_t)
        product.baddbmm_(before, matrix)
        z.tanh_()
        o.sigmoid_()
        torch.neg(f, out=slope).sigmoid_()  # of log f
        m = torch.maximum(torch.add(logsigmoid(f), m, out=f), i)
        i_f.sub_(m[:, :, None]).exp_()
        c = torch.mul(f, c, out=c_t).addcmul_(i, z)
        n = torch.mul(f, n, out=n_t).add_(i)
        before = torch.mul(o, c, out=h_t).div_(n)
    return before, c, n, m


FORWARD = {
    "tanh": partial(elman, torch.tanh_),
    "relu": partial(elman, torch.relu_),
    "leaky_relu": partial(elman, leaky_relu_),
    "lstm": lstm,
    "gru": gru,
    "slstm": slstm,
}


def forward(
    kind: str, x: Tensor, weight: Tensor, initial: Tensor, per_unit: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype, heads = state_dtype(x), len(weight)
    wide, state = (by_head(tensor.to(dtype), heads) for tensor in (x, initial))
    matrix = weight.to(dtype).transpose(1, 2).flatten(2)  # (heads, P, G P)
    if per_unit is not None:
        per_unit = per_unit.to(dtype).view(heads, 1, -1)
    batch, time, _, width = x.shape
    h = wide.new_empty(time, batch, width).transpose(0, 1)
    gates, cells = empty_trace(kind, h, weight, per_unit)
    final = FORWARD[kind](wide, matrix, state, per_unit, by_head(h, heads), gates, cells)
    final = torch.stack([part.transpose(0, 1) for part in final], 1).flatten(2)
    return h.to(x.dtype), final, gates, cells.to(x.dtype)


@dataclass
class Backward:
    """What the backward pass of a kind reads and writes, a piece of the time axis after another."""

    h: Tensor  # (T, heads, B, P)
    gates: Tensor
    cells: Tensor
    initial: Tensor  # (S, heads, B, P)
    per_unit: Tensor | None  # (heads, 1, P)
    matrix: Tensor  # (heads, G P, P): from the gates back to h
    grad_h: Tensor  # (T, heads, B, P)
    grad_state: Tensor  # (S, heads, B, P): of the state after the piece, then of that before it
    grad_x: Tensor  # (T, heads, B, G, P)
    grad_unit: Tensor  # (heads, P)

    def before(self, states: Tensor, which: int, piece: slice) -> Tensor:
        """What `states`, whose place in a state is `which`, were before the steps of `piece`."""
        if piece.start == 0:
            return torch.cat([self.initial[which, None], states[: piece.stop - 1]])
        return states[piece.start - 1 : piece.stop - 1]

    def whole_grad_h(self, piece: slice) -> Tensor:
        """Of each h by itself and, of the last one, by way of the state; others `steps` adds."""
        grad_h = self.grad_h[piece].clone(memory_format=torch.contiguous_format)
        grad_h[-1] += self.grad_state[0]
        self.grad_state[0] = 0
        return grad_h

    def steps(self, grad_h: Tensor, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """In reverse: gradients of the h before, to be added to, and of h; the tensors' steps."""
        grads = [self.grad_state[0], *grad_h.unbind()]
        views = (tensor.unbind()[::-1] for tensor in tensors)
        return zip(grads[-2::-1], grads[:0:-1], *views, strict=True)


def elman_backward(slope: float | None, run: Backward, piece: slice, before: Tensor) -> Tensor:
    """`slope`: of phi at negative arguments; None: phi is tanh."""
    grad_h, leak, d = run.whole_grad_h(piece), run.per_unit, run.grad_x[piece]
    if leak is None:
        views = run.steps(grad_h, run.h[piece], d[:, :, :, 0])
        for grad_before, grad_h_t, phi, d_t in views:
            if slope is None:
                tanh_backward(grad_h_t, phi, grad_input=d_t)
            else:
                leaky_relu_backward(grad_h_t, phi, slope, True, grad_input=d_t)
            grad_before.baddbmm_(d_t, run.matrix)
        return d
    phi = run.gates[piece, :, :, 0]
    scale = leak.expand_as(phi[0])
    if slope is None:
        tanh_backward(scale.expand_as(phi), phi, grad_input=d[:, :, :, 0])
    else:
        torch.where(phi > 0, scale, slope * scale, out=d[:, :, :, 0])
    keep = 1 - scale
    for grad_before, grad_h_t, d_t in run.steps(grad_h, d[:, :, :, 0]):
        d_t.mul_(grad_h_t)
        grad_before.addcmul_(grad_h_t, keep).baddbmm_(d_t, run.matrix)
    run.grad_unit += grad_h.mul_(phi - before).sum((0, 2))
    return d


def lstm_backward(run: Backward, piece: slice, before: Tensor) -> Tensor:
    grad_h, d = run.whole_grad_h(piece), run.grad_x[piece]
    (i, f, g, o), (d_i, d_f, d_g, d_o) = run.gates[piece].unbind(3), d.unbind(3)
    c = run.cells[:, :, :, 0]
    tanh_c = c[piece].tanh()
    sigmoid_backward(g, i, grad_input=d_i)
    sigmoid_backward(run.before(c, 1, piece), f, grad_input=d_f)
    tanh_backward(i, g, grad_input=d_g)
    sigmoid_backward(tanh_c, o, grad_input=d_o)
    to_c = tanh_backward(o, tanh_c, grad_input=torch.empty_like(tanh_c))

    grad_c = run.grad_state[1]
    views = run.steps(grad_h, to_c, f, d.flatten(3), d[:, :, :, :3], d_o)
    for grad_before, grad_h_t, to_c_t, f_t, product, d_i_f_g, d_o_t in views:
        grad_c.addcmul_(grad_h_t, to_c_t)
        d_i_f_g.mul_(grad_c[:, :, None])
        d_o_t.mul_(grad_h_t)
        grad_c.mul_(f_t)
        grad_before.baddbmm_(product, run.matrix)
    return d


def gru_backward(run: Backward, piece: slice, before: Tensor) -> Tensor:
    grad_h, d_n = run.whole_grad_h(piece), run.grad_x[piece, :, :, 2]
    (r, z, q), n = run.gates[piece].unbind(3), run.cells[piece, :, :, 0]
    d = torch.empty_like(run.grad_x[piece])  # of x_r, x_z and, where grad_x has that of x_n, of q
    d_r, d_z, d_q = d.unbind(3)
    tanh_backward(1 - z, n, grad_input=d_n)
    sigmoid_backward(d_n * q, r, grad_input=d_r)
    sigmoid_backward(before - n, z, grad_input=d_z)
    torch.mul(d_n, r, out=d_q)

    for grad_before, grad_h_t, d_t, product, z_t in run.steps(grad_h, d, d.flatten(3), z):
        d_t.mul_(grad_h_t[:, :, None])
        grad_before.addcmul_(grad_h_t, z_t).baddbmm_(product, run.matrix)
    d_n.mul_(grad_h)
    run.grad_x[piece, :, :, :2] = d[:, :, :, :2]
    if run.per_unit is not None:
        run.grad_unit += d_q.sum((0, 2))
    return d


def slstm_backward(run: Backward, piece: slice, before: Tensor) -> Tensor:
    grad_h, d = run.whole_grad_h(piece), run.grad_x[piece]
    (i, f, z, o), (d_i, d_f, d_z, d_o) = run.gates[piece].unbind(3), d.unbind(3)
    c, n, slope = run.cells.unbind(3)
    to_c, mean = o / n[piece], c[piece] / n[piece]
    to_n = -to_c * mean
    sigmoid_backward(mean, o, grad_input=d_o)
    tanh_backward(i, z, grad_input=d_z)
    # The gradients of i and f go by way of c and, the last two, by way of n.
    slope = slope[piece] * f
    torch.mul(i, z, out=d_i)
    torch.mul(slope, run.before(c, 1, piece), out=d_f)
    by_n = torch.stack([i, slope * run.before(n, 2, piece)], 3)

    _, grad_c, grad_n, _ = run.grad_state
    parts = d.flatten(3), d[:, :, :, :3], d[:, :, :, :2], by_n, d_o
    views = run.steps(grad_h, to_c, to_n, f, *parts)
    for grad_before, grad_h_t, to_c_t, to_n_t, f_t, product, d_i_f_z, d_i_f, by_n_t, d_o_t in views:
        grad_c.addcmul_(grad_h_t, to_c_t)
        grad_n.addcmul_(grad_h_t, to_n_t)
        d_i_f_z.mul_(grad_c[:, :, None])
        d_i_f.addcmul_(by_n_t, grad_n[:, :, None])
        d_o_t.mul_(grad_h_t)
        grad_c.mul_(f_t)
        grad_n.mul_(f_t)
        grad_before.baddbmm_(product, run.matrix)
    return d


BACKWARD = {
    "tanh": partial(elman_backward, None),
    "relu": partial(elman_backward, 0.0),
    "leaky_relu": partial(elman_backward, SLOPE),
    "lstm": lstm_backward,
    "gru": gru_backward,
    "slstm": slstm_backward,
}


def rows(x: Tensor) -> Tensor:
    """(n, heads, B, ...) -> (heads, n B, ...), times and sequences as the rows of a matrix."""
    x = x.transpose(0, 1)
    return x.reshape(len(x), x.shape[1] * x.shape[2], -1)


def backward(
    kind: str,
    grad_h: Tensor,
    grad_final: Tensor,
    h: Tensor,
    gates: Tensor,
    cells: Tensor,
    weight: Tensor,
    initial: Tensor,
    per_unit: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, initial and per_unit; of None it is empty."""
    dtype, (heads, count, size, _), (batch, time, _) = state_dtype(h), weight.shape, h.shape
    matrix = weight.to(dtype).transpose(1, 2).flatten(2).mT
    run = Backward(
        h=by_head(h.to(dtype), heads),
        gates=gates,
        cells=cells.to(dtype),
        initial=by_head(initial.to(dtype), heads),
        per_unit=None if per_unit is None else per_unit.to(dtype).view(heads, 1, size),
        matrix=matrix,
        grad_h=by_head(grad_h.to(dtype), heads),
        grad_state=by_head(grad_final.to(dtype), heads).clone(),
        grad_x=matrix.new_empty(time, heads, batch, count, size),
        grad_unit=matrix.new_zeros(heads, size),
    )
    if kind == "slstm":
        run.grad_state[3] = 0  # the stabiliser's
    grad_matrix = torch.zeros_like(matrix.mT)
    length = max(1, PIECE // (batch * heads * size))
    for start in reversed(range(0, time, length)):
        piece = slice(start, min(start + length, time))
        before = run.before(run.h, 0, piece)
        grad_product = BACKWARD[kind](run, piece, before)
        grad_matrix.baddbmm_(rows(before).mT, rows(grad_product))
    return (
        run.grad_x.permute(0, 2, 3, 1, 4).flatten(3).transpose(0, 1).to(h.dtype),
        weight.new_empty(weight.shape).copy_(
            grad_matrix.unflatten(2, (count, size)).transpose(1, 2)
        ),
        run.grad_state.permute(2, 0, 1, 3).flatten(2).to(initial.dtype).contiguous(),
        h.new_empty(0) if per_unit is None else run.grad_unit.flatten().to(per_unit.dtype),
    )
