"""The same training in a bare PyTorch loop, in ours, and in stock Avalanche."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from avalanche.benchmarks import EagerCLStream
from avalanche.benchmarks.scenarios.dataset_scenario import DatasetExperience
from avalanche.benchmarks.scenarios.task_aware import with_task_labels
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.classification_dataset import (
    TaskAwareSupervisedClassificationDataset,
)
from avalanche.benchmarks.utils.data_attribute import DataAttribute, TaskLabels
from avalanche.benchmarks.utils.flat_data import ConstantSequence
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from clplat.bench.data import Pairs
from clplat.bench.timing import clock
from clplat.evaluation import Evaluator, TrainingScore
from clplat.learner import Learner


def mlp(*widths: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class IntegerLabels(Dataset):
    """Samples as Avalanche's iCaRL wants them."""

    def __init__(self, x: Tensor, y: Tensor):
        self.x, self.labels = x, y.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index], self.labels[index]


def stream(pairs: Pairs, samples: Callable[[Tensor, Tensor], Dataset] = TensorDataset) -> Any:
    """An Avalanche stream over the tensors as they are."""
    experiences = []
    for x, y in pairs:
        targets: Any = y.tolist()
        dataset: AvalancheDataset = TaskAwareSupervisedClassificationDataset(
            [samples(x, y)],
            data_attributes=[
                DataAttribute(targets, "targets"),
                TaskLabels(ConstantSequence(0, len(y))),
            ],
        )
        experiences.append(DatasetExperience(dataset=dataset))
    made: Any = with_task_labels(EagerCLStream("train", experiences))
    classes = [sorted(y.unique().tolist()) for _, y in pairs]
    for experience, own in zip(made, classes, strict=True):
        experience.classes_in_this_experience = own  # read by heads that grow
        experience.benchmark = SimpleNamespace(  # read by Avalanche's iCaRL
            classes_order=[c for some in classes for c in some],
            n_classes_per_exp=[len(some) for some in classes],
        )
    return made


Contender = Iterator[float]  # seconds of one experience after the other


def bare(pairs: Pairs, widths: tuple[int, ...], batch_size: int) -> Contender:
    """The loop that one would write by hand: data in memory, no metrics."""
    model = mlp(*widths)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for x, y in pairs:
        began = clock()
        for index in torch.randperm(len(y)).split(batch_size):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[index]), y[index])
            loss.backward()
            optimizer.step()
        yield clock() - began


def ours(
    train: Any,
    widths: tuple[int, ...],
    batch_size: int,
    plugins: Any = (),
    wrap: Callable[[nn.Sequential], nn.Module] = lambda network: network,
    seed: int = 0,
) -> Contender:
    """Our learner with the training accuracy counted."""
    learner = Learner(
        wrap(mlp(*widths, seed=seed)),
        partial(torch.optim.SGD, lr=0.01, momentum=0.9),
        batch_size=batch_size,
        plugins=[*plugins, TrainingScore()],
        evaluator=Evaluator(),
        order=torch.Generator().manual_seed(seed),
    )
    for experience in train:
        began = clock()
        learner.train(experience)
        yield clock() - began


def avalanche(
    train: Any,
    widths: tuple[int, ...],
    batch_size: int,
    plugins: Any = (),
    template: Callable[..., Any] = SupervisedTemplate,
    seed: int = 0,
) -> Contender:
    """Avalanche's template, or another of its loops, with its accuracy metrics and no logger."""
    model = mlp(*widths, seed=seed)
    metrics = accuracy_metrics(epoch=True, experience=True, stream=True)
    strategy = template(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        train_mb_size=batch_size,
        eval_mb_size=512,
        plugins=list(plugins),
        evaluator=EvaluationPlugin(metrics, loggers=[]),
    )
    for experience in train:
        began = clock()
        strategy.train(experience, eval_streams=[])
        yield clock() - began
