"""Batches by index from data that is resident on the device, and what strategies read of them."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from avalanche.benchmarks.utils import AvalancheDataset
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from clplat.data import Columns, bytes_of, tensors_of
from clplat.drawn import DrawnBatches, drawn_data


class Batches:
    """Iterate over `[x, y, task]` in batches; a new random order each time if given a generator.

    `drop_last` leaves out a last batch that is smaller than the others.
    """

    def __init__(
        self,
        columns: Columns,
        batch_size: int,
        order: torch.Generator | None = None,
        drop_last: bool = False,
    ):
        self.columns, self.batch_size, self.order = columns, batch_size, order
        samples = len(columns[1])
        self.samples = samples - samples % batch_size if drop_last else samples

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def __iter__(self) -> Iterator[Columns]:
        if not self.samples:
            return
        if self.order is None:
            split = (c[: self.samples].split(self.batch_size) for c in self.columns)
            yield from map(list, zip(*split, strict=True))
            return
        permutation = torch.randperm(len(self.columns[1]), generator=self.order)[: self.samples]
        for index in permutation.to(self.columns[0].device).split(self.batch_size):
            yield [column.index_select(0, index) for column in self.columns]


class Shuffled(Sampler):
    """Indices in a new random order each time, by the draws that `Batches` makes and no others."""

    def __init__(self, samples: int, order: torch.Generator):
        self.samples, self.order = samples, order

    def __len__(self) -> int:
        return self.samples

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(self.samples, generator=self.order).tolist())


def make_batches(
    dataset: AvalancheDataset,
    batch_size: int,
    device: torch.device,
    order: torch.Generator | None = None,
    resident_bytes: float = float("inf"),
    workers: int = 0,
    drop_last: bool = False,
) -> Iterable[Columns]:
    """Fresh batches where the data draws them, else resident ones, or a DataLoader where the data
    would take more than `resident_bytes`.
    """
    if drawn := drawn_data(dataset):
        return DrawnBatches(drawn, batch_size, device, order)
    if bytes_of(dataset) <= resident_bytes:
        return Batches([c.to(device) for c in tensors_of(dataset)], batch_size, order, drop_last)
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_size=batch_size,
        sampler=None if order is None else Shuffled(len(dataset), order),
        # A loader draws its workers' seeds; neither the order nor the global generator may feel it.
        generator=torch.Generator().manual_seed(torch.initial_seed()),
        drop_last=drop_last,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
        collate_fn=dataset.collate_fn,
    )


# What a strategy reads of the loop it runs in. Our learner keeps inputs as stored beside the
# prepared ones; in Avalanche's own loop there is only the batch as its loader made it.


def stored_inputs(strategy: Any) -> Tensor:
    """The current batch's inputs as a memory should hold them: neither scaled nor augmented."""
    return getattr(strategy, "stored_x", strategy.mb_x)


def prepared(strategy: Any, x: Tensor, training: bool) -> Tensor:
    """Inputs as `stored_inputs` gives them, made ready for the model; augmented if `training`."""
    return strategy.prepare(x, training) if hasattr(strategy, "prepare") else x


def ordered(strategy: Any) -> bool:
    """Whether the current experience is a stream without boundaries, whose samples come once."""
    return getattr(strategy.experience, "ordered", False)


def experience_columns(strategy: Any) -> Columns:
    """All samples of the current experience at once, as `experience_batches` gives them."""
    batches = zip(*experience_batches(strategy), strict=True)
    return [torch.cat(column) for column in batches]


def experience_batches(strategy: Any, batch_size: int | None = None) -> Iterable[Columns]:
    """The current experience's samples in order, in the form that `stored_inputs` gives."""
    dataset, size = strategy.experience.dataset, batch_size or strategy.eval_mb_size
    if hasattr(strategy, "make_batches"):
        return strategy.make_batches(dataset, size)
    device = torch.device(strategy.device)
    return Batches([c.to(device) for c in tensors_of(dataset, stored=False)], size)
