"""Many independent tasks, each learnt anew, and means over them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from clplat import metrics
from clplat.build import build_analysis, build_learner
from clplat.data import held_bytes
from clplat.errors import InputError
from clplat.evaluation import Evaluator
from clplat.footprint import measured, memory_bytes
from clplat.keeper import Keeper
from clplat.learner import Learner
from clplat.metrics import Matrix
from clplat.record import Record
from clplat.scenario import Scenario, seed_of_task


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Of each sample: (B, C) and (B,) -> (B,)."""
    return nn.functional.cross_entropy(output, target, reduction="none")


def learn_task(learner: Any, task: Scenario) -> Matrix:
    """The accuracy matrix of one task, learnt from support set to support set."""
    size = len(task.test_stream)
    matrix = np.full((size + 1, size), np.nan)
    matrix[-1] = learner.eval(task.test_stream)
    for index, experience in enumerate(task.train_stream):
        learner.train(experience)
        matrix[index] = learner.eval(task.test_stream)
    return matrix


def multiply_accumulates(learner: Any, task: Scenario) -> int | None:
    """Of learning a task and of one evaluation at its end: half the floating-point operations.

    As torch counts them: of matrix products and convolutions, not of kernels of our own. None in
    Avalanche's own loops, some of which the counting breaks.
    """
    if not isinstance(learner, Learner):
        return None
    with FlopCounterMode(display=False) as counter:
        for experience in task.train_stream:
            learner.train(experience)
        learner.eval(task.test_stream)
    return counter.get_total_flops() // 2


def seeds_of_task(config: dict[str, Any], task: int) -> dict[str, Any]:
    """A run's config with seeds of the task's own for initial weights and training."""
    own = {key: seed_of_task(config[key], task) for key in ("seed_init", "seed_train")}
    return {**config, **own}


def across_task_memory(held: int, task: Scenario) -> float:
    """ATM: bytes held over those of all support samples, labels included (Antoniou et al. 2020)."""
    return held / sum(held_bytes(experience.dataset) for experience in task.train_stream)


def over_tasks(scores: Sequence[float], losses: Sequence[float]) -> dict[str, float | None]:
    """Means and deviations; `accuracy_interval` is half the 95 % confidence interval.

    A single task has neither deviations nor an interval: they are None.
    """
    of_scores, of_losses = (
        float(np.std(values, ddof=1)) if len(values) > 1 else None for values in (scores, losses)
    )
    return {
        "tasks": len(scores),
        "accuracy_deviation": of_scores,
        "accuracy_interval": None if of_scores is None else 1.96 * of_scores / len(scores) ** 0.5,
        "cross_entropy": float(np.mean(losses)),
        "cross_entropy_deviation": of_losses,
    }


class SeriesRun:
    """Learns every task of a scenario afresh; the matrix is the mean over tasks.

    `weights` are those that the encoder of every task begins with, None for some of its own.
    """

    resumable = True

    def __init__(
        self,
        config: dict[str, Any],
        scenario: Scenario,
        progress: Any,
        weights: dict[str, Any] | None = None,
    ):
        if config["eval"]["every"] is not None:
            raise InputError(
                f"eval.every={config['eval']['every']}: tasks as small as these are evaluated "
                "after each support set alone; set eval.every=null"
            )
        self.config, self.scenario, self.progress = config, scenario, progress
        self.weights = weights
        self.losses = Evaluator(cross_entropy)
        self.learner, self.strategy = self._make(0, scenario)
        if build_analysis(config, self.learner, scenario):
            raise InputError(
                "analysis: it looks at one network and these are many, one a task; set "
                "analysis=none"
            )
        self.results: dict[str, Any] = {}
        self.matrices: list[Matrix] = []  # of the tasks so far,
        self.done: list[float] = []  # and their losses

    def _make(self, number: int, task: Scenario) -> tuple[Any, Any]:
        config = seeds_of_task(self.config, number)
        return build_learner(config, task, [self.losses], self.weights)

    def learn(
        self, record: Record, label: str, keeper: Keeper, saved: dict[str, Any] | None = None
    ) -> Matrix:
        """The mean accuracy matrix; `label` names the run where its progress is shown.

        Goes on from what was `saved`; `keeper` saves what the tasks gave, between two of them.
        """
        tasks = self.scenario.tasks
        if saved:
            self.matrices, self.done = [m.numpy() for m in saved["matrices"]], saved["done"]
        matrices, losses = self.matrices, self.done
        self.progress.start(label, self.config["seed"], len(tasks), "tasks", len(losses))
        work = multiply_accumulates(self.learner, self.scenario)
        for number, task in enumerate(tasks[len(losses) :], len(losses)):
            if keeper.due("experiences"):
                keeper.save({})
            self.learner, self.strategy = self._make(number, task)
            matrices.append(learn_task(self.learner, task))
            losses.append(float(np.mean(self.losses.scores)))
            score = metrics.accuracy(matrices[-1])
            record.task(number, score, losses[-1])
            self.progress.task(score)
        matrix = np.mean(matrices, axis=0)
        for index in range(-1, len(matrix) - 1):
            record.experience(index, matrix)

        held = memory_bytes(self.strategy, self.learner.model)
        self.results = {
            **over_tasks([metrics.accuracy(matrix) for matrix in matrices], losses),
            "across_task_memory": None if held is None else across_task_memory(held, self.scenario),
            "multiply_accumulates": work,
            "measured": measured(self.strategy, self.learner.model),
        }
        return matrix

    def state_dict(self) -> dict[str, Any]:
        matrices = [torch.from_numpy(matrix) for matrix in self.matrices]
        return {"matrices": matrices, "done": list(self.done)}

    def summary(self) -> dict[str, Any]:
        return self.results
