"""Scores of experiences, counted on the device and read once an experience."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

# (output (B, C), target (B,)) -> the score of each sample (B,). A score with a method `weight`,
# from targets to (B,), has the mean weighted by it: bits per character, over texts of any length.
Score = Callable[[Tensor, Tensor], Tensor]


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """1 where the largest logit is the target's, else 0."""
    return output.argmax(1) == target


class MeanScore:
    """The mean of a score over batches, which costs no synchronisation until it is asked for."""

    def __init__(self, score: Score):
        self.score = score
        self._sums: list[Tensor] = []
        self._count: Any = 0

    def add(self, output: Tensor, target: Tensor) -> None:
        scores = self.score(output, target)
        weigh: Any = getattr(self.score, "weight", None)
        if weigh is not None:
            weight = weigh(target)
            self._sums.append((scores * weight).sum())
            self._count = self._count + weight.sum()
        else:
            self._sums.append(scores.sum())
            self._count += len(target)

    def state_dict(self) -> dict[str, Any]:
        return {"sums": list(self._sums), "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums, self._count = list(state["sums"]), state["count"]

    def mean(self) -> float | None:
        """None where there was nothing to score."""
        return float(torch.stack(self._sums).sum()) / float(self._count) if self._sums else None


class Evaluator(SupervisedPlugin):
    """Holds, after `eval`, the mean score of each experience of the stream in `scores`."""

    def __init__(self, score: Score = accuracy):
        super().__init__()
        self.score = score
        self.scores: list[float] = []
        self._mean = MeanScore(score)

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        self.scores = []

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._mean = MeanScore(self.score)

    def after_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self._mean.add(strategy.mb_output, strategy.mb_y)

    def after_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.scores.append(self._mean.mean())  # type: ignore[arg-type] - no experience is empty

    def get_last_metrics(self) -> list[float]:
        """The scores; Avalanche's own loops ask for them, to return from `train` and `eval`."""
        return self.scores


class TrainingScore(SupervisedPlugin):
    """The mean training score of the current epoch, as `mean()`; costs no synchronisation."""

    def __init__(self, score: Score = accuracy):
        super().__init__()
        self.score = score
        self._mean = MeanScore(score)

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        self._mean = MeanScore(self.score)

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        if strategy.mb_output.ndim != strategy.mb_y.ndim + 1:
            return  # (B, views, D) of a contrastive loss: no prediction to score
        self._mean.add(strategy.mb_output.detach(), strategy.mb_y)

    def state_dict(self) -> dict[str, Any]:
        return self._mean.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._mean.load_state_dict(state)

    def mean(self) -> float | None:
        """None where no output could be scored."""
        return self._mean.mean()


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

    def state_dict(self) -> dict[str, Any]:
        return {"samples": self.samples, "left": self._left}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.samples, self._left = state["samples"], state["left"]
