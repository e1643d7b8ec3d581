"""What a run shows while it goes on: a bar in a terminal, a line a run elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class RunProgress:
    """One bar a run: epochs or samples done, and the accuracy over the experiences seen so far."""

    def __init__(self, job: int | None = None):
        self.console = Console(stderr=True, highlight=False)
        self.job = "" if job is None else f"[{job + 1}] "
        self._bar: Progress | None = None
        self._label = self._unit = ""

    @contextmanager
    def loading(self) -> Iterator[None]:
        """While libraries are imported, which takes seconds."""
        if self.console.is_terminal:
            with self.console.status("loading libraries ..."):
                yield
        else:
            yield

    def start(self, strategy: str, seed: int, total: int, unit: str, done: int = 0) -> None:
        self._label, self._unit = f"{self.job}{strategy} seed {seed}", unit
        if not self.console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            transient=True,
        )
        self._bar.start()
        self._bar.add_task(self._label, total=total, completed=done, note="")

    def advance(self) -> None:
        """An epoch has ended."""
        if self._bar is not None and self._unit == "epochs":
            self._bar.advance(self._bar.task_ids[0])

    def samples(self, seen: int) -> None:
        """So many samples of a stream have been seen."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=seen)

    def task(self, score: float) -> None:
        """One of a series of independent tasks has ended."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], advance=1, note=f"last {score:.3f}")

    def experience(self, count: int, accuracy: float) -> None:
        if self._bar is not None:
            note = f"{accuracy:.3f} after {count}"
            self._bar.update(self._bar.task_ids[0], note=note)

    def finished(self, out: Path, result: dict[str, Any]) -> None:
        self.stop()
        half = result.get("accuracy_interval")
        interval = "" if half is None else f" ± {half:.3f} over {result['tasks']} tasks"
        self.console.print(
            f"{self._label}: {result['score']} {result['accuracy']:.3f}{interval}, "
            f"forgetting {result['forgetting']:.3f}, {result['seconds']:.1f} s -> {out}",
            soft_wrap=True,
            markup=False,
        )

    def skipped(self, out: Path) -> None:
        self.console.print(f"{self.job}finished before: {out}", soft_wrap=True, markup=False)

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
