"""All weights at once from one perceptron (von Oswald et al. 2020)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clplat.errors import at_least
from hypernets.layout import Layout
from hypernets.perceptron import perceptron


class MLP(nn.Module):
    """Task embeddings (K, embedding) to the numbers (K, size) of a layout.

    Its last layer has a row for every number: it is larger than the target.
    """

    def __init__(self, layout: Layout, embedding: int = 32, hidden: Sequence[int] = (10, 10)):
        super().__init__()
        at_least("hypernet.generator", 1, embedding=embedding)
        self.width = embedding
        self.map = perceptron(embedding, hidden, layout.size)

    def embedding(self) -> Tensor:
        """A new task's, as it begins."""
        return torch.randn(self.width)

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.map(embeddings)
