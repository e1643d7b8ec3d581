"""Convolution kernels from small embeddings (static hypernetwork, Ha et al. 2017).

A kernel of `tile` inputs and outputs: a_i = W2_i z + b2_i for each input channel i, and
K_i = W1 a_i + b1. Larger convolutions are laid with such tiles, each of a z of its own; what
reaches over is cut off. Our reading for tasks: W1, W2 and their biases, one set a kernel size, are
shared, and every task has z's of its own. What is not a convolution is a task's own, entry for
entry, among its z's: it is neither shared nor forgotten.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clplat.errors import InputError, at_least
from hypernets.layout import Beginning, Direct, Layout, direct, kept


def _part(
    names: Sequence[str], value: Tensor, drawn: bool, rows: Tensor
) -> tuple[Direct, Beginning]:
    return (direct if drawn and value.ndim > 2 else kept)(names, value, drawn, rows)


def kernels_alone(target: nn.Module, classes: int | None = None) -> Layout:
    """The layout that goes with `Kernels`: all else is the target's own values and a change."""
    return Layout(target, classes, _part)


class Kernels(nn.Module):
    """Task embeddings (K, z's and what is no kernel) to the numbers (K, size) of a layout."""

    def __init__(self, layout: Layout, embedding: int = 64, tile: int = 16):
        super().__init__()
        at_least("hypernet.generator", 1, embedding=embedding, tile=tile)
        self.z, self.tile = embedding, tile
        parts: list[Any] = list(layout.parts)
        # The shape of each convolution's kernel, or how many numbers another parameter has.
        self.parts = [
            tuple(part.shape) if drawn and len(part.shape) > 2 else part.size
            for drawn, part in zip(layout.drawn, parts, strict=True)
        ]
        kernels = sorted({part[2:] for part in self.parts if isinstance(part, tuple)})
        if not kernels:
            raise InputError(
                "hypernet=kernels: the target has no convolution; choose backbone=convnet, "
                "resnet18 or resnet32, or another hypernet"
            )
        if layout.gains or any(not isinstance(part, Direct) for part in parts):
            raise InputError(
                "hypernet=kernels: it generates whole kernels and nothing else; its layout is "
                "hypernets.kernels.kernels_alone"
            )
        self.of_inputs = nn.ModuleDict()
        self.of_kernel = nn.ModuleDict()
        for kernel in kernels:
            self.of_inputs[_key(kernel)] = nn.Linear(embedding, tile * embedding)
            self.of_kernel[_key(kernel)] = nn.Linear(embedding, tile * math.prod(kernel))
        self.widths = [
            part if isinstance(part, int) else math.prod(self._tiles(part)) * embedding
            for part in self.parts
        ]

    def _tiles(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """How many tiles lie along the outputs and along the inputs."""
        return -(-shape[0] // self.tile), -(-shape[1] // self.tile)

    def embedding(self) -> Tensor:
        """A new task's, as it begins."""
        begins = [
            torch.zeros(width) if isinstance(part, int) else torch.randn(width)
            for width, part in zip(self.widths, self.parts, strict=True)
        ]
        return torch.cat(begins)

    def forward(self, embeddings: Tensor) -> Tensor:
        pieces = embeddings.split(self.widths, 1)
        return torch.cat(
            [
                piece if isinstance(part, int) else self._kernel(piece, part)
                for piece, part in zip(pieces, self.parts, strict=True)
            ],
            1,
        )

    def _kernel(self, z: Tensor, shape: tuple[int, ...]) -> Tensor:
        """(K, tiles * embedding) to (K, entries of the kernel)."""
        key, (down, across), tile = _key(shape[2:]), self._tiles(shape), self.tile
        z = z.unflatten(1, (down, across, self.z))
        of_inputs = self.of_inputs[key](z).unflatten(3, (tile, self.z))
        tiles = self.of_kernel[key](of_inputs)  # (K, down, across, in, out * kernel)
        tiles = tiles.unflatten(4, (tile, *shape[2:]))
        tiles = tiles.movedim(4, 2)  # (K, down, out, across, in, *kernel)
        whole = tiles.flatten(3, 4).flatten(1, 2)  # (K, outputs, inputs, *kernel)
        return whole[:, : shape[0], : shape[1]].flatten(1)


def _key(kernel: tuple[int, ...]) -> str:
    return "x".join(map(str, kernel))
