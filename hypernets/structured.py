"""Weights layer by layer: layers that are alike share a perceptron, each has an embedding."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clplat.errors import at_least
from hypernets.layout import Layout
from hypernets.perceptron import perceptron


class Structured(nn.Module):
    """Task embeddings (K, embedding) to the numbers (K, size) of a layout, a layer at a time.

    A perceptron for each kind of layer (the same parameters of the same shapes) reads the task's
    embedding and one learned for each layer of the kind. It pays where a target repeats its layers.
    """

    def __init__(
        self,
        layout: Layout,
        embedding: int = 32,
        layer_embedding: int = 32,
        hidden: Sequence[int] = (10, 10),
    ):
        super().__init__()
        at_least("hypernet.generator", 1, embedding=embedding, layer_embedding=layer_embedding)
        self.width = embedding
        self.layers = nn.Parameter(torch.randn(len(layout.layers), layer_embedding))
        kinds = list(dict.fromkeys((kind, size) for _, size, kind in layout.layers))
        self.kinds = [kinds.index((kind, size)) for _, size, kind in layout.layers]
        inputs = embedding + layer_embedding
        self.maps = nn.ModuleList(perceptron(inputs, hidden, size) for _, size in kinds)

    def embedding(self) -> Tensor:
        """A new task's, as it begins."""
        return torch.randn(self.width)

    def forward(self, embeddings: Tensor) -> Tensor:
        tasks, made = len(embeddings), {}
        for kind, perceptron_of_kind in enumerate(self.maps):
            members = [i for i, k in enumerate(self.kinds) if k == kind]
            inputs = [
                embeddings.unsqueeze(1).expand(-1, len(members), -1),
                self.layers[members].expand(tasks, -1, -1),
            ]
            outputs = perceptron_of_kind(torch.cat(inputs, 2)).unbind(1)
            made.update(zip(members, outputs, strict=True))
        return torch.cat([made[i] for i in range(len(self.kinds))], 1)
