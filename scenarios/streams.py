"""From tensors to the Avalanche scenario that everything else takes."""

from collections.abc import Callable, Sequence

from avalanche.benchmarks import CLScenario, EagerCLStream
from avalanche.benchmarks.scenarios.dataset_scenario import DatasetExperience
from avalanche.benchmarks.scenarios.supervised import with_classes_timeline
from avalanche.benchmarks.scenarios.task_aware import with_task_labels
from torch import Tensor

from clplat.data import TensorData, avalanche_dataset
from clplat.evaluation import accuracy
from clplat.prepare import Prepare
from scenarios.sources import Source

Pairs = Sequence[tuple[Tensor, Tensor]]  # x and y of each experience


def make_prepare(source: Source, normalise: bool, crop: int, flip: bool) -> Prepare:
    """How the images of a source become the model's inputs."""
    mean, std = source.statistics() if normalise else (None, None)
    return Prepare(mean, std, crop, flip)


def make_scenario(
    train: Pairs, test: Pairs, classes: int, task_labels: bool, prepare: Prepare
) -> CLScenario:
    """Experience k of either stream has the data of its k-th pair; its task is k, or 0 without labels."""
    streams = []
    for name, pairs in (("train", train), ("test", test)):
        leaves = [
            TensorData(x, y, k if task_labels else 0, prepare) for k, (x, y) in enumerate(pairs)
        ]
        experiences = [DatasetExperience(dataset=avalanche_dataset(leaf)) for leaf in leaves]
        streams.append(EagerCLStream(name, experiences))
    scenario = with_task_labels(with_classes_timeline(CLScenario(streams)))
    return describe(scenario, classes, task_labels, tuple(train[0][0].shape[1:]), prepare)


def describe(
    scenario: CLScenario,
    n_classes: int,
    task_labels: bool,
    input_shape: tuple[int, ...],
    prepare: Prepare = Prepare(),  # noqa: B008
    score: Callable = accuracy,
) -> CLScenario:
    """Give a scenario what the rest of the platform reads of it."""
    scenario.n_classes, scenario.task_labels = n_classes, task_labels
    scenario.input_shape, scenario.prepare, scenario.score = input_shape, prepare, score
    return scenario
