"""Learning one scenario: from experience to experience, or along a stream without boundaries."""

from collections.abc import Callable
from typing import Any

import torch
from avalanche.core import SupervisedPlugin

from clplat.build import build_analysis, build_learner
from clplat.course import Course
from clplat.evaluation import DuringTraining, TrainingScore
from clplat.footprint import measured
from clplat.keeper import Keeper
from clplat.metrics import Matrix
from clplat.record import Record
from clplat.resumable import Checkpoints, keeps_state, restored
from clplat.scenario import Scenario


class Epochs(SupervisedPlugin):
    """Tells the record and the progress bar of each epoch that ends, and gives signs of life."""

    def __init__(self, training: TrainingScore, advance: Callable[[], None]):
        super().__init__()
        self.training, self.advance = training, advance
        self.record: Record | None = None

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        if self.record is not None:
            self.record.status.alive()

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
        self.checkpoints = Checkpoints()
        self.learner, self.strategy = build_learner(
            config, scenario, [training, self.epochs, *watching], weights, self.checkpoints
        )
        self.resumable = keeps_state(self.learner, self.strategy)
        self.analysis = build_analysis(config, self.learner, scenario)
        self.measured: dict[str, float] = {}

    def learn(
        self, record: Record, label: str, keeper: Keeper, saved: dict[str, Any] | None = None
    ) -> Matrix:
        """The accuracy matrix; `label` names the run where its progress is shown.

        Goes on from what was `saved`; `keeper` saves the run where it can be.
        """
        scenario, learner, seed = self.scenario, self.learner, self.config["seed"]
        self.epochs.record = record
        self.course = Course(scenario, record, self.progress, self.config["eval"]["every"])
        self.checkpoints.keeper = keeper if self.resumable else None
        first, place = 0, None
        if saved:
            first = saved["index"]
            self.course.load_state_dict(saved["course"])
            self.measured = saved["measured"]
            if "analysis" in saved:
                self.analysis.load_state_dict(saved["analysis"])
            evaluated = [] if scenario.segments else self.tests
            place = restored(learner, saved, evaluated, scenario.train_stream[:first])
        if scenario.marks:
            self.progress.start(label, seed, scenario.marks[-1], "samples", self.during.samples)
        else:
            epochs = self.config["train"]["epochs"]
            done = first * epochs + (place.epoch if place else 0)
            total = len(scenario.train_stream) * epochs
            self.progress.start(label, seed, total, "epochs", done, each=epochs)

        if not scenario.segments and not saved:
            self.course.row(-1, learner.eval(self.tests))
        for index, experience in enumerate(scenario.train_stream[first:], first):
            self.checkpoints.experience_begins(learner, index)
            learner.train(experience, **({"place": place} if place else {}))  # Avalanche's has none
            place = None
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

    def state_dict(self) -> dict[str, Any]:
        state = {"course": self.course.state_dict(), "measured": self.measured}
        if hasattr(self.analysis, "state_dict"):
            state["analysis"] = self.analysis.state_dict()
        return state

    def summary(self) -> dict[str, Any]:
        own = measured(self.strategy, self.learner.model)
        return {**self.course.summary(), "measured": own | self.measured}
