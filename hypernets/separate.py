"""A network for each task: the upper bound of generated ones, at as many times the weights."""

import torch
from torch import Tensor, nn

from hypernets.layout import Layout, kept


def own_values(target: nn.Module, classes: int | None = None) -> Layout:
    """A layout of changes to the target's own values, each at its own scale."""
    return Layout(target, classes, kept)


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
