"""Runs of a sweep: each in a process of its own, and told of at the end."""

import json
import os
import signal
import threading
import time

import pytest

from clplat.sweep import PLACE, Outcome, isolated, note, outcomes, summary


def die(how):
    """A job that ends its process in a way that no handler sees."""
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_job_answers_comes_back_from_its_process():
    here = os.getpid()
    outcome = isolated(lambda: Outcome("finished", out=str(os.getpid())))
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
    assert isolated(lambda: die(how)) == Outcome("failed", 1, reason)


def test_an_error_that_nobody_expected_is_an_outcome_and_its_trace_is_shown(capfd):
    assert isolated(lambda: 1 / 0) == Outcome("failed", 1, "ZeroDivisionError: division by zero")
    assert "Traceback" in capfd.readouterr().err


def test_a_signal_is_handed_on_and_ends_what_had_nothing_to_save():
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    before = signal.getsignal(signal.SIGTERM)
    began = time.monotonic()
    outcome = isolated(lambda: time.sleep(60))
    assert time.monotonic() - began < 30
    assert outcome == Outcome(
        "stopped", 143, "stopped by SIGTERM before there was anything to save"
    )
    assert signal.getsignal(signal.SIGTERM) is before


def test_outcomes_are_read_in_the_order_of_their_jobs(tmp_path, monkeypatch):
    file = tmp_path / "sweep.jsonl"
    monkeypatch.setenv(PLACE, str(file))
    assert outcomes(file) == []
    for job in (2, 0, 1):
        note(job, f"seed={job}", Outcome("finished", out="runs/a"))
    assert [line["job"] for line in outcomes(file)] == [0, 1, 2]
    assert json.loads(file.read_text().splitlines()[0]) == {
        "job": 2, "overrides": "seed=2", "state": "finished", "status": 0, "reason": "",
        "out": "runs/a",
    }  # fmt: skip


def test_the_summary_counts_and_names_what_did_not_finish(tmp_path):
    (tmp_path / "run.log").touch()
    found = [
        {"job": 0, "overrides": "seed=0", "state": "finished", "reason": "", "out": "runs/a"},
        {"job": 1, "overrides": "seed=1", "state": "failed", "reason": "why", "out": str(tmp_path)},
        {"job": 2, "overrides": "seed=2", "state": "failed", "reason": "bad", "out": ""},
        {"job": 3, "overrides": "seed=3", "state": "skipped", "reason": "", "out": "runs/b"},
    ]
    assert summary(found).splitlines() == [
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
