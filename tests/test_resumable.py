"""Runs that break off and go on: equal to those that did not, to the bit, for every strategy."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clplat import checkpoint
from clplat.directory import CHECKPOINT, CONFIG, EARLIER_CHECKPOINT, LINES, MATRIX, RESULT
from clplat.run import run
from tests.test_conf import composed, files

OWN = {"kcl": ("strategy.samples=9",), "frozen": ("checkpoint.unit=experiences",)}
SMALL = ("train.epochs=2", "train.batch_size=8", "checkpoint.unit=iterations", "checkpoint.every=1")
DIGITS = ("scenario.task_labels=true", "scenario.experiences=3", "scenario.samples_per_class=14")
TIMES = ("seconds", "peak_memory_bytes", "scoring_seconds")
GROUPS = ("scenario", "backbone", "head", "pretraining", "hypernet", "strategy", "optimizer")


class Killed(BaseException):
    """As a kill is, nothing that the code has a handler for."""


class Silent:
    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def carry_out(config: dict[str, Any], out: Path) -> None:
    names = dict.fromkeys((*GROUPS, "schedule", "analysis"), "it")
    run(config, out=out, digest="0123abcd", names=names, folders=[], progress=Silent())


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
    """Makes the process die right after the checkpoints of these numbers; counts all of them."""
    save = checkpoint.save
    at: list[int] = []
    count = [0]

    def counted(out, state):
        save(out, state)
        count[0] += 1
        if count[0] in at:
            raise Killed

    monkeypatch.setattr(checkpoint, "save", counted)
    return at, count


def interrupted(config: dict[str, Any], out: Path, killing: Any, deaths: list[int]) -> None:
    at, count = killing
    at[:], count[0] = deaths, 0
    for _ in deaths:
        with pytest.raises(Killed):
            carry_out(config, out)
        assert (out / CHECKPOINT).is_file()
    carry_out(config, out)
    at.clear()


@pytest.mark.parametrize("name", files("strategy"))
def test_a_run_that_dies_twice_ends_as_one_that_does_not(tmp_path, killing, name):
    digits = DIGITS if name != "gere" else ("scenario.samples=20", "scenario.test_samples=4")
    config = composed(f"strategy={name}", *SMALL, *digits, *OWN.get(name, ()))
    carry_out(config, tmp_path / "whole")
    saves = killing[1][0]
    deaths = sorted(random.Random(name).sample(range(1, saves + 1), 2))
    interrupted(config, tmp_path / "broken", killing, deaths)
    assert_same(tmp_path / "whole", tmp_path / "broken")
    assert not (tmp_path / "broken" / CHECKPOINT).exists()
    assert not (tmp_path / "broken" / EARLIER_CHECKPOINT).exists()
    assert (tmp_path / "broken" / CONFIG).exists()
