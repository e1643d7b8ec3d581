"""From tensors to the Avalanche scenario that everything else takes."""

from collections.abc import Sequence

from avalanche.benchmarks import EagerCLStream
from avalanche.benchmarks.scenarios.dataset_scenario import DatasetExperience
from avalanche.benchmarks.scenarios.supervised import with_classes_timeline
from avalanche.benchmarks.scenarios.task_aware import with_task_labels
from torch import Tensor

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
) -> Scenario:
    """Experience k of either stream has its k-th pair; its task is k, or 0 without labels."""
    streams = []
    for name, pairs in (("train", train), ("test", test)):
        leaves = [
            TensorData(x, y, k if task_labels else 0, prepare) for k, (x, y) in enumerate(pairs)
        ]
        experiences = [DatasetExperience(dataset=avalanche_dataset(leaf)) for leaf in leaves]
        stream = with_classes_timeline(EagerCLStream(name, experiences))
        streams.append(with_task_labels(stream))
    return Scenario(
        streams,
        n_classes=classes,
        input_shape=tuple(train[0][0].shape[1:]),
        task_labels=task_labels,
        prepare=prepare,
        class_order=class_order,
    )
