"""What a run measures as it goes: the accuracy matrix, and the curve between its rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from clplat import metrics
from clplat.metrics import Matrix
from clplat.scenario import Scenario


class Course:
    """Takes each evaluation of a run where it belongs, and tells the record and the progress.

    `matrix` is the accuracy matrix so far; `curve` has the scores of every evaluation after one
    of training has begun, beside the experience of that moment; `anytime` the samples seen until
    then and the mean score over the test experiences seen.
    """

    def __init__(self, scenario: Scenario, record: Any, progress: Any, every: int | None):
        size = len(scenario.test_stream)
        self.scenario, self.record, self.progress = scenario, record, progress
        self.every = every  # iterations between evaluations inside experiences
        self.matrix: Matrix = np.full((size + 1, size), np.nan)
        self.curve: list[tuple[int, Sequence[float]]] = []
        self.anytime: list[tuple[int, float]] = []
        self._rows = 0  # filled, of the stream's marks

    def row(self, index: int, scores: Sequence[float]) -> None:
        """The scores after experience `index`; -1: before training."""
        self.matrix[index] = scores
        self.record.experience(index, self.matrix)
        if index >= 0:
            self.progress.experience(index + 1, float(self.matrix[index, : index + 1].mean()))

    def after_experience(self, index: int, samples: int, scores: Sequence[float]) -> None:
        """Between two experiences, after so many samples in all."""
        accuracy = self._point(index, samples, scores)
        if self.every:
            self.record.point(index, samples, accuracy, scores)
        self.row(index, scores)

    def during(self, experience: int, samples: int, scores: Sequence[float]) -> None:
        """Inside an experience; in a stream without boundaries, also where a row is due."""
        marks = self.scenario.marks
        if marks:
            experience = self._rows
        elif self.scenario.segments:
            experience = len(scores) - 1  # the test stream asks after all of them
        accuracy = self._point(experience, samples, scores)
        self.record.point(experience, samples, accuracy, scores)
        if marks:
            self.progress.samples(samples)
        while self._rows < len(marks) and samples >= marks[self._rows]:
            self.row(self._rows, scores)
            self._rows += 1

    def _point(self, experience: int, samples: int, scores: Sequence[float]) -> float:
        self.curve.append((experience, scores))
        begins = self.scenario.begins
        seen = [
            j for j, _ in enumerate(scores) if (samples >= begins[j] if begins else j <= experience)
        ]
        accuracy = float(np.mean([scores[j] for j in seen]))
        self.anytime.append((samples, accuracy))
        return accuracy

    def state_dict(self) -> dict[str, Any]:
        return {
            "matrix": torch.from_numpy(self.matrix.copy()),
            "curve": [(index, list(scores)) for index, scores in self.curve],
            "anytime": list(self.anytime),
            "rows": self._rows,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.matrix = state["matrix"].numpy()
        self.curve, self.anytime, self._rows = state["curve"], state["anytime"], state["rows"]

    def summary(self) -> dict[str, float | None]:
        """The metrics of the curve, which are none unless there were evaluations inside."""
        inside = bool(self.every and self.curve)
        return {
            "stability_gap": metrics.stability_gap(self.curve) if inside else None,
            "anytime_accuracy": metrics.anytime_accuracy(self.anytime) if inside else None,
        }
