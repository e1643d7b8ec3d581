"""A network for each task: the upper bound of generated ones, at as many times the weights."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hypernets.layout import Beginning, Direct, Layout, by_row


def _kept(
    names: Sequence[str], value: Tensor, drawn: bool, rows: Tensor
) -> tuple[Direct, Beginning]:
    part = Direct(names, value.shape)
    return part, Beginning(torch.ones(part.size), value.flatten(), by_row(rows, value.shape))


def kept(target: nn.Module, classes: int | None = None) -> Layout:
    """A layout of changes to the target's own values, each at its own scale."""
    return Layout(target, classes, _kept)


class Separate(nn.Module):
    """Nothing is generated: a task's embedding (size,) is the change of every weight, from 0."""

    def __init__(self, layout: Layout):
        super().__init__()
        self.width = layout.size

    def embedding(self) -> Tensor:
        """A new task's, as it begins."""
        return torch.zeros(self.width)

    def forward(self, embeddings: Tensor) -> Tensor:
        return embeddings
