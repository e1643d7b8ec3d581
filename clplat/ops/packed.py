"""Packed sequences (1, total, ...) as a padded batch (N, longest, ...), and back."""

from itertools import pairwise

import torch
from torch import Tensor


def check_packed(
    op: str, x: Tensor, initial: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[int, Tensor | None]:
    """The rows of a state, the batch or as many sequences as are packed in it; and cu_seqlens as
    kernels read it, without gaps.

    Raises ValueError for a cu_seqlens of another rank or dtype, a packed batch that is not 1, and
    an initial state of another count of rows; TypeError for another device. The values are looked
    at by `lengths`.
    """
    if cu_seqlens is None:
        return len(x), None
    if cu_seqlens.ndim != 1 or len(cu_seqlens) < 2 or cu_seqlens.dtype != torch.int64:
        raise ValueError(
            f"{op}: cu_seqlens has shape {tuple(cu_seqlens.shape)} and dtype {cu_seqlens.dtype}; "
            "expected (N + 1,) int64: where each sequence begins, then the count of tokens"
        )
    if cu_seqlens.device != x.device:
        raise TypeError(
            f"{op}: cu_seqlens is on {cu_seqlens.device}, but the tokens are on {x.device}; move it"
        )
    count = len(cu_seqlens) - 1
    if len(x) != 1:
        raise ValueError(f"{op}: packed sequences come in a batch of 1; got one of {len(x)}")
    if initial is not None and len(initial) != count:
        raise ValueError(
            f"{op}: initial has {len(initial)} rows; cu_seqlens names {count} sequences"
        )
    return count, cu_seqlens.contiguous()


def lengths(cu_seqlens: Tensor, total: int) -> list[int]:
    """The sequences' lengths. Raises ValueError where they are not what `total` tokens hold."""
    starts = cu_seqlens.tolist()
    found = [end - start for start, end in pairwise(starts)]
    if starts[0] != 0 or starts[-1] != total or min(found) < 1:
        raise ValueError(
            f"cu_seqlens {starts} do not cover the {total} tokens; expected 0 first, {total} last, "
            "and each greater than the one before"
        )
    return found


def pad(x: Tensor, counts: list[int], value: float = 0.0) -> Tensor:
    """(1, total, ...) -> (N, longest, ...); `value` stands behind the shorter sequences.

    Ops pad with a step that leaves the state as it is, so that the last state is the final one.
    """
    return torch.nn.utils.rnn.pad_sequence(list(x[0].split(counts)), True, value)


def unpad(x: Tensor, counts: list[int]) -> Tensor:
    """(N, longest, ...) -> (1, total, ...)."""
    return torch.cat([row[:count] for row, count in zip(x, counts, strict=True)])[None]
