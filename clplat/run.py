"""One run, from a config to a finished run directory."""

import errno
import logging
import platform
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.errors import HydraException

from clplat import checkpoint, metrics
from clplat.build import build_scenario, pretrain
from clplat.digest import SEEDS
from clplat.directory import ENCODER, MATRIX, RESULT, already_done, given_result
from clplat.errors import InputError, Interrupted, TrainingError
from clplat.footprint import memory_bytes, peak_memory
from clplat.keeper import Keeper
from clplat.lock import locked
from clplat.metrics import Matrix
from clplat.quiet import hush_avalanche
from clplat.record import Record, kept_log
from clplat.scenario import Scenario
from clplat.series import SeriesRun
from clplat.state import State
from clplat.status import Status
from clplat.stream import StreamRun

log = logging.getLogger("clplat")

PACKAGES = ("clplat", "torch", "avalanche-lib", "numpy")


def joint_matrix(reference: str | None, scenario_name: str, size: int) -> Matrix | None:
    """The accuracy matrix of the joint run that intransigence is measured against."""
    if reference is None:
        return None
    result = given_result("reference", Path(reference))
    if result is not None and not {"scenario", "experiences"} <= result.keys():
        raise InputError(
            f"reference={reference}: its {RESULT} is damaged (it names no scenario or number of "
            "experiences); remove that directory, or choose another reference"
        )
    if result is None or result["scenario"] != scenario_name or result["experiences"] != size:
        given = f"a run of {result['scenario']}" if result else "no finished run"
        raise InputError(
            f"reference={reference}: holds {given}; expected a finished joint run of "
            f"{scenario_name} with {size} experiences; run strategy=joint first"
        )
    try:
        return np.load(Path(reference) / MATRIX, allow_pickle=False)
    except (ValueError, OSError) as error:
        raise InputError(
            f"reference={reference}: its {MATRIX} cannot be read ({error}); run strategy=joint anew"
        ) from error


@contextmanager
def explained() -> Iterator[None]:
    """What cannot be built of a config, for whatever reason, is bad input."""
    try:
        yield
    except (InputError, TrainingError, HydraException):
        raise
    except Exception as error:
        raise InputError(
            f"the config cannot be built ({type(error).__name__}: {error}); correct what was set "
            "last (HYDRA_FULL_ERROR=1 shows the whole trace)"
        ) from error


def _rows(scenario: Scenario, name: str) -> list[Any]:
    """The experiences that the rows of the matrix stand for; as many are tested on."""
    trained, tested = list(scenario.train_stream), list(scenario.test_stream)
    if scenario.marks or scenario.segments:  # inside the one that is trained on
        return tested
    if len(trained) != len(tested):
        raise InputError(
            f"scenario={name}: {len(trained)} experiences to train on but {len(tested)} "
            "to test on; an accuracy matrix needs as many of both; choose another benchmark"
        )
    return trained


def load_saved(out: Path, seeds: dict[str, int]) -> State | None:
    """The checkpoint of a run that did not finish, if it is this one."""
    saved = checkpoint.load(out)
    if saved is not None and saved["seeds"] != seeds:
        raise InputError(
            f"out={out}: holds an unfinished run with other seeds ({saved['seeds']}, these are "
            f"{seeds}); choose another out, or set resume=never to begin anew there"
        )
    return saved


def read_encoder(out: Path) -> Any:
    """The encoder as the run pre-trained it; None if it did not."""
    file = out / ENCODER
    return torch.load(file, weights_only=True) if file.is_file() else None


def run(
    config: dict[str, Any],
    *,
    out: Path,
    digest: str,
    names: dict[str, str],
    folders: list[Path],
    progress: Any,
) -> dict[str, Any] | None:
    """Train on every experience, evaluate all after each, and leave a finished run directory.

    `config` is resolved and checked; `names` are the chosen files of its groups; `progress` is
    told what happens (see `clplat.progress`). Returns the result; None if another process had
    finished the run by the time that its directory was free.
    """
    seeds = {key: config[key] for key in SEEDS}
    hush_avalanche()
    torch.set_num_threads(config["threads"])
    with ExitStack() as stack:
        kept = stack.enter_context(kept_log())
        with explained():
            scenario = build_scenario(config, folders)
        rows = _rows(scenario, names["scenario"])
        joint = joint_matrix(config["reference"], names["scenario"], len(rows))
        kind = SeriesRun if scenario.tasks else StreamRun
        with explained():
            course = kind(config, scenario, progress)
        began = time.perf_counter()
        stack.callback(progress.stop)
        saved = load_saved(out, seeds) if config["resume"] == "auto" else None
        weights = read_encoder(out) if saved else None
        if weights is None:
            weights = pretrain(
                config,
                scenario,
                lambda epochs: progress.start("pre-training", seeds["seed"], epochs, "epochs"),
                progress.advance,
            )
        progress.stop()
        if weights is not None:  # built anew, seeds and all: as if they had been there at once
            course = kind(config, scenario, progress, weights)
        stack.enter_context(locked(out))
        if already_done(out, digest, seeds) is not None:
            return None
        record = Record(out, config, digest, names, kept, began, saved and saved["record"])
        stack.callback(record.close)
        stack.enter_context(told(out, record.status))
        if weights is not None and not saved:
            record.encoder(weights)

        def whole() -> State:
            return {"seeds": seeds, "record": record.position(), **course.state_dict()}

        keeper = Keeper(out, **config["checkpoint"], whole=whole)
        with keeper.listening() if course.resumable else nullcontext():
            matrix = course.learn(record, names["strategy"], keeper, saved)
        learner = course.learner
        result = {
            **names,
            "experiences": len(rows),
            "score": scenario.score.__name__.replace("_", " "),
            **metrics.summary(matrix),
            "average_incremental_accuracy_pooled": metrics.average_incremental_accuracy(
                matrix, [len(e.classes_in_this_experience) for e in rows]
            ),
            "intransigence": None if joint is None else metrics.intransigence(matrix, joint),
            **course.summary(),
            "accuracy_so_far": metrics.accuracy_so_far(matrix),
            "parameters": sum(p.numel() for p in learner.model.parameters()),
            "memory_bytes": memory_bytes(course.strategy, learner.model),
            "seconds": round(record.seconds, 3),
            "peak_memory_bytes": peak_memory(learner.device),
            "digest": digest,
            "seeds": seeds,
            "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        }
        record.finish(result, matrix)
        checkpoint.remove(out)
        progress.finished(out, result)
    return result


@contextmanager
def told(out: Path, status: Status) -> Iterator[None]:
    """Tell status and log how a run ends; errors of a full disk become one that says so."""
    try:
        yield
    except Interrupted as stop:
        log.info("%s", stop)
        status.set("stopped", reason=str(stop))
        raise
    except Exception as error:
        log.exception("the run broke off")
        with suppress(OSError):  # of a full disk
            status.set("failed", reason=f"{type(error).__name__}: {error}")
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TrainingError(
                f"out={out}: no space is left there ({error.strerror}); free some, and the same "
                "command goes on from the last checkpoint"
            ) from error
        raise
