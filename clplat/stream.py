"""Learning one scenario: from experience to experience, or along a stream without boundaries."""

from collections.abc import Callable
from typing import Any

import torch
from avalanche.core import SupervisedPlugin

from clplat.build import build_analysis, build_learner
from clplat.course import Course
from clplat.evaluation import DuringTraining, TrainingScore
from clplat.footprint import measured
from clplat.metrics import Matrix
from clplat.record import Record
from clplat.scenario import Scenario


class Epochs(SupervisedPlugin):
    """Tells the record and the progress bar of each epoch that ends."""

    def __init__(self, training: TrainingScore, advance: Callable[[], None]):
        super().__init__()
        self.training, self.advance = training, advance
        self.record: Record | None = None

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        clock, losses = strategy.clock, getattr(strategy, "losses", [])
        loss = float(torch.stack(list(losses)).mean()) if len(losses) else None
        if self.record is not None:
            self.record.epoch(
                clock.train_exp_counter,
                clock.train_exp_epochs,
                clock.train_iterations,
                loss,
                self.training.mean(),
            )
        self.advance()


class StreamRun:
    """Trains on every experience of a scenario, and evaluates all of them after each.

    Evaluates inside experiences too where the config or the scenario says so. `weights` are those
    that the encoder begins with.
    """

    def __init__(
        self,
        config: dict[str, Any],
        scenario: Scenario,
        progress: Any,
        weights: dict[str, Any] | None = None,
    ):
        self.config, self.scenario, self.progress = config, scenario, progress
        self.tests = list(scenario.test_stream)
        training, every = TrainingScore(scenario.score), config["eval"]["every"]
        self.epochs = Epochs(training, progress.advance)
        self.during = DuringTraining(
            self.tests, every, lambda *what: self.course.during(*what), marks=scenario.marks
        )
        watching = [self.during] if every or scenario.marks else []
        self.learner, self.strategy = build_learner(
            config, scenario, [training, self.epochs, *watching], weights
        )
        self.analysis = build_analysis(config, self.learner)
        self.measured: dict[str, float] = {}

    def learn(self, record: Record, label: str) -> Matrix:
        """The accuracy matrix; `label` names the run where its progress is shown."""
        scenario, learner, seed = self.scenario, self.learner, self.config["seed"]
        self.epochs.record = record
        self.course = Course(scenario, record, self.progress, self.config["eval"]["every"])
        if scenario.marks:
            self.progress.start(label, seed, scenario.marks[-1], "samples")
        else:
            total = len(scenario.train_stream) * self.config["train"]["epochs"]
            self.progress.start(label, seed, total, "epochs")

        if not scenario.segments:
            self.course.row(-1, learner.eval(self.tests))
        for index, experience in enumerate(scenario.train_stream):
            learner.train(experience)
            if not scenario.marks and not scenario.segments:
                scores = learner.eval(self.tests)
                self.course.after_experience(index, self.during.samples, scores)
            if self.analysis:
                self._measure(record, index, self.analysis.after_experience(learner, index))
        for index in range(-1, len(scenario.segments) - 1):
            self.course.row(index, learner.eval(scenario.segments[index]))
        if self.analysis:
            last = len(scenario.train_stream) - 1
            self._measure(record, last, self.analysis.at_end(learner, scenario))
        return self.course.matrix

    def _measure(self, record: Record, index: int, values: dict[str, Any]) -> None:
        record.analysis(index, values)
        self.measured |= {name: v for name, v in values.items() if isinstance(v, float)}

    def summary(self) -> dict[str, Any]:
        own = measured(self.strategy, self.learner.model)
        return {**self.course.summary(), "measured": own | self.measured}
