"""Chunks of the sequence side by side as matrix products; between them a loop over their states.

A chunk's output is attention among its own steps, weighted by the decay between them, plus what
the state that enters it answers. A few chunks at a time, so that what is made of them stays in the
processor's cache: inside, tensors are (chunks * B * H, steps of a chunk, ...).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from clplat.ops.packed import lengths, pad, unpad
from clplat.ops.tier import state_dtype

CHUNK = 32
TILES = 64  # heads of a chunk that are worked on at once
LOWEST = -1e4  # its exponential is 0 in every dtype, and sums of it are finite


class Decays(NamedTuple):
    """Products of decays in a chunk, each the exponential of a sum that no difference made."""

    between: Tensor  # (N, C, C): from after step s (column) up to step t (row), 0 for s > t
    entering: Tensor  # (N, C, 1): from the chunk's first step up to step t
    leaving: Tensor  # (N, C, 1): from after step s up to the chunk's last
    whole: Tensor  # (N, 1, 1): over all of the chunk


def forward(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, initial: Tensor, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    padding = _Padding(q, cu_seqlens)
    inputs = [padding.add(x) for x in (q, k, v, log_decay)]
    y, carry = torch.empty_like(inputs[2]), initial.to(state_dtype(q))
    for part in padding.parts():
        q, k, v, log_decay = (_tiles(x[:, part]) for x in inputs)
        decays = _decays(log_decay)
        states, carry = _states((k * decays.leaving).mT @ v, decays.whole, carry)
        answers = (q @ k.mT).mul_(decays.between) @ v
        _write(answers.baddbmm_(q * decays.entering, states), y[:, part])
    return padding.remove(y), carry


def backward(
    grad_y: Tensor,
    grad_final: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    initial: Tensor,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, log_decay and initial."""
    padding = _Padding(q, cu_seqlens)
    inputs = [padding.add(x) for x in (q, k, v, log_decay, grad_y)]
    gradients = [torch.empty_like(x) for x in inputs[:4]]
    parts, states, carry = list(padding.parts()), [], initial.to(state_dtype(q))
    for part in parts:
        k, v, log_decay = (_tiles(x[:, part]) for x in inputs[1:4])
        decays = _decays(log_decay)
        entered, carry = _states((k * decays.leaving).mT @ v, decays.whole, carry)
        states.append(entered)
    carry = grad_final
    for part in reversed(parts):
        tiles = (_tiles(x[:, part]) for x in inputs)
        *found, carry = _backward(states.pop(), carry, *tiles)
        for gradient, x in zip(gradients, found, strict=True):
            _write(x, gradient[:, part])
    grad_q, grad_k, grad_v, grad_log_decay = map(padding.remove, gradients)
    return grad_q, grad_k, grad_v, grad_log_decay, carry.to(initial.dtype)


def _backward(
    states: Tensor,
    grad_final: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    grad_y: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the inputs of some chunks, and of the state before them."""
    decays = _decays(log_decay)
    added = (q * decays.entering).mT @ grad_y
    grad_states, grad_initial = _states(added, decays.whole, grad_final, reverse=True)

    weights = (q @ k.mT).mul_(decays.between)
    grad_v = torch.baddbmm((k * decays.leaving) @ grad_states, weights.mT, grad_y)
    grad_scores = grad_y @ v.mT
    grad_between = weights.mul_(grad_scores)
    grad_scores.mul_(decays.between)
    grad_q = (grad_y @ states.mT).mul_(decays.entering)
    grad_k = (v @ grad_states.mT).mul_(decays.leaving)
    grad_entering, grad_leaving = (q * grad_q).sum(-1), (k * grad_k).sum(-1)
    grad_whole = (states * grad_states).sum((1, 2))[:, None] * decays.whole[:, 0]
    grad_q.baddbmm_(grad_scores, k)
    grad_k.baddbmm_(grad_scores.mT, q)

    # Each is the gradient of a sum of log decays: it goes to all that the sum holds.
    lower, below = _triangles(log_decay)
    grad_log_decay = (grad_between @ below.mT).mul_(lower).sum(1)
    grad_log_decay += grad_entering @ lower + grad_leaving @ below.mT + grad_whole
    return grad_q, grad_k, grad_v, grad_log_decay, grad_initial


def _triangles(log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """Ones (C, C) where row >= column, and where row > column."""
    size = log_decay.shape[1]
    lower = log_decay.new_ones(size, size).tril_()
    return lower, lower.tril(-1)


def _decays(log_decay: Tensor) -> Decays:
    lower, below = _triangles(log_decay)
    log_decay = log_decay.clamp_min(LOWEST)
    # Entry (t, s) is the sum over r of [t >= r] log_decay_r [r > s].
    between = ((log_decay[:, None] * lower) @ below).exp_().tril_()
    entering = (log_decay @ lower.mT).exp_()[..., None]
    return Decays(between, entering, between[:, -1, :, None], entering[:, -1:])


def _states(
    added: Tensor, decay: Tensor, initial: Tensor, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """The states (N, K, V) that enter the chunks, from either end, and the one after them all."""
    states, carry = torch.empty_like(added), initial.flatten(0, 1)
    chunks = list(zip(*(x.split(len(carry)) for x in (states, added, decay)), strict=True))
    for state, addend, factor in reversed(chunks) if reverse else chunks:
        state.copy_(carry)
        carry = torch.addcmul(addend, factor, carry)
    return states, carry.view(initial.shape)


def _tiles(x: Tensor) -> Tensor:
    """(B, T, H, ...) -> (chunks * B * H, C, ...)."""
    x = x.unflatten(1, (-1, min(CHUNK, x.shape[1]))).movedim((1, 3), (0, 2))
    return x.to(state_dtype(x), memory_format=torch.contiguous_format).flatten(0, 2)


def _write(tiles: Tensor, out: Tensor) -> None:
    """The inverse of `_tiles`, into `out`."""
    out = out.unflatten(1, (-1, tiles.shape[1])).movedim((1, 3), (0, 2))
    out.copy_(tiles.view(out.shape))


class _Padding:
    """Packed sequences as a batch, and whole chunks; zeros behind leave the state as it is."""

    def __init__(self, x: Tensor, cu_seqlens: Tensor | None) -> None:
        batch, self.time, heads = x.shape[:3]
        self.counts = None
        if cu_seqlens is not None:
            self.counts = lengths(cu_seqlens, self.time)
            batch, self.time = len(self.counts), max(self.counts)
        self.chunk = min(CHUNK, self.time)
        self.behind = -self.time % self.chunk
        self.step = self.chunk * max(1, TILES // (batch * heads))

    def add(self, x: Tensor) -> Tensor:
        x = x if self.counts is None else pad(x, self.counts)
        axes = [0, 0] * (x.ndim - 2) + [0, self.behind]
        return torch.nn.functional.pad(x, axes) if self.behind else x

    def remove(self, x: Tensor) -> Tensor:
        x = x[:, : self.time].contiguous()
        return x if self.counts is None else unpad(x, self.counts)

    def parts(self) -> Iterator[slice]:
        """Steps that are worked on at once: some chunks."""
        for start in range(0, self.time, self.step):
            yield slice(start, start + self.step)
