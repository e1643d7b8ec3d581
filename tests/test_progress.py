"""What a run shows."""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import warnings
from pathlib import Path

import pytest
from rich.console import Console

from clplat.bench.timing import Figure, ratio
from clplat.progress import RunProgress
from clplat.quiet import hush_avalanche

RESULT = {"score": "accuracy", "accuracy": 0.5, "forgetting": 0.25, "seconds": 1.25}


def shown(terminal: bool) -> str:
    progress = RunProgress(job=2)
    text = io.StringIO()
    progress.console = Console(file=text, force_terminal=terminal, width=120, highlight=False)
    with progress.loading():
        pass
    progress.start("replay", 7, 4, "epochs", each=2)
    for _ in range(2):
        progress.advance()
    progress.experience(1, 0.75)
    progress.finished(Path("runs/a"), RESULT)
    return text.getvalue()


def test_without_a_terminal_a_run_is_one_line():
    line = "[3] replay seed 7: accuracy 0.500, forgetting 0.250, 1.2 s -> runs/a\n"
    assert shown(terminal=False) == line


def test_without_a_terminal_a_long_run_tells_of_experiences_now_and_then(monkeypatch):
    text, now = io.StringIO(), [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = RunProgress()
    progress.console = Console(file=text, force_terminal=False, width=120, highlight=False)
    progress.start("replay", 7, 4, "epochs", each=2)
    for count, at in enumerate((29.0, 31.0, 60.0, 62.0), 1):
        now[0] = at
        progress.experience(count, 0.5)
    assert text.getvalue().splitlines() == [
        "replay seed 7: 0.500 after 2 experiences",
        "replay seed 7: 0.500 after 4 experiences",
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("out=runs/a", ["replay seed 0 ", "experience 2/2 epoch 3/3", " after 1", "-> runs/a"]),
        ("seeds=2", ["[1] replay seed 0 ", "[2] replay seed 1 ", "experience 1/2 epoch 1/3"]),
    ],
)
def test_in_a_real_terminal_there_is_a_bar_a_run_and_no_bar_is_left(tmp_path, arguments, expected):
    words = f"strategy=replay scenario.experiences=2 train.epochs=3 {arguments}".split()
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))
    child = subprocess.Popen(
        [sys.executable, "-m", "clplat", *words],
        cwd=tmp_path,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color"},
    )
    os.close(theirs)
    data = b""
    while True:
        try:
            data += os.read(ours, 65536)
        except OSError:  # all is read, and the other end closed
            break
    os.close(ours)
    assert child.wait(60) == 0, data
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", data.decode())
    for part in expected:
        assert part in text
    assert "\x1b[?25h" in data.decode()  # the cursor is shown again


def test_in_a_terminal_a_bar_shows_the_experience_the_epoch_and_accuracy():
    text = shown(terminal=True)
    assert "experience 1/2 epoch 1/2" in text
    assert "experience 2/2 epoch 1/2" in text
    assert "0.750 after 1" in text
    assert "[3] replay seed 7: accuracy 0.500" in text


def test_a_series_of_tasks_is_counted_and_ends_with_its_interval():
    progress, text = RunProgress(), io.StringIO()
    progress.console = Console(file=text, force_terminal=True, width=120, highlight=False)
    progress.start("finetune", 0, 3, "tasks")
    for _ in range(2):
        progress.task(0.4)
    result = {**RESULT, "score": "closeness", "tasks": 3, "accuracy_interval": 0.02}
    progress.finished(Path("runs/a"), result)
    shown = text.getvalue()
    assert "2/3" in shown
    assert "last 0.400" in shown
    assert "finetune seed 0: closeness 0.500 ± 0.020 over 3 tasks, forgetting" in shown


def test_avalanches_deprecations_are_hushed_and_others_are_not(monkeypatch):
    seen = []
    monkeypatch.setattr(warnings, "showwarning", lambda m, *rest, **named: seen.append(str(m)))
    hush_avalanche()
    hush_avalanche()  # twice does not wrap twice
    show = warnings.showwarning
    show(DeprecationWarning("old (removal in version 0.7: x)"), DeprecationWarning, "mine.py", 1)
    show(DeprecationWarning("x"), DeprecationWarning, "/lib/avalanche/core.py", 1)
    show(DeprecationWarning("mine"), DeprecationWarning, "mine.py", 1)
    show(UserWarning("user"), UserWarning, "/lib/avalanche/core.py", 1)
    assert seen == ["mine", "user"]


def test_a_benchmarks_figure_says_whether_it_is_met():
    assert Figure("loop", 0.96, 0.95).met
    assert not Figure("loop", 0.94, 0.95).met
    assert Figure("help", 0.7, 0.8, "s", at_most=True).met
    assert "MISSED" in str(Figure("help", 0.9, 0.8, "s", at_most=True))


def test_the_ratio_is_the_median_over_rounds():
    assert ratio([2.0, 9.0, 4.0], [1.0, 3.0, 2.0]) == 2.0
