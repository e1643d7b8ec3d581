"""Any Avalanche benchmark as a scenario, by the name of the function that makes it."""

import json
from pathlib import Path

import numpy as np
import pytest

from clplat.errors import InputError
from scenarios.avalanche import avalanche
from tests.command import Command

MODULE = """
import torch
from avalanche.benchmarks.scenarios.supervised import class_incremental_benchmark
from avalanche.benchmarks.scenarios.task_aware import task_incremental_benchmark
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from torch.utils.data import TensorDataset


def blobs(samples):
    y = torch.arange(6).repeat(samples)
    x = torch.nn.functional.one_hot(y, 6).float() + 0.1 * torch.randn(len(y), 6)
    return AvalancheDataset([TensorDataset(x, y)], data_attributes=[DataAttribute(y, "targets")])


def make(n_experiences, task_labels=False, seed=0):
    torch.manual_seed(seed)
    data = {"train": blobs(20), "test": blobs(5)}
    benchmark = class_incremental_benchmark(data, num_experiences=n_experiences)
    return task_incremental_benchmark(benchmark) if task_labels else benchmark
"""
RUN = (
    "--config-dir mylab scenario=avalanche scenario.benchmark._target_=blobs.make "
    "scenario.benchmark.n_experiences=3 optimizer.lr=0.01 train.epochs=40"
)


@pytest.fixture
def command(command) -> Command:
    Path("mylab").mkdir()
    Path("mylab/blobs.py").write_text(MODULE)
    return command


@pytest.mark.parametrize("strategy", ["finetune", "replay", "ewc", "lwf", "derpp", "joint"])
def test_every_kind_of_strategy_runs_on_a_benchmark_of_avalanches(command, strategy):
    outcome = command(f"{RUN} strategy={strategy} out=runs/a")
    assert outcome.status == 0, outcome.err
    matrix = np.load("runs/a/accuracy_matrix.npy")
    assert matrix.shape == (4, 3)
    assert np.diag(matrix).min() > 0.9  # the blobs are far apart
    forgets = json.loads(Path("runs/a/result.json").read_text())["forgetting"]
    assert (forgets > 0.5) == (strategy in ("finetune", "ewc", "lwf"))


def test_task_labels_of_the_benchmark_reach_the_model(command):
    labels = "+scenario.benchmark.task_labels=true scenario.task_labels=true"
    outcome = command(f"{RUN} {labels} out=runs/a")
    assert outcome.status == 0, outcome.err
    assert json.loads(Path("runs/a/result.json").read_text())["forgetting"] < 0.1


def test_a_count_of_experiences_that_is_not_the_benchmarks_is_refused(command):
    outcome = command(f"{RUN} scenario.experiences=4")
    assert outcome.status == 2
    assert "scenario.experiences=4: the benchmark has 3; set its own argument" in outcome.err


def test_classes_and_shape_are_read_from_the_data(avalanche_clusters):
    scenario = avalanche(avalanche_clusters(experiences=2, classes=3))
    assert (scenario.n_classes, scenario.input_shape) == (6, (1, 4, 4))
    assert not scenario.task_labels
    assert len(scenario.train_stream) == len(scenario.test_stream) == 2
    with pytest.raises(InputError, match="the benchmark has 2"):
        avalanche(avalanche_clusters(experiences=2, classes=3), experiences=3)
