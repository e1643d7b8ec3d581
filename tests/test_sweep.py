"""Runs of a sweep: each in a process of its own, and told of at the end."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from clplat.isolated import isolated
from clplat.signals import Asked, listening
from clplat.sweep import Outcome, Sweep, best, summary


def die(how):
    """A job that ends its process in a way that no handler sees."""
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_job_answers_comes_back_from_its_process():
    here = os.getpid()
    outcome = isolated(lambda: Outcome("finished", out=str(os.getpid())), Asked())
    assert outcome.state == "finished"
    assert int(outcome.out) != here


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("exit", "the process died: it ended with status 3"),
        ("kill", "the process died: killed by SIGKILL"),
    ],
)
def test_a_job_that_dies_is_an_outcome(how, reason):
    assert isolated(lambda: die(how), Asked()) == Outcome("failed", 1, reason)


def test_an_error_that_nobody_expected_is_an_outcome_and_its_trace_is_shown(capfd):
    outcome = isolated(lambda: 1 / 0, Asked())
    assert outcome == Outcome("failed", 1, "ZeroDivisionError: division by zero")
    assert "Traceback" in capfd.readouterr().err


def test_a_signal_is_handed_on_and_ends_what_had_nothing_to_save():
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    before = signal.getsignal(signal.SIGTERM)
    began = time.monotonic()
    with listening() as asked:
        outcome = isolated(lambda: time.sleep(60), asked)
    assert time.monotonic() - began < 30
    assert outcome == Outcome(
        "stopped", 143, "stopped by SIGTERM before there was anything to save"
    )
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_whose_sweep_was_killed_does_not_go_on_as_the_sweep(tmp_path):
    running, go, went_on = (tmp_path / name for name in ("running", "go", "went_on"))

    def job():
        running.write_text(str(os.getpid()))
        while not go.exists():
            time.sleep(0.01)
        return Outcome("finished")

    sweep = os.fork()
    if sweep == 0:
        try:
            isolated(job, Asked())
        finally:
            went_on.touch()
            os._exit(0)
    while not (running.exists() and running.read_text()):
        time.sleep(0.01)
    os.kill(sweep, signal.SIGKILL)
    os.waitpid(sweep, 0)
    go.touch()
    while psutil.pid_exists(int(running.read_text())):
        time.sleep(0.01)
    assert not went_on.exists()


def test_a_signal_to_the_run_alone_leaves_its_sweep():
    with listening() as asked:
        outcome = isolated(lambda: os.kill(os.getpid(), signal.SIGTERM), asked)
    assert outcome == Outcome("failed", 1, "the process died: killed by SIGTERM")
    assert asked.number is None


def test_outcomes_are_kept_in_a_file_as_they_come(tmp_path):
    sweep = Sweep(tmp_path / "runs" / "sweep.jsonl")
    assert (sweep.status, sweep.done) == (0, [])
    for job in (2, 0, 1):
        sweep.note(job, f"seed={job}", [], Outcome("finished", out=f"runs/{job}", objective=0.5))
    sweep.note(3, "seed=3", [], Outcome("failed", 1, "why"))
    assert sweep.status == 1
    sweep.note(4, "seed=-1", [], Outcome("failed", 2, "why"))
    assert sweep.status == 1
    assert sweep.done == [Path("runs/0"), Path("runs/1"), Path("runs/2")]
    lines = [json.loads(line) for line in sweep.file.read_text().splitlines()]
    assert lines == sweep.lines
    assert lines[0] == {
        "job": 2, "overrides": "seed=2", "state": "finished", "status": 0, "reason": "",
        "out": "runs/2", "objective": 0.5, "given": [],
    }  # fmt: skip


def test_the_best_is_that_of_the_highest_objective():
    lines = [
        {"job": k, "overrides": f"a={k}", "out": f"runs/{k}", "objective": objective}
        for k, objective in enumerate([None, 0.25, 0.75, 0.5])
    ]
    assert best(lines) == "best: [3] accuracy 0.750 with a=2 -> runs/2"
    assert best(lines[:1]) == "best: none of the runs finished"


def test_the_summary_counts_and_names_what_did_not_finish(tmp_path):
    (tmp_path / "run.log").touch()
    found = [
        {"job": 0, "overrides": "seed=0", "state": "finished", "reason": "", "out": "runs/a"},
        {"job": 1, "overrides": "seed=1", "state": "failed", "reason": "why", "out": str(tmp_path)},
        {"job": 2, "overrides": "seed=2", "state": "failed", "reason": "bad", "out": ""},
        {"job": 3, "overrides": "seed=3", "state": "skipped", "reason": "", "out": "runs/b"},
    ]
    assert summary(found[::-1]).splitlines() == [
        "4 runs: 1 finished, 2 failed, 1 skipped",
        f"[2] seed=1: why ({tmp_path / 'run.log'})",
        "[3] seed=2: bad",
    ]


def test_a_sweep_of_one_run_says_why_it_failed(command):
    outcome = command("-m optimizer.lr=-1")
    assert outcome.status == 2
    assert "1 runs: 1 failed\n[1] optimizer.lr=-1: optimizer.lr=-1: expected a number above 0" in (
        outcome.err
    )


def test_a_run_that_dies_leaves_the_others_and_the_command_fails(command, tmp_path):
    mine = tmp_path / "mylab"
    (mine / "strategy").mkdir(parents=True)
    (mine / "strategy" / "dies.yaml").write_text("# Dies.\n_target_: dies.Dies\n")
    (mine / "dies.py").write_text(
        "import os\nfrom avalanche.core import SupervisedPlugin\n"
        "class Dies(SupervisedPlugin):\n"
        "    def before_training_exp(self, strategy, **kwargs):\n"
        "        os._exit(7)\n"
    )
    outcome = command(
        "-m --config-dir mylab strategy=dies,finetune seed=0,1 train.epochs=1 optimizer.lr=0.001"
    )
    assert outcome.status == 1
    assert "4 runs: 2 failed, 2 finished" in outcome.err
    assert "seed=0,strategy=dies,train.epochs=1: the process died: it ended with status 7" in (
        outcome.err
    )
    again = command(
        "-m --config-dir mylab strategy=dies,finetune seed=0,1 train.epochs=1 optimizer.lr=0.001"
    )
    assert "4 runs: 2 failed, 2 skipped" in again.err
