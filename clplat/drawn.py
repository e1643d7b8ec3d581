"""Experiences that draw fresh samples for every batch, on the device, instead of holding some."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from avalanche.benchmarks.utils import AvalancheDataset
from torch import Tensor
from torch.utils.data import Dataset

from clplat.data import Columns, first_leaf

# x (B, ...) and y (B, ...) of so many samples, on the generator's device; x of one length a call.
Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


class DrawnData(Dataset):
    """`samples` to an epoch, drawn anew each time; in evaluation those of `seed`, always the same.

    As a dataset of items, which other loops ask for, it holds single samples of that seed.
    """

    def __init__(self, draw: Draw, samples: int, task: int, seed: int):
        self.draw, self.samples, self.task, self.seed = draw, samples, task, seed

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = self.draw(1, torch.Generator().manual_seed(self.seed + index))
        return x[0], y[0]


class DrawnBatches:
    """Iterate over `[x, y, task]`: fresh batches by a seed from `order`, or the data's own."""

    def __init__(
        self,
        data: DrawnData,
        batch_size: int,
        device: torch.device,
        order: torch.Generator | None,
    ):
        self.data, self.batch_size, self.device, self.order = data, batch_size, device, order

    def __len__(self) -> int:
        return -(-len(self.data) // self.batch_size)

    def __iter__(self) -> Iterator[Columns]:
        seed = self.data.seed
        if self.order is not None:
            seed = int(torch.randint(2**62, (), generator=self.order))
        generator = torch.Generator(self.device).manual_seed(seed)
        for start in range(0, len(self.data), self.batch_size):
            count = min(self.batch_size, len(self.data) - start)
            x, y = self.data.draw(count, generator)
            yield [x, y, torch.full((count,), self.data.task, device=self.device)]


def drawn_data(dataset: AvalancheDataset) -> DrawnData | None:
    """What a dataset draws its samples from, if it does."""
    leaf: Any = first_leaf(dataset._flat_data)
    return leaf if isinstance(leaf, DrawnData) else None
