"""Chunk by chunk: the states of one chunk, (steps, B, E, N), are the most that is held at a time.

Decays, inputs and outputs are one call a chunk each; h_t = decay_t h_{t-1} + input_t is one call
a step, in place. The backward pass recomputes a chunk's states from the one at its start. Time
comes first in here, so that the state of a step is contiguous.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clplat.ops.packed import lengths, pad, unpad
from clplat.ops.selective_scan.chunks import CHUNK, count_rows
from clplat.ops.tier import state_dtype


@dataclass
class Sequences:
    """What both passes read: time first, in the dtype of the state, packed sequences padded.

    Padding is a step of dt = 0: its decay is 1 and its input 0, so it leaves the state as it is.
    """

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    negative_eigenvalues: bool
    counts: list[int] | None  # lengths of the packed sequences

    @classmethod
    def of(cls, x, dt, A, B, C, D, negative_eigenvalues, cu_seqlens) -> "Sequences":
        counts = None if cu_seqlens is None else lengths(cu_seqlens, x.shape[1])
        dtype = state_dtype(x)
        x, dt, B, C = (time_first(tensor, counts, dtype) for tensor in (x, dt, B, C))
        return cls(x, dt, A.to(dtype), B, C, D.to(dtype), negative_eigenvalues, counts)

    @property
    def parts(self) -> list[slice]:
        """The chunks of time."""
        time = len(self.x)
        return [slice(start, min(start + CHUNK, time)) for start in range(0, time, CHUNK)]

    def buffer(self, more: int = 0) -> Tensor:
        """Room for the states of a chunk and `more` of them."""
        return self.x.new_empty(min(CHUNK, len(self.x)) + more, *self.x.shape[1:], self.A.shape[1])

    def decays(self, part: slice, out: Tensor) -> Tensor:
        """exp(dt A), or 2 exp(dt A) - 1, written into `out`."""
        decay = torch.mul(self.dt[part, :, :, None], self.A, out=out[: part.stop - part.start])
        decay.exp_()
        return decay.mul_(2).sub_(1) if self.negative_eigenvalues else decay

    def states(self, part: slice, decay: Tensor, before: Tensor, out: Tensor) -> Tensor:
        """The state before the chunk and after each of its steps, written into `out`."""
        h = out[: part.stop - part.start + 1]
        h[0] = before
        value = (self.dt[part] * self.x[part])[..., None]
        torch.mul(value, self.B[part, :, None], out=h[1:])
        for last, here, factor in zip(h, h[1:], decay, strict=False):
            here.addcmul_(factor, last)
        return h


def time_first(x: Tensor, counts: list[int] | None, dtype: torch.dtype) -> Tensor:
    """(B, T, ...) -> (T, B, ...); packed: (1, total, ...) -> (longest, sequences, ...)."""
    return (x if counts is None else pad(x, counts)).to(dtype).transpose(0, 1)


def batch_first(x: Tensor, counts: list[int] | None, like: Tensor) -> Tensor:
    """The inverse, contiguous, in the dtype of `like`."""
    x = x.transpose(0, 1)
    return (x if counts is None else unpad(x, counts)).to(like.dtype).contiguous()


def rows_times(row: Tensor, matrix: Tensor) -> Tensor:
    """(steps, B, i) by (steps, B, i, j); four times faster than matrices times columns."""
    return (row[:, :, None] @ matrix)[:, :, 0]


def first_rows(x: Tensor, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    """Each sequence's first row of `starts`, and how many it has (see `chunks.py`)."""
    batch, time = x.shape[:2]
    if cu_seqlens is None:
        cu_seqlens = torch.arange(0, (batch + 1) * time, time, device=x.device)
    begin, length = cu_seqlens[:-1], cu_seqlens.diff()
    order = torch.arange(len(begin), device=x.device)
    return begin // CHUNK + order, (length + CHUNK - 1) // CHUNK


def forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    initial: Tensor,
    negative_eigenvalues: bool,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the final state and the states at the chunks' starts."""
    s = Sequences.of(x, dt, A, B, C, D, negative_eigenvalues, cu_seqlens)
    first, chunks = first_rows(x, cu_seqlens)
    h = initial.to(state_dtype(x))
    starts = h.new_empty(count_rows(x.shape[0] * x.shape[1], len(h)), *A.shape)
    y = torch.empty_like(s.x, memory_format=torch.contiguous_format)
    decays, states = s.buffer(), s.buffer(1)
    for chunk, part in enumerate(s.parts):
        reached = chunk < chunks
        starts[first[reached] + chunk] = h[reached]
        after = s.states(part, s.decays(part, decays), h, states)[1:]
        torch.addcmul(rows_times(s.C[part], after.mT), s.D, s.x[part], out=y[part])
        h = after[-1]
    return batch_first(y, s.counts, x), h.clone(), starts


def backward(
    grad_y: Tensor,
    grad_final: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    starts: Tensor,
    negative_eigenvalues: bool,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, A, B, C, D and initial. Carries dL/dh back from chunk to chunk."""
    s = Sequences.of(x, dt, A, B, C, D, negative_eigenvalues, cu_seqlens)
    first, chunks = first_rows(x, cu_seqlens)
    grad_y = time_first(grad_y, s.counts, s.x.dtype)
    grad_x, grad_dt, grad_B, grad_C = (
        torch.empty_like(tensor, memory_format=torch.contiguous_format)
        for tensor in (s.x, s.dt, s.B, s.C)
    )
    grad_A, grad_h = s.A.new_zeros(s.A.shape), grad_final.to(s.x.dtype)
    decays, states, grads = s.buffer(), s.buffer(1), s.buffer()
    for chunk, part in reversed(list(enumerate(s.parts))):
        dt_part, x_part, dy = s.dt[part], s.x[part], grad_y[part]
        # Where a sequence has ended, any state will do: grad_y and dt are 0.
        before = starts[first + (chunks - 1).clamp(max=chunk)]
        decay = s.decays(part, decays)
        h = s.states(part, decay, before, states)
        g, grad_h = _grad_states(s.C[part], dy, decay, grad_h, grads)

        grad_input = rows_times(s.B[part], g.mT)
        grad_B[part] = rows_times(dt_part * x_part, g)
        grad_C[part] = rows_times(dy, h[1:])
        torch.addcmul(dt_part * grad_input, s.D, dy, out=grad_x[part])

        # exp(dt A) is decay, or half of decay + 1, of which decay has twice the gradient.
        grad_log = g.mul_(h[:-1]).mul_(decay.add_(1) if negative_eigenvalues else decay)
        torch.addcmul(
            torch.mul(grad_log, s.A, out=decay).sum(-1), x_part, grad_input, out=grad_dt[part]
        )
        grad_A += grad_log.mul_(dt_part[..., None]).sum((0, 1))

    grad_D = (grad_y * s.x).sum((0, 1))
    over_time = zip((grad_x, grad_dt, grad_B, grad_C), (x, dt, B, C), strict=True)
    grad_x, grad_dt, grad_B, grad_C = (batch_first(g, s.counts, like) for g, like in over_time)
    return grad_x, grad_dt, grad_A.to(A.dtype), grad_B, grad_C, grad_D.to(D.dtype), grad_h


def _grad_states(
    C: Tensor, grad_y: Tensor, decay: Tensor, grad_h: Tensor, out: Tensor
) -> tuple[Tensor, Tensor]:
    """dL/dh of each step of a chunk, and of the state before it, from `grad_h`, the last's."""
    g = torch.mul(grad_y[..., None], C[:, :, None], out=out[: len(decay)])
    g[-1] += grad_h
    steps, factors = g.unbind(0)[::-1], decay.unbind(0)[::-1]
    for here, later, factor in zip(steps[1:], steps, factors, strict=False):
        here.addcmul_(factor, later)
    return g, decay[0] * g[0]
