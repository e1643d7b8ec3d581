"""Weights chunk by chunk from one small perceptron (von Oswald et al. 2020)."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clplat.errors import at_least
from hypernets.layout import Layout
from hypernets.perceptron import perceptron

log = logging.getLogger("clplat")


def clipped(chunk: int, size: int) -> int:
    """A chunk no larger than what there is to generate; a note where it was."""
    if chunk > size:
        note = "hypernet.generator.chunk=%d: made %d, which is all there is to fill"
        log.info(note, chunk, size)
    return min(chunk, size)


class Chunked(nn.Module):
    """Task embeddings (K, embedding) to the numbers (K, size) of a layout, `chunk` at a time.

    A perceptron reads the task's embedding and one learned for each chunk. Of the last chunk, what
    is over is left out.
    """

    def __init__(
        self,
        layout: Layout,
        embedding: int = 32,
        chunk_embedding: int = 32,
        hidden: Sequence[int] = (50, 50),
        chunk: int = 256,
    ):
        super().__init__()
        at_least(
            "hypernet.generator",
            1,
            embedding=embedding,
            chunk_embedding=chunk_embedding,
            chunk=chunk,
        )
        self.size, self.width = layout.size, embedding
        chunk = clipped(chunk, layout.size)
        self.chunks = nn.Parameter(torch.randn(-(-layout.size // chunk), chunk_embedding))
        self.map = perceptron(embedding + chunk_embedding, hidden, chunk)

    def embedding(self) -> Tensor:
        """A new task's, as it begins."""
        return torch.randn(self.width)

    def forward(self, embeddings: Tensor) -> Tensor:
        tasks, chunks = len(embeddings), len(self.chunks)
        inputs = [
            embeddings.unsqueeze(1).expand(-1, chunks, -1),
            self.chunks.expand(tasks, -1, -1),
        ]
        return self.map(torch.cat(inputs, 2)).flatten(1)[:, : self.size]
