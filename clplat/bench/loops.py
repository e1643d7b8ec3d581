"""The same training in a bare PyTorch loop, in ours, and in stock Avalanche."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
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
from torch import nn
from torch.utils.data import TensorDataset

from clplat.bench.data import Pairs
from clplat.bench.timing import clock
from clplat.evaluation import Evaluator, TrainingScore
from clplat.learner import Learner


def mlp(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def stream(pairs: Pairs) -> Any:
    """An Avalanche stream over the tensors as they are."""
    experiences = []
    for x, y in pairs:
        targets: Any = y.tolist()
        dataset: AvalancheDataset = TaskAwareSupervisedClassificationDataset(
            [TensorDataset(x, y)],
            data_attributes=[
                DataAttribute(targets, "targets"),
                TaskLabels(ConstantSequence(0, len(y))),
            ],
        )
        experiences.append(DatasetExperience(dataset=dataset))
    return with_task_labels(EagerCLStream("train", experiences))


Contender = Iterator[float]  # seconds of one experience after the other


def bare(pairs: Pairs, widths: tuple[int, ...], batch_size: int) -> Contender:
    """The loop that one would write by hand: data in memory, no metrics."""
    model = mlp(*widths)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for x, y in pairs:
        began = clock()
        for index in torch.randperm(len(y)).split(batch_size):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[index]), y[index])
            loss.backward()
            optimizer.step()
        yield clock() - began


def ours(train: Any, widths: tuple[int, ...], batch_size: int, plugins: Any = ()) -> Contender:
    """Our learner with the training accuracy counted."""
    learner = Learner(
        mlp(*widths),
        partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        batch_size=batch_size,
        plugins=[*plugins, TrainingScore()],
        evaluator=Evaluator(),
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
) -> Contender:
    """Avalanche's template, or another of its loops, with its accuracy metrics and no logger."""
    model = mlp(*widths)
    metrics = accuracy_metrics(epoch=True, experience=True, stream=True)
    strategy = template(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        train_mb_size=batch_size,
        eval_mb_size=512,
        plugins=list(plugins),
        evaluator=EvaluationPlugin(metrics, loggers=[]),
    )
    for experience in train:
        began = clock()
        strategy.train(experience, eval_streams=[])
        yield clock() - began
