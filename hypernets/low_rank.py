"""Low-rank changes of a frozen network instead of its weights (as LoRA, Hu et al. 2022).

A matrix (out, in) is W + B A, with W its own values, B (out, rank) and A (rank, in) generated; a
convolution counts as (out, in * kernel). B begins at 0, so that the network begins as it was. A
generator makes rank (out + in) numbers instead of out * in: what large targets need.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from clplat.errors import at_least
from hypernets.layout import NO_CLASS, Beginning, Direct, Layout, by_row, direct


class Factored(nn.Module):
    """A parameter of two axes or more: its own value and a generated change of low rank."""

    base: Tensor

    def __init__(self, names: Sequence[str], value: Tensor, rank: int):
        super().__init__()
        self.names, self.shape, self.rank = list(names), value.shape, rank
        out, into = value.flatten(1).shape
        self.left, self.size = out * rank, (out + into) * rank
        self.register_buffer("base", value.clone())

    def forward(self, numbers: Tensor) -> Tensor:
        """(..., size) to (..., *shape)."""
        b = numbers[..., : self.left].unflatten(-1, (-1, self.rank))
        a = numbers[..., self.left :].unflatten(-1, (self.rank, -1))
        return self.base + (b @ a).reshape((*numbers.shape[:-1], *self.shape))


def _part(
    names: Sequence[str], value: Tensor, drawn: bool, rows: Tensor, rank: int
) -> tuple[Factored | Direct, Beginning]:
    """Factors where they are fewer than the entries; others are their own values plus a change."""
    if value.ndim < 2 or rank * sum(value.flatten(1).shape) >= value.numel():
        return direct(names, value, False, rows)
    part, (out, into) = Factored(names, value, rank), value.flatten(1).shape
    label = [by_row(rows, (out, rank)), torch.full((rank * into,), NO_CLASS)]
    return part, Beginning([(out * rank, 0.0), (into * rank, into**-0.5)], torch.cat(label))


def low_rank(target: nn.Module, classes: int | None = None, rank: int = 4) -> Layout:
    """The layout of a target whose matrices change by products of `rank`."""
    at_least("hypernet.layout", 1, rank=rank)
    return Layout(target, classes, partial(_part, rank=rank))
