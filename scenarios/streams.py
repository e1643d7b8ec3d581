"""From tensors to the Avalanche scenario that everything else takes."""

from collections.abc import Sequence
from typing import Any

import torch
from avalanche.benchmarks import EagerCLStream
from avalanche.benchmarks.scenarios.dataset_scenario import DatasetExperience
from avalanche.benchmarks.scenarios.supervised import with_classes_timeline
from avalanche.benchmarks.scenarios.task_aware import with_task_labels
from torch import Tensor
from torch.utils.data import Dataset

from clplat.data import TensorData, avalanche_dataset
from clplat.prepare import Prepare
from clplat.scenario import Scenario
from scenarios.sources import Source

Pairs = Sequence[tuple[Tensor, Tensor]]  # x and y of each experience


def make_prepare(source: Source, normalise: bool, crop: int, flip: bool) -> Prepare:
    """How the images of a source become the model's inputs."""
    mean, std = source.statistics() if normalise else (None, None)
    return Prepare(mean, std, crop, flip)


def make_scenario(
    train: Pairs,
    test: Pairs,
    classes: int,
    task_labels: bool,
    prepare: Prepare,
    class_order: Sequence[int] | None = None,
    general: tuple[Tensor, Tensor] | None = None,
    **more: Any,
) -> Scenario:
    """Experience k of either stream has its k-th pair; its task is k, or 0 without labels.

    `general` is the one experience of a third stream, apart from the others. `more` is what
    `Scenario` takes beside: a score and a criterion that are not accuracy and cross-entropy, say.
    """
    streams = [
        _stream(name, pairs, task_labels, prepare)
        for name, pairs in (("train", train), ("test", test))
    ]
    if general is not None:
        streams.append(_stream("general", [general], False, prepare))
    return Scenario(
        streams,
        n_classes=classes,
        input_shape=tuple(train[0][0].shape[1:]),
        task_labels=task_labels,
        prepare=prepare,
        class_order=class_order,
        **more,
    )


def make_stream(
    train: tuple[Tensor, Tensor],
    test: Pairs,
    classes: int,
    marks: Sequence[int],
    prepare: Prepare,
    class_order: Sequence[int] | None = None,
) -> Scenario:
    """One training experience, in the order of its samples, without boundaries or task labels.

    Row k of the accuracy matrix is taken after `marks[k]` samples.
    """
    labels = train[1].long()
    begins = [int(torch.isin(labels, y.long()).nonzero()[0]) + 1 for _, y in test]
    return Scenario(
        [
            _stream("train", [train], False, prepare),
            _stream("test", test, False, prepare),
        ],
        n_classes=classes,
        input_shape=tuple(train[0].shape[1:]),
        prepare=prepare,
        class_order=class_order,
        marks=marks,
        begins=begins,
    )


def _stream(name: str, pairs: Pairs, task_labels: bool, prepare: Prepare) -> Any:
    leaves = [TensorData(x, y, k if task_labels else 0, prepare) for k, (x, y) in enumerate(pairs)]
    return stream_of(name, leaves)


def stream_of(name: str, leaves: Sequence[Dataset]) -> Any:
    """An Avalanche stream of one experience for each dataset, as `avalanche_dataset` takes them."""
    experiences = [DatasetExperience(dataset=avalanche_dataset(leaf)) for leaf in leaves]
    stream: Any = with_classes_timeline(EagerCLStream(name, experiences))
    return with_task_labels(stream)
