"""Sweeps by each launcher: runs that die, sweeps that are stopped, two at once."""

import os
import shlex
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_method

from clplat.command import run_command
from clplat.directory import CHECKPOINT, STATUS
from clplat.engines import submitit as by_submitit
from clplat.engines.joblib import turn
from clplat.launch import register
from tests.sweeps import LONG, SHORT, ended, outcomes, started, swept, wait_until, write_dies

pytestmark = pytest.mark.timeout(900)  # each process imports the libraries, on a machine in use


def begun(folder):
    """The run directories whose runs have been saved, and are not finished."""
    return [file.parent for file in folder.rglob(CHECKPOINT)]


@pytest.mark.parametrize(
    ("launcher", "reason"),
    [
        ("joblib hydra.launcher.n_jobs=2", "the process died: it ended with status 7 ("),
        ("submitit_local", "ended without an answer (FINISHED); log: "),
    ],
)
def test_runs_that_die_leave_the_others_and_are_told_of(tmp_path, launcher, reason):
    arguments = f"{write_dies(tmp_path)} hydra/launcher={launcher} seed=0,1 {SHORT}"
    status, err = swept(arguments, tmp_path)
    assert status == 1, err
    assert "4 runs: 2 failed, 2 finished" in err
    for number, seed in ((1, 0), (2, 1)):
        (line,) = [line for line in err.splitlines() if line.startswith(f"[{number}] optimizer")]
        assert f"seed={seed},strategy=dies,train.epochs=1: " in line
        assert reason in line
        assert f"seed_{seed}/run.log" in line
    lines = sorted(outcomes(tmp_path), key=lambda line: line["job"])
    assert [line["state"] for line in lines] == ["failed"] * 2 + ["finished"] * 2


def test_joblibs_runs_are_saved_when_the_sweep_is_stopped_and_go_on(tmp_path):
    arguments = f"hydra/launcher=joblib hydra.launcher.n_jobs=2 seed=0,1,2 {LONG}"
    with started(arguments, tmp_path) as sweep:
        wait_until(lambda: len(begun(tmp_path)) == 2)
        sweep.send_signal(signal.SIGTERM)
        status, err = ended(sweep)
    assert status == 143, err
    assert "3 runs: 2 stopped, 1 not begun" in err
    assert "stopped by SIGTERM, and saved; the same command goes on from there" in err
    assert len(begun(tmp_path)) == 2

    # One of joblib's own processes is killed, and joblib ends the others.
    with started(arguments, tmp_path) as sweep:
        running = []

        def workers():
            alive = [child for child in psutil.Process(sweep.pid).children() if child.children()]
            running[:] = [child for child in alive if "LokyProcess" in " ".join(child.cmdline())]
            return len(running) == 2

        wait_until(workers)
        os.kill(running[0].pid, signal.SIGKILL)
        status, err = ended(sweep)
    assert status == 0, err
    assert "failed" not in err
    assert not begun(tmp_path)


def test_one_worker_exits_as_the_basic_launcher_does(command):
    outcome = command(
        "-m hydra/launcher=joblib seed=0 train.epochs=1 scenario.samples_per_class=10 "
        "optimizer=sgd optimizer.lr=1e30"
    )
    assert outcome.status == 1, outcome
    assert "1 runs: 1 failed" in outcome.err


def write_stuck(folder):
    """Write a strategy that hears of no signal; return the arguments that choose it."""
    (folder / "mylab" / "strategy").mkdir(parents=True)
    (folder / "mylab" / "strategy" / "stuck.yaml").write_text("# Stuck.\n_target_: stuck.Stuck\n")
    (folder / "mylab" / "stuck.py").write_text(
        "import os, pathlib, time\nfrom avalanche.core import SupervisedPlugin\n"
        "class Stuck(SupervisedPlugin):\n"
        "    def before_training_exp(self, strategy, **kwargs):\n"
        "        pathlib.Path(f'{os.getpid()}.pid').touch()\n"
        "        time.sleep(600)\n"
    )
    return "--config-dir mylab strategy=stuck"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_twice_all_end_at_once(tmp_path, number):
    arguments = f"{write_stuck(tmp_path)} seed=0,1 {SHORT}"
    with started(arguments, tmp_path) as sweep:
        wait_until(lambda: len([*tmp_path.glob("*.pid")]) == 1)
        runs = [psutil.Process(int(file.stem)) for file in tmp_path.glob("*.pid")]
        try:
            sweep.send_signal(number)
            time.sleep(1.5)
            assert sweep.poll() is None
            sweep.send_signal(number)
            _, alive = psutil.wait_procs(runs, timeout=10)
            assert not alive
            status, _ = ended(sweep)
            assert status in (-number, 128 + number)
        finally:
            for run in runs:
                with suppress(psutil.NoSuchProcess):
                    run.kill()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("hydra.launcher.n_jobs=0", "hydra.launcher.n_jobs=0: expected a whole number"),
        ("hydra.launcher.n_jobs=x", "hydra.launcher.n_jobs=x: expected a whole number"),
        ("+hydra.launcher.foo=x", "hydra.launcher.foo=x: got an unexpected keyword argument"),
        ("~hydra.launcher.n_jobs", "hydra.launcher: missing a required argument: 'n_jobs'"),
    ],
)
def test_settings_that_an_engine_does_not_take_are_refused_once(command, setting, message):
    outcome = command(f"-m hydra/launcher=joblib {setting} seed=0,1 {SHORT}")
    assert outcome.status == 2, outcome
    assert outcome.err.startswith("clplat: ")
    assert message in outcome.err
    assert outcome.err.count("\n") == 1


def test_two_sweeps_in_one_directory_finish_every_run_once(tmp_path):
    same = f"seed=0,1,2 {LONG}"
    with started(same, tmp_path) as one, started(same, tmp_path) as other:
        told = [ended(sweep) for sweep in (one, other)]
    assert [status for status, _ in told] == [0, 0], told
    states = [line["state"] for line in outcomes(tmp_path)]
    assert sorted(states) == ["finished"] * 3 + ["skipped"] * 3
    assert len(list(tmp_path.rglob(STATUS))) == 3


@pytest.mark.parametrize(
    ("choice", "package", "extra"),
    [
        ("hydra/launcher=ray", "ray", "ray"),
        ("hydra/launcher=joblib", "joblib", "sweep"),
        ("hydra/launcher=submitit_slurm", "submitit", "slurm"),
        ("hydra/sweeper=optuna", "hydra_plugins.hydra_optuna_sweeper", "sweep"),
    ],
)
def test_a_package_that_is_not_installed_is_named(
    tmp_path, monkeypatch, capsys, choice, package, extra
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(sys, "argv", ["clplat", "-m", choice, "seed=0,1"])
    with pytest.raises(SystemExit) as stop:
        run_command()
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        f"clplat: {choice}: {package} is not installed; pip install 'clplat[{extra}]'\n"
    )


def test_a_launcher_of_others_is_refused_in_words(command, tmp_path):
    mine = tmp_path / "mine" / "hydra" / "launcher"
    mine.mkdir(parents=True)
    (mine / "theirs.yaml").write_text(
        "_target_: hydra._internal.core_plugins.basic_launcher.BasicLauncher\n"
    )
    outcome = command(f"-m --config-dir mine hydra/launcher=theirs seed=0 {SHORT}")
    assert outcome.status == 2
    assert "hydra/launcher=theirs: expected one of clplat's, such as basic, joblib" in outcome.err


def test_workers_take_turns_on_the_devices():
    assert [turn(f"LokyProcess-{k}", ["0", "2"]) for k in (1, 2, 3)] == ["0", "2", "0"]
    assert turn("LokyProcess-2", ["0"]) is None
    assert turn("MainProcess", ["0", "1"]) is None


def test_a_job_is_gone_when_it_is_not_in_the_queue_at_two_looks(monkeypatch):
    class Handle:
        job_id = "7_1"

    listed = ["", "7_1\n", "", None, ""]
    monkeypatch.setattr(by_submitit, "asked_slurm", lambda *command: listed.pop(0))
    monkeypatch.setattr(by_submitit, "QUEUE_SECONDS", 0.0)
    queue = by_submitit.Queue()
    assert not queue.gone(Handle)  # not known yet when the queue was looked at
    assert [queue.gone(Handle) for _ in range(4)] == [False, False, False, True]


def guide_commands():
    text = (Path(__file__).parent.parent / "docs/guides/scale.md").read_text()
    return [line[2:] for line in text.splitlines() if line.startswith("$ clplat ")]


def chosen(override, place):
    """One of the values that are swept over, or the value."""
    if override.is_discrete_sweep():
        value = list(override.sweep_string_iterator())[place]
    elif override.is_sweep_override():
        value = override.value().start
    else:
        return override.input_line
    return f"{override.get_key_element()}={value}"


@pytest.mark.parametrize("line", guide_commands())
def test_the_commands_of_the_guide_compose(line):
    words = shlex.split(line)[1:]
    assert words.pop(0) == "-m"
    with initialize_config_module("clplat.conf", version_base="1.3"):
        register()
        ours = [word for word in words if "hydra" in word.split("=")[0]]
        node = compose("config", overrides=ours, return_hydra_config=True)
        assert node.hydra.launcher._target_ == "hydra_plugins.clplat.Launch"
        assert callable(get_method(node.hydra.launcher.engine))
        parser = OverridesParser.create()
        others = parser.parse_overrides([word for word in words if word not in ours])
        for place in (0, -1):
            compose("config", overrides=[chosen(override, place) for override in others])
