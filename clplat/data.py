"""Avalanche datasets made of tensors, and any Avalanche dataset turned back into tensors."""

from typing import Any

import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.classification_dataset import (
    TaskAwareSupervisedClassificationDataset,
)
from avalanche.benchmarks.utils.data_attribute import DataAttribute, TaskLabels
from avalanche.benchmarks.utils.flat_data import ConstantSequence, FlatData
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from clplat.prepare import Prepare

Columns = list[Tensor]  # [x (N, ...), y (N,) or a target for each of its parts (N, ...), task (N,)]


class TensorData(Dataset):
    """Samples held as tensors: items are prepared as a loader wants them, columns are as stored."""

    def __init__(self, x: Tensor, y: Tensor, task: int = 0, prepare: Prepare = Prepare()):  # noqa: B008
        if len(x) != len(y):
            raise ValueError(f"x holds {len(x)} samples but y holds {len(y)} labels")
        self.columns: Columns = [x, y.long(), torch.full((len(y),), task)]
        self.task, self.prepare = task, prepare

    def __len__(self) -> int:
        return len(self.columns[1])

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        x, y, _ = self.columns
        return self.prepare(x[index : index + 1])[0], y[index] if y.ndim > 1 else int(y[index])


def avalanche_dataset(data: Any) -> TaskAwareSupervisedClassificationDataset:
    """Samples that lie ready (TensorData) or are drawn (DrawnData) behind Avalanche's interface:
    targets and task labels as attributes.

    To Avalanche, samples that are drawn or have several targets each are of one class, 0.
    """
    tasks = ConstantSequence(data.task, len(data))
    held = isinstance(data, TensorData) and data.columns[1].ndim == 1
    targets: Any = data.columns[1].tolist() if held else ConstantSequence(0, len(data))
    return TaskAwareSupervisedClassificationDataset(
        [data],
        data_attributes=[DataAttribute(targets, "targets"), TaskLabels(tasks)],
    )


def _plain(data: FlatData) -> bool:
    """Whether items come out as they were put in: no transform is set."""
    groups = [getattr(data, f"_{kind}_groups", None) for kind in ("transform", "frozen_transform")]
    # Default groups make their entries only when asked for one: so ask for those that are used.
    return all(
        group[name] is None
        for group in groups
        if group
        for name in {"train", "eval", *group.transform_groups}
    )


def _columns(data: object) -> Columns | None:
    """The tensors behind a tree of subsets and concatenations, or None where items are computed.

    `[x, y, task]` from TensorData leaves, `[x, y]` from torch's TensorDataset.
    """
    if isinstance(data, TensorData):
        return data.columns
    if isinstance(data, TensorDataset):
        return list(data.tensors[:2])
    if not isinstance(data, FlatData) or not data._datasets or not _plain(data):
        return None
    parts = [_columns(leaf) for leaf in data._datasets]
    if any(part is None or len(part) != len(parts[0] or ()) for part in parts):
        return None
    columns = parts[0] if len(parts) == 1 else [torch.cat(c) for c in zip(*parts, strict=True)]  # type: ignore[arg-type]
    if data._indices is None or columns is None:
        return columns
    index = torch.as_tensor(data._indices)
    return [column[index] for column in columns]


def _labels(data: Any) -> Tensor:
    """The values of an Avalanche attribute, read one by one only where they are not constant."""
    if isinstance(data, ConstantSequence):
        return torch.full((len(data),), int(data._constant_value))
    if isinstance(data, FlatData) and data._datasets:
        labels = torch.cat([_labels(part) for part in data._datasets])
        return labels if data._indices is None else labels[torch.as_tensor(data._indices)]
    return torch.as_tensor([int(label) for label in data], dtype=torch.long)


def first_leaf(data: object) -> object:
    """The first dataset at the bottom of a tree of subsets and concatenations."""
    return first_leaf(data._datasets[0]) if isinstance(data, FlatData) else data


def tensors_of(dataset: AvalancheDataset, stored: bool = True) -> Columns:
    """Every sample of an Avalanche dataset as `[x, y, task]`, whatever it is made of.

    `stored`: x as the data holds it (uint8 images stay uint8); otherwise as its items come out.
    Data that is not made of tensors is read item by item, once.
    """
    columns = _columns(dataset._flat_data)
    if columns is None:
        items: Any = dataset
        loader = DataLoader(items, batch_size=512, collate_fn=dataset.collate_fn)
        batches = [list(batch) for batch in loader]
        columns = [torch.cat([torch.as_tensor(b[i]) for b in batches]) for i in (0, 1)]
    leaf = first_leaf(dataset._flat_data)
    x = columns[0] if stored or not isinstance(leaf, TensorData) else leaf.prepare(columns[0])
    y = columns[1].long()
    task = getattr(dataset, "targets_task_labels", None)
    if task is not None:  # what Avalanche says, though the data may say otherwise
        return [x, y, _labels(task.data)]
    return [x, y, columns[2] if len(columns) > 2 else torch.zeros_like(y)]


def bytes_of(dataset: AvalancheDataset) -> int:
    """The bytes that a dataset's inputs take as tensors, judged by its first sample."""
    leaf = first_leaf(dataset._flat_data)
    if isinstance(leaf, TensorData | TensorDataset):
        sample = (leaf.columns if isinstance(leaf, TensorData) else leaf.tensors)[0][0]
    else:
        sample = torch.as_tensor(dataset[0][0])
    return sample.numel() * sample.element_size() * len(dataset)


def held_bytes(dataset: AvalancheDataset) -> int:
    """The bytes that a dataset's inputs and one label (int64) of each take as tensors."""
    return bytes_of(dataset) + 8 * len(dataset)
