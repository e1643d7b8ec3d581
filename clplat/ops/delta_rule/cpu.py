"""Chunks of the sequence side by side, then two products a chunk, one chunk after another.

Within a chunk let G_i be the sum of log_decay up to token i, S the state that enters, and u_i the
value that token i writes at its key: S_i = exp(G_i) S + sum_{j<=i} exp(G_i - G_j) k_j u_j'. Then

    (I + A) u = z        A_ij = beta_i exp(G_i - G_j) k_i'k_j for j < i
    z = beta (v - exp(G) k S),

the WY form of Yang et al. (2024). All but S is known beforehand, so with T = (I + A)^-1 each chunk
takes z from S and S from z = `z0 - erase S`, `S <- decay S + write' z`, and reads
y = exp(G) q S + `mix` z.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from clplat.ops.packed import lengths, pad, unpad
from clplat.ops.tier import state_dtype

CHUNK = 32  # tokens: 16 is as fast and keeps twice the states; 64 and 128 are slower


class Chunks(NamedTuple):
    """Inputs (chunks, B * H, C, ...) and what follows from them without the state."""

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor  # (..., C, 1), as the three below
    enter: Tensor  # exp(G_i): from the chunk's start to i
    leave: Tensor  # exp(G_C - G_i): from i to the chunk's end
    across: Tensor  # exp(G_C): (..., 1, 1)
    between: Tensor  # exp(G_i - G_j) for j <= i, else 0: (..., C, C), as the four below
    qk: Tensor
    kk: Tensor
    inverse: Tensor  # T
    mix: Tensor  # the tokens' reading of each other's z
    erase: Tensor  # (..., C, K), as the next
    write: Tensor


def split(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, T, H, ...) -> (chunks, B * H, C, ...); zeros at the end leave the state as it is."""
    batch, time, heads = x.shape[:3]
    count = -(-time // CHUNK)
    chunks = x.new_empty(count, batch, heads, CHUNK, *x.shape[3:], dtype=dtype)
    rows = chunks.movedim(0, 1).movedim(3, 2)  # (B, chunks, C, H, ...)
    whole, rest = divmod(time, CHUNK)
    rows[:, :whole] = x[:, : whole * CHUNK].unflatten(1, (whole, CHUNK))
    if rest:
        rows[:, whole, :rest] = x[:, -rest:]
        rows[:, whole, rest:] = 0
    return chunks.flatten(1, 2)


def join(chunks: Tensor, like: Tensor) -> Tensor:
    """(chunks, B * H, C, ...) -> (B, T, H, ...), in the dtype of `like`, whose shape it has."""
    batch, time, heads = like.shape[:3]
    rows = chunks.unflatten(1, (batch, heads)).movedim(0, 1).movedim(3, 2)
    return rows.flatten(1, 2)[:, :time].to(like.dtype).contiguous()


def prepare(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor) -> Chunks:
    dtype = state_dtype(q)
    q, k, v, beta, g = (split(x, dtype) for x in (q, k, v, beta, log_decay))
    beta, g = beta[..., None], g[..., None]
    # Sums of the steps between, not differences of sums from the start: those of large decays
    # would leave nothing of the small ones behind them.
    between = (g * g.new_ones(CHUNK, CHUNK).tril(-1)).cumsum(-2).exp_().tril_()
    enter, leave = g.cumsum(-2).exp_(), between[..., -1:, :].mT
    qk, kk = q @ k.mT, k @ k.mT
    eye = torch.eye(CHUNK, dtype=dtype, device=q.device).expand(kk.shape)
    strict = (beta * between * kk).tril_(-1)
    inverse = torch.linalg.solve_triangular(strict, eye, upper=False, unitriangular=True)
    mix = (qk * between) @ inverse
    erase, write = beta * enter * k, inverse.mT @ (leave * k)
    across = enter[..., -1:, :]
    return Chunks(q, k, v, beta, enter, leave, across, between, qk, kk, inverse, mix, erase, write)


def states(c: Chunks, initial: Tensor) -> tuple[Tensor, Tensor]:
    """The state before each chunk, then the final one (chunks + 1, B * H, K, V); and z."""
    S = initial.new_empty(len(c.k) + 1, *initial.shape)
    S[0] = initial
    z = c.beta * c.v
    decayed = torch.empty_like(initial)
    for i in range(len(z)):
        torch.baddbmm(z[i], c.erase[i], S[i], alpha=-1, out=z[i])
        torch.mul(S[i], c.across[i], out=decayed)
        torch.baddbmm(decayed, c.write[i].mT, z[i], out=S[i + 1])
    return S, z


def dense(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, initial: Tensor
) -> tuple[Tensor, Tensor]:
    """y and the final state of sequences of one length."""
    c = prepare(q, k, v, beta, log_decay)
    S, z = states(c, initial.to(c.k.dtype).flatten(0, 1))
    y = (c.enter * c.q) @ S[:-1] + c.mix @ z
    return join(y, v), S[-1].reshape(initial.shape).clone()


def dense_backward(
    grad_y: Tensor,
    grad_final: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    initial: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v, beta, log_decay and initial."""
    c = prepare(q, k, v, beta, log_decay)
    S, z = states(c, initial.to(c.k.dtype).flatten(0, 1))
    S = S[:-1]
    grad_y = split(grad_y, z.dtype)
    grad_end, grad_z, grad_initial = _backward_states(c, grad_y, grad_final)

    u = c.inverse @ z
    # Of the products of keys: (I + A) u = z, so that the gradient of A is -grad_z u'.
    grad_read = (grad_y @ u.mT).mul_(c.between)
    grad_strict = (grad_z @ u.mT).mul_(c.between).tril_(-1).neg_()
    grad_kk = c.beta * grad_strict
    # Of what crosses the chunk's borders.
    grad_q = (grad_y @ S.mT).mul_(c.enter)
    grad_erase = (grad_z @ S.mT).mul_(c.enter)
    grad_leave = (u @ grad_end.mT).mul_(c.leave)

    erased = _dot(grad_erase, c.k)
    grad_beta = _dot(grad_z, c.v) - erased + _dot(grad_strict, c.kk)
    grad_enter = _dot(grad_q, c.q) - c.beta * erased
    grad_across = (grad_end * S).sum((-2, -1), keepdim=True).mul_(c.across)
    grad_between = grad_read * c.qk + grad_kk * c.kk
    grad_g = _steps(grad_enter, _dot(grad_leave, c.k), grad_across, grad_between)

    grad_q += grad_read @ c.k
    grad_k = grad_leave - c.beta * grad_erase
    grad_k += grad_read.mT @ c.q
    grad_k += (grad_kk + grad_kk.mT) @ c.k
    return (
        join(grad_q, q),
        join(grad_k, k),
        join(c.beta * grad_z, v),
        join(grad_beta[..., 0], beta),
        join(grad_g[..., 0], log_decay),
        grad_initial.reshape(initial.shape).to(initial.dtype),
    )


def _backward_states(
    c: Chunks, grad_y: Tensor, grad_final: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the state after each chunk, of z, and of the initial state."""
    grad_z = c.mix.mT @ grad_y
    grad_S = (c.enter * c.q).mT @ grad_y  # before each chunk, by its own outputs
    grad_end = torch.empty_like(grad_S)
    carry = grad_final.to(grad_y.dtype).flatten(0, 1)
    for i in reversed(range(len(grad_z))):
        grad_end[i] = carry
        torch.baddbmm(grad_z[i], c.write[i], carry, out=grad_z[i])
        carry = torch.addcmul(grad_S[i], c.across[i], carry)
        carry.baddbmm_(c.erase[i].mT, grad_z[i], alpha=-1)
    return grad_end, grad_z, carry


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def _steps(enter: Tensor, leave: Tensor, across: Tensor, between: Tensor) -> Tensor:
    """The gradient of each log_decay (..., C, 1) from those of the sums that hold it.

    Token l is part of G_i for i >= l, of G_C - G_j for j < l, of G_C, and of G_i - G_j for
    j < l <= i.
    """
    later = between.new_ones(CHUNK, CHUNK).triu()
    crossing = (later @ between).tril_(-1).sum(-1, keepdim=True)
    return later @ enter + (leave.cumsum(-2) - leave) + across + crossing


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    initial: Tensor,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    if cu_seqlens is None:
        return dense(q, k, v, beta, log_decay, initial)
    counts = lengths(cu_seqlens, q.shape[1])
    q, k, v, beta, log_decay = (pad(x, counts) for x in (q, k, v, beta, log_decay))
    y, final = dense(q, k, v, beta, log_decay, initial)
    return unpad(y, counts), final


def backward(
    grad_y: Tensor,
    grad_final: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    initial: Tensor,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v, beta, log_decay and initial."""
    if cu_seqlens is None:
        return dense_backward(grad_y, grad_final, q, k, v, beta, log_decay, initial)
    counts = lengths(cu_seqlens, q.shape[1])
    grad_y, q, k, v, beta, log_decay = (pad(x, counts) for x in (grad_y, q, k, v, beta, log_decay))
    *grads, grad_initial = dense_backward(grad_y, grad_final, q, k, v, beta, log_decay, initial)
    return *(unpad(grad, counts) for grad in grads), grad_initial
