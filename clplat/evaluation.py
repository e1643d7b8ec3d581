"""Scores of experiences, counted on the device and read once an experience."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

Score = Callable[[Tensor, Tensor], Tensor]  # output (B, C), target (B,) -> score per sample (B,)


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """1 where the largest logit is the target's, else 0."""
    return output.argmax(1) == target


class Evaluator(SupervisedPlugin):
    """Holds, after `eval`, the mean score of each experience of the stream in `scores`."""

    def __init__(self, score: Score = accuracy):
        super().__init__()
        self.score = score
        self.scores: list[float] = []
        self._sums: list[Tensor] = []
        self._count = 0

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        self.scores = []

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._sums, self._count = [], 0

    def after_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self._sums.append(self.score(strategy.mb_output, strategy.mb_y).sum())
        self._count += len(strategy.mb_y)

    def after_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.scores.append(float(torch.stack(self._sums).sum()) / self._count)

    def get_last_metrics(self) -> list[float]:
        """The scores; Avalanche's own loops ask for them, to return from `train` and `eval`."""
        return self.scores


class TrainingScore(SupervisedPlugin):
    """The mean training score of the current epoch, as `mean()`; costs no synchronisation."""

    def __init__(self, score: Score = accuracy):
        super().__init__()
        self.score = score
        self._sums: list[Tensor] = []
        self._count = 0

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        self._sums, self._count = [], 0

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        if strategy.mb_output.ndim != 2:
            return  # (B, views, D) of a contrastive loss: no prediction to score
        self._sums.append(self.score(strategy.mb_output.detach(), strategy.mb_y).sum())
        self._count += len(strategy.mb_y)

    def mean(self) -> float | None:
        """None where no output could be scored."""
        return float(torch.stack(self._sums).sum()) / self._count if self._sums else None


class DuringTraining(SupervisedPlugin):
    """Evaluates the test stream every k iterations, and once each of `marks` samples have come.

    `notify` is told (experience, samples, scores of all test experiences); samples are those of the
    whole training so far, each epoch's counted again, replayed ones not.
    """

    def __init__(
        self,
        stream: Sequence[Any],
        every: int | None,
        notify: Callable[..., None],
        marks: Sequence[int] = (),
    ):
        super().__init__()
        self.stream, self.every, self.notify, self.marks = stream, every, notify, marks
        self.samples = 0
        self._left = 0  # of the epoch's samples

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        self._left = len(strategy.adapted_dataset)

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        batch = min(strategy.train_mb_size, self._left)
        before, self.samples, self._left = self.samples, self.samples + batch, self._left - batch
        iteration = strategy.clock.train_exp_iterations + 1  # the clock counts after us
        due = self.every is not None and iteration % self.every == 0
        if due or any(before < mark <= self.samples for mark in self.marks):
            scores = list(strategy.eval(self.stream))
            self.notify(strategy.clock.train_exp_counter, self.samples, scores)
