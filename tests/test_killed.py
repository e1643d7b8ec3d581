"""Thirty runs, each killed again and again at random moments, beside the same runs left alone."""

import multiprocessing
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from clplat.directory import RESULT
from tests.test_conf import composed
from tests.test_resumable import SMALL, assert_same, carry_out

IMAGES = ("scenario.samples_per_class=10",)
TASKS = ("scenario.task_labels=true", *IMAGES)
PERMUTED = ("train.batch_size=100", "train.epochs=1")
REPLAY = "strategy=replay"
RUNS = {
    **{
        f"strategy={name}": IMAGES
        for name in (
            *("finetune", "joint", "cumulative", "replay", "der", "derpp", "ewc", "lwf", "mas"),
            *("si", "rwalk", "mir", "gss", "er_ace", "a_gem", "cyclical", "podnet", "several"),
        )
    },
    "strategy=hypernet": TASKS,
    "scenario=permuted_digits": PERMUTED,
    "scenario=rotated_digits": (*PERMUTED, REPLAY),
    "scenario=online_digits": (REPLAY, "strategy.memory=reservoir", "train.epochs=1"),
    "scenario=sequential_digits": (*TASKS, "backbone=mingru"),
    "scenario=text": ("scenario.samples=24", "scenario.test_samples=4"),
    "backbone=convnet": (*IMAGES, REPLAY, "precision=bf16"),
    "head=growing": (*IMAGES, "strategy=ewc", "optimizer=sgd"),
    "head=nearest_mean": (*IMAGES, REPLAY, "strategy.memory=herding"),
    "schedule=infinite": (*IMAGES, "train.epochs=4"),
    "schedule=cosine": (*TASKS, "strategy=derpp", "train.accumulate=2"),
    "hypernet=rnn": (*TASKS, "strategy=hypernet", "strategy.subset=1"),
}


# From a process that has done nothing but import: autograd's threads do not survive a fork.
CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["tests.test_resumable"])


def kill_one(config: dict[str, Any], out: Path, seconds: float) -> None:
    """Run in a process of its own, and kill it after so long."""
    child = CHILDREN.Process(target=carry_out, args=(config, out))
    child.start()
    child.join(seconds)
    child.kill()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL)  # it has not failed


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_is_killed_until_it_ends_is_the_run_left_alone(tmp_path, name):
    config = composed(name, *SMALL, "train.batch_size=5", *RUNS[name])
    began = time.perf_counter()
    carry_out(config, tmp_path / "alone")
    took, chance = time.perf_counter() - began, random.Random(name)
    for _ in range(4):
        if not (tmp_path / "killed" / RESULT).exists():
            kill_one(config, tmp_path / "killed", chance.uniform(0.1, 1.0) * took)
    if not (tmp_path / "killed" / RESULT).exists():
        carry_out(config, tmp_path / "killed")
    assert_same(tmp_path / "alone", tmp_path / "killed")
