"""One run, from a config to a finished run directory."""

import logging
import platform
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.core import SupervisedPlugin

from clplat import metrics
from clplat.build import build_learner, build_scenario
from clplat.course import Course
from clplat.digest import SEEDS
from clplat.directory import MATRIX, read_result
from clplat.errors import InputError
from clplat.evaluation import DuringTraining, TrainingScore
from clplat.metrics import Matrix
from clplat.quiet import hush_avalanche
from clplat.record import Record

log = logging.getLogger("clplat")

PACKAGES = ("clplat", "torch", "avalanche-lib", "numpy")


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


def memory_bytes(strategy: Any) -> int | None:
    """What a strategy holds between experiences; None where it does not say."""
    if hasattr(strategy, "memory_bytes"):
        return int(strategy.memory_bytes)
    if not hasattr(strategy, "state_dict"):
        return None
    return sum(t.numel() * t.element_size() for t in _tensors(strategy.state_dict()))


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in _tensors(v)] if isinstance(value, list | tuple) else []


def peak_memory(device: torch.device) -> int:
    """Most bytes taken so far: of the device's memory on CUDA, of the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def joint_matrix(reference: str | None, scenario_name: str, size: int) -> Matrix | None:
    """The accuracy matrix of the joint run that intransigence is measured against."""
    if reference is None:
        return None
    result = read_result(Path(reference))
    if result is None or result["scenario"] != scenario_name or result["experiences"] != size:
        given = f"a run of {result['scenario']}" if result else "no finished run"
        raise InputError(
            f"reference={reference}: holds {given}; expected a finished joint run of "
            f"{scenario_name} with {size} experiences; run strategy=joint first"
        )
    return np.load(Path(reference) / MATRIX, allow_pickle=False)


def run(
    config: dict[str, Any],
    *,
    out: Path,
    digest: str,
    names: dict[str, str],
    folders: list[Path],
    progress: Any,
) -> dict[str, Any]:
    """Train on every experience, evaluate all after each, and leave a finished run directory.

    `config` is resolved and checked; `names` are the chosen files of its groups; `progress` is
    told what happens (see `clplat.progress`). Returns the result.
    """
    seeds = {key: config[key] for key in SEEDS}
    hush_avalanche()
    torch.set_num_threads(config["threads"])
    scenario = build_scenario(config, folders)
    train_stream, test_stream = list(scenario.train_stream), list(scenario.test_stream)
    size = len(test_stream)
    counted = test_stream if scenario.marks else train_stream
    if len(counted) != size:
        raise InputError(
            f"scenario={names['scenario']}: {len(train_stream)} experiences to train on but {size} "
            "to test on; an accuracy matrix needs as many of both; choose another benchmark"
        )
    joint = joint_matrix(config["reference"], names["scenario"], size)
    training, every = TrainingScore(scenario.score), config["eval"]["every"]
    epochs = Epochs(training, progress.advance)
    during = DuringTraining(
        test_stream, every, lambda *what: course.during(*what), marks=scenario.marks
    )
    observers = [training, epochs, *([during] if every or scenario.marks else [])]
    learner, strategy = build_learner(config, scenario, observers)

    began = time.perf_counter()
    record = epochs.record = Record(out, config, digest, names)
    course = Course(scenario, record, progress, every)
    try:
        if scenario.marks:
            progress.start(names["strategy"], seeds["seed"], scenario.marks[-1], "samples")
        else:
            epochs_in_all = size * config["train"]["epochs"]
            progress.start(names["strategy"], seeds["seed"], epochs_in_all, "epochs")
        course.row(-1, learner.eval(test_stream))
        for index, experience in enumerate(train_stream):
            learner.train(experience)
            if not scenario.marks:
                course.after_experience(index, during.samples, learner.eval(test_stream))
        matrix = course.matrix
        result = {
            **names,
            "experiences": size,
            "score": scenario.score.__name__.replace("_", " "),
            **metrics.summary(matrix),
            "average_incremental_accuracy_pooled": metrics.average_incremental_accuracy(
                matrix, [len(e.classes_in_this_experience) for e in counted]
            ),
            "intransigence": None if joint is None else metrics.intransigence(matrix, joint),
            **course.summary(),
            "accuracy_so_far": metrics.accuracy_so_far(matrix),
            "parameters": sum(p.numel() for p in learner.model.parameters()),
            "memory_bytes": memory_bytes(strategy),
            "measured": getattr(strategy, "measured", {}),  # by the strategy, of itself
            "seconds": round(time.perf_counter() - began, 3),
            "peak_memory_bytes": peak_memory(learner.device),
            "digest": digest,
            "seeds": seeds,
            "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        }
        record.finish(result, matrix)
        progress.finished(out, result)
    except Exception:
        log.exception("the run broke off")
        raise
    finally:
        progress.stop()
        record.close()
    return result
