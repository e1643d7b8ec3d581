"""Runs that break off and go on: equal to those that did not, to the bit, for every strategy."""

import errno
import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clplat import checkpoint
from clplat.directory import (
    CHECKPOINT,
    CONFIG,
    EARLIER_CHECKPOINT,
    LINES,
    MATRIX,
    RESULT,
    STATUS,
)
from clplat.errors import InputError, Interrupted, TrainingError
from clplat.run import run
from tests.test_conf import composed, files

OWN = {
    "kcl": ("strategy.samples=9",),
    "frozen": ("checkpoint.unit=experiences",),
    "expert_gate": ("scenario.task_labels=false", "strategy.threshold=-1000.0"),
}
SMALL = ("train.epochs=2", "train.batch_size=8", "checkpoint.unit=iterations", "checkpoint.every=1")
DIGITS = ("scenario.task_labels=true", "scenario.experiences=3", "scenario.samples_per_class=14")
TIMES = ("seconds", "peak_memory_bytes", "scoring_seconds")
GROUPS = ("scenario", "backbone", "head", "pretraining", "hypernet", "strategy", "optimizer")


class Killed(BaseException):
    """As a kill is, nothing that the code has a handler for."""


class Silent:
    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def carry_out(config: dict[str, Any], out: Path, progress: Any = None) -> None:
    names = dict.fromkeys((*GROUPS, "schedule", "analysis"), "it")
    run(config, out=out, digest="0123abcd", names=names, folders=[], progress=progress or Silent())


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES}
    return value


def left_behind(out: Path) -> tuple[Any, ...]:
    """What must not depend on how often a run broke off."""
    lines = [json.loads(line) for line in (out / LINES).read_text().splitlines()]
    result = json.loads((out / RESULT).read_text())
    return without_times(result), [without_times(line) for line in lines], np.load(out / MATRIX)


def assert_same(one: Path, other: Path) -> None:
    for a, b in zip(left_behind(one), left_behind(other), strict=True):
        np.testing.assert_equal(a, b)


@pytest.fixture
def killing(monkeypatch):
    """Makes the process die right after the checkpoints of these numbers; counts all of them, and
    tells each experience's last.
    """
    save = checkpoint.save
    at: list[int] = []
    count = [0]
    last: dict[int, int] = {}  # the number of each experience's last checkpoint

    def counted(out, state):
        save(out, state)
        count[0] += 1
        last[state.get("index", 0)] = count[0]
        if count[0] in at:
            raise Killed

    monkeypatch.setattr(checkpoint, "save", counted)
    return at, count, last


def interrupted(config: dict[str, Any], out: Path, killing: Any, deaths: list[int]) -> None:
    at, count, _ = killing
    at[:], count[0] = deaths, 0
    for _ in deaths:
        with pytest.raises(Killed):
            carry_out(config, out)
        assert (out / CHECKPOINT).is_file()
    carry_out(config, out)
    at.clear()


@pytest.mark.parametrize("name", files("strategy"))
def test_a_run_that_dies_again_and_again_ends_as_one_that_does_not(tmp_path, killing, name):
    digits = DIGITS if name != "gere" else ("scenario.samples=20", "scenario.test_samples=4")
    config = composed(f"strategy={name}", *SMALL, *digits, *OWN.get(name, ()))
    carry_out(config, tmp_path / "whole")
    (_, (saves,), last), chance = killing, random.Random(name)
    # Anywhere, within the second of three experiences, and where no iteration of it is left.
    begin, end = (last[0] + 1, last[1]) if 1 in last else (1, saves)
    deaths = sorted({chance.randint(1, saves), chance.randint(begin, end), end})
    interrupted(config, tmp_path / "broken", killing, deaths)
    assert_same(tmp_path / "whole", tmp_path / "broken")
    assert not (tmp_path / "broken" / CHECKPOINT).exists()
    assert not (tmp_path / "broken" / EARLIER_CHECKPOINT).exists()
    assert (tmp_path / "broken" / CONFIG).exists()


# --- whole runs ----------------------------------------------------------------------------------


def test_a_signal_saves_the_run_and_ends_it(tmp_path, monkeypatch):
    config = composed("strategy=replay", *SMALL, *DIGITS, "checkpoint.every=null")
    carry_out(config, tmp_path / "whole")
    seen = []

    class Asked(Silent):
        def advance(self) -> None:
            seen.append(1)
            if len(seen) == 4:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="stopped by SIGTERM, and saved"):
        carry_out(config, tmp_path / "broken", Asked())
    assert len(seen) == 4
    assert json.loads((tmp_path / "broken" / STATUS).read_text())["state"] == "stopped"
    carry_out(config, tmp_path / "broken")
    assert_same(tmp_path / "whole", tmp_path / "broken")
    assert json.loads((tmp_path / "broken" / STATUS).read_text())["state"] == "finished"


def test_a_full_disk_is_told_and_the_last_checkpoint_stays(tmp_path, monkeypatch):
    config = composed("strategy=replay", *SMALL, *DIGITS)
    carry_out(config, tmp_path / "whole")
    out, calls, fsync = tmp_path / "broken", [], os.fsync

    def full(file):
        calls.append(file)
        if len(calls) > 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(file)

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(TrainingError) as error:
        carry_out(config, out)
    monkeypatch.undo()
    assert str(error.value) == (
        f"out={out}: no space is left there (No space left on device); free some, and the same "
        "command goes on from the last checkpoint"
    )
    assert checkpoint.load(out) is not None
    status = json.loads((out / STATUS).read_text())
    assert status["state"] == "failed"
    assert "No space left on device" in status["reason"]
    carry_out(config, out)
    assert_same(tmp_path / "whole", out)


def test_resume_never_begins_anew_and_other_seeds_are_refused(tmp_path, killing):
    config = composed("strategy=replay", *SMALL, *DIGITS)
    killing[0][:] = [7]
    with pytest.raises(Killed):
        carry_out(config, tmp_path)
    killing[0].clear()
    other = composed("strategy=replay", *SMALL, *DIGITS, "seed=1")
    with pytest.raises(InputError, match="holds an unfinished run with other seeds") as error:
        carry_out(other, tmp_path)
    assert "set resume=never to begin anew there" in str(error.value)
    before = killing[1][0]
    carry_out({**config, "resume": "never"}, tmp_path)
    assert killing[1][0] - before == 2 * (7 + 6 + 6)  # all iterations


def test_a_strategy_without_a_state_is_not_saved_and_the_log_says_so(tmp_path, killing):
    config = composed("strategy=avalanche/replay", *SMALL)
    carry_out(config, tmp_path)
    assert killing[1][0] == 0
    assert (
        "has no state_dict: the run is not saved as it goes" in (tmp_path / "run.log").read_text()
    )


def test_a_series_goes_on_after_the_tasks_that_are_done(tmp_path, killing):
    small = ("scenario.tasks=4", "scenario.ways=3", "checkpoint.unit=experiences")
    config = composed("scenario=cfsl/classes_and_samples_4", *small, "checkpoint.every=1")
    carry_out(config, tmp_path / "whole")
    interrupted(config, tmp_path / "broken", killing, [2, 4])
    assert_same(tmp_path / "whole", tmp_path / "broken")


def test_a_pre_trained_encoder_is_not_trained_again(tmp_path, killing, monkeypatch):
    given = ("scenario=cfsl/classes_and_samples_4", "scenario.tasks=3", "scenario.ways=3")
    more = ("pretraining=supervised", "pretraining.epochs=1", "checkpoint.unit=experiences")
    config = composed(*given, *more, "checkpoint.every=1")
    carry_out(config, tmp_path / "whole")
    killing[0][:], killing[1][0] = [2], 0
    with pytest.raises(Killed):
        carry_out(config, tmp_path / "broken")
    monkeypatch.setattr("clplat.run.pretrain", None)
    carry_out(config, tmp_path / "broken")
    assert_same(tmp_path / "whole", tmp_path / "broken")


def test_evaluations_inside_experiences_and_analyses_go_on(tmp_path, killing):
    config = composed(
        "analysis=few_shot",
        *SMALL,
        "scenario.samples_per_class=25",
        "eval.every=3",
        "analysis.episodes=5",
        "analysis.queries=5",
    )
    carry_out(config, tmp_path / "whole")
    interrupted(config, tmp_path / "broken", killing, [9, 31])
    assert_same(tmp_path / "whole", tmp_path / "broken")
