"""A sweep that is watched: states of runs, lines and tables, and when it ends."""

import io
import json
import os
import pty
import re
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from clplat.report import watch as module
from clplat.report.__main__ import main
from clplat.report.signs import SILENT, read_sign
from clplat.report.watch import ago, drawn, summary, watch
from clplat.status import Status
from tests.written_runs import write_run

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


def write_sign(out: Path, state: str = "running", silent: float = 3.0, **values) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    updated = (NOW - timedelta(seconds=silent)).isoformat(timespec="seconds")
    sign = {"pid": os.getpid(), "host": socket.gethostname(), "state": state, "updated": updated}
    (out / "status.json").write_text(json.dumps({**sign, **values}))
    return out


@pytest.fixture
def dead() -> int:
    """The number of a process that is no more."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_run_that_says_so_is_running(tmp_path):
    out = write_sign(tmp_path / "a", experience=2, epoch=5)
    lines = [{"experience": 1, "accuracy": 0.75}, {"experience": 2, "epoch": 5, "loss": 0.1}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (out / "metrics.jsonl").write_text(text + '{"experience": 2, "epo')
    sign = read_sign(out, NOW)
    assert (sign.state, sign.experience, sign.epoch) == ("running", 2, 5)
    assert (sign.accuracy, sign.silent, sign.reason) == (0.75, 3.0, "")


def test_what_status_writes_is_understood(tmp_path):
    status = Status(tmp_path)
    assert read_sign(tmp_path).state == "running"
    status.set("stopped", reason="stopped by SIGTERM", experience=1)
    sign = read_sign(tmp_path)
    assert (sign.state, sign.reason, sign.experience) == ("stopped", "stopped by SIGTERM", 1)


def test_a_run_whose_process_is_gone_or_that_is_silent_is_broken_off(tmp_path, dead):
    gone = read_sign(write_sign(tmp_path / "gone", pid=dead), NOW)
    assert (gone.state, gone.reason) == ("broken off", f"process {dead} is gone")
    elsewhere = write_sign(tmp_path / "elsewhere", pid=dead, host="another")
    assert read_sign(elsewhere, NOW).state == "running"
    silent = read_sign(write_sign(tmp_path / "silent", silent=SILENT + 1, host="another"), NOW)
    assert (silent.state, silent.reason) == ("broken off", "no sign of life")
    ended = read_sign(write_sign(tmp_path / "ended", "failed", SILENT + 1, pid=dead), NOW)
    assert ended.state == "failed"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"state": "running"}', '{"updated": 3}'])
def test_a_damaged_status_is_unknown(tmp_path, text):
    (tmp_path / "status.json").write_text(text)
    sign = read_sign(tmp_path, NOW)
    assert sign.state == "unknown"
    assert "is damaged" in sign.reason


def test_a_state_that_is_not_known_is_unknown_and_counted_as_such(tmp_path):
    out = write_sign(tmp_path / "a", "paused", reason="at\nlunch")
    sign = read_sign(out, NOW)
    assert (sign.state, sign.reason) == ("unknown", "status.json says paused")
    screen = Console(width=90, file=io.StringIO(), highlight=False)
    screen.print(drawn({out: sign}, [tmp_path], height=20))
    assert "1 runs: 1 unknown" in screen.file.getvalue()


def test_what_is_read_for_a_line_is_one_printable_line(tmp_path, capsys):
    write_sign(tmp_path / "runs/a\x1b[1m", "failed", reason="ValueError: one\n  two\x1b[2J")
    main([str(tmp_path / "runs"), "--watch"])
    assert capsys.readouterr().out.splitlines() == [
        r"a\x1b[1m: failed, ValueError: one two\x1b[2J",
        "1 runs: 1 failed",
    ]


def test_a_number_that_is_too_large_is_no_accuracy(tmp_path):
    out = write_sign(tmp_path / "a")
    (out / "metrics.jsonl").write_text(f'{{"accuracy": 0.5}}\n{{"accuracy": 1{"0" * 400}}}\n')
    assert read_sign(out, NOW).accuracy == 0.5


def test_a_result_says_finished_whatever_the_status(tmp_path, dead):
    out = write_run(tmp_path / "a", accuracy=0.5)
    write_sign(out, pid=dead)
    assert read_sign(out, NOW).state == "finished"
    assert read_sign(out, NOW).accuracy == 0.5


class Clock:
    """Time that passes only in sleep, while `events` happen at their seconds."""

    def __init__(self, events=()):
        self.now, self.events = 0.0, dict(events)

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for due in [at for at in self.events if at <= self.now]:
            self.events.pop(due)()


def test_lines_tell_each_change_until_nothing_runs_any_more(tmp_path, capsys):
    runs = tmp_path / "runs"
    (runs / "a").mkdir(parents=True)
    status = Status(runs / "a")
    status.set("running", experience=0)
    later = []
    clock = Clock(
        {
            2: lambda: status.set("running", experience=0, epoch=3),
            3: lambda: status.set("running", experience=1, epoch=0),
            5: lambda: status.set("failed", reason="ValueError: no"),
            9: lambda: ((runs / "b").mkdir(), later.append(Status(runs / "b"))),
            12: lambda: write_run(runs / "c", accuracy=0.625),
            14: lambda: later[0].set("stopped", reason="stopped by SIGINT"),
        }
    )
    watch([runs], clock, clock.sleep)
    assert capsys.readouterr().out.splitlines() == [
        "a: running, experience 0",
        "a: running, experience 1, epoch 0",
        "a: failed, experience 1, epoch 0, ValueError: no",
        "b: running",
        "c: finished, accuracy 0.625",
        "b: stopped, stopped by SIGINT",
        "3 runs: 1 failed, 1 stopped, 1 finished",
    ]
    # The next run of a sweep is waited for: from 5 to 9 none was running.
    assert clock.now == pytest.approx(13 + module.PATIENCE, abs=1.1)


def test_where_nothing_runs_it_ends_at_once(tmp_path, capsys, dead):
    write_run(tmp_path / "runs/a", accuracy=0.5)
    write_sign(tmp_path / "runs/b", pid=dead, experience=2)
    main([str(tmp_path / "runs"), "--watch"])
    assert capsys.readouterr().out.splitlines() == [
        "a: finished, accuracy 0.500",
        f"b: broken off, experience 2, process {dead} is gone",
        "2 runs: 1 broken off, 1 finished",
    ]


def test_a_folder_without_any_run_is_explained(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path), "--watch"])
    assert stop.value.code == 2
    message = "no run (a folder with status.json or result.json) below it; name the folder that the"
    assert message in capsys.readouterr().err


def test_the_table_has_those_under_way_first_and_no_more_than_fit(tmp_path):
    for k in range(40):
        write_sign(tmp_path / f"run_{k:02d}", "finished")
    on = write_sign(tmp_path / "run_99", "running", silent=130, experience=3, epoch=7, pid=1)
    signs = {out: read_sign(out, NOW) for out in sorted(tmp_path.iterdir())}
    signs[on] = read_sign(on, NOW)
    screen = Console(width=90, file=io.StringIO(), highlight=False)
    screen.print(drawn(signs, [tmp_path], height=20))
    lines = [line.strip() for line in screen.file.getvalue().splitlines() if line.strip()]
    assert lines[0].split() == ["run", "state", "experience", "epoch", "accuracy", "last", "sign"]
    assert lines[2].split() == ["run_99", "running", "3", "7", "2", "min", "ago"]
    assert len(lines) <= 20
    assert lines[-1] == "41 runs: 1 running, 40 finished; 24 more are not shown"
    assert summary(signs) == "41 runs: 1 running, 40 finished"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s ago"), (119, "119 s ago"), (150, "2 min ago"), (7200, "2 h ago"), (2e5, "2 d ago")],
)
def test_how_long_ago_is_said_shortly(seconds, text):
    assert ago(seconds) == text


def test_in_a_terminal_a_table_lives_until_the_process_ends(tmp_path):
    """A true one: `clplat-report --watch` in a pseudo-terminal, beside a process that is killed."""
    runs = tmp_path / "runs"
    code = (
        "import sys, time; from pathlib import Path; from clplat.status import Status\n"
        "out = Path(sys.argv[1]); out.mkdir(parents=True); s = Status(out)\n"
        "s.set('running', experience=4, epoch=2); print('on', flush=True); time.sleep(100)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(runs / "a")], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child.stdout as said:
        assert said.readline() == "on\n"
    ours, theirs = pty.openpty()
    quick = (
        "from clplat.report import watch; watch.PATIENCE = 1.0\n"
        "from clplat.report.__main__ import main; import sys; main(sys.argv[1:])"
    )
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    watching = subprocess.Popen(
        [sys.executable, "-c", quick, str(runs), "--watch"],
        stdout=theirs,
        stderr=theirs,
        env=environment,
    )
    os.close(theirs)
    seen = b""
    killed = False
    began = time.monotonic()
    while time.monotonic() - began < 60:
        try:
            seen += os.read(ours, 65536)
        except OSError:  # its end of the terminal is closed
            break
        if b"running" in seen and not killed:
            child.kill()
            child.wait()
            killed = True
    os.close(ours)
    assert watching.wait(timeout=30) == 0
    text = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", seen).decode()
    assert re.search(r"a +running +4 +2 ", text)
    assert f"broken off: process {child.pid} is gone" in text
    assert text.rstrip().endswith("1 runs: 1 broken off")
