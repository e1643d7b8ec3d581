"""What a run shows."""

import io
import warnings
from pathlib import Path

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
    progress.start("replay", 7, 4, "epochs")
    for _ in range(2):
        progress.advance()
    progress.experience(1, 0.75)
    progress.finished(Path("runs/a"), RESULT)
    return text.getvalue()


def test_without_a_terminal_a_run_is_one_line():
    line = "[3] replay seed 7: accuracy 0.500, forgetting 0.250, 1.2 s -> runs/a\n"
    assert shown(terminal=False) == line


def test_in_a_terminal_a_bar_shows_epochs_and_accuracy():
    text = shown(terminal=True)
    assert "2/4" in text
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
