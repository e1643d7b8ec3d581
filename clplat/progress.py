"""What a run shows while it goes on: a bar in a terminal, lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS = 30.0  # at least, between two lines where there is no terminal


class RunProgress:
    """One bar a run: how far it is, the time left, and the accuracy over what was seen so far.

    Where there is no terminal: a line at the end, and one after an experience now and then.
    """

    def __init__(self, job: int | None = None):
        self.console = Console(stderr=True, highlight=False)
        self.job = "" if job is None else f"[{job + 1}] "
        self._bar: Progress | None = None
        self._label = self._unit = ""
        self._total = self._each = 0
        self._told = time.monotonic()

    @contextmanager
    def loading(self) -> Iterator[None]:
        """While libraries are imported, which takes seconds."""
        if self.console.is_terminal:
            with self.console.status("loading libraries ..."):
                yield
        else:
            yield

    def start(
        self, strategy: str, seed: int, total: int, unit: str, done: int = 0, each: int = 0
    ) -> None:
        """So many units are to come, of which some are done; `each`: epochs of an experience."""
        self._label, self._unit = f"{self.job}{strategy} seed {seed}", unit
        self._total, self._each = total, each
        if not self.console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[place]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            transient=True,
        )
        self._bar.start()
        place = self._place(done)
        self._bar.add_task(self._label, total=total, completed=done, note="", place=place)

    def _place(self, done: int) -> str:
        """The experience and epoch that are on, or how many units are done."""
        if not self._each:
            return f"{done}/{self._total} {self._unit}"
        index, epoch = divmod(min(done, self._total - 1), self._each)
        count = self._total // self._each
        return f"experience {index + 1}/{count} epoch {epoch + 1}/{self._each}"

    def _update(self, done: int) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, place=self._place(done))

    def _done(self) -> int:
        return int(self._bar.tasks[0].completed) if self._bar is not None else 0

    def advance(self) -> None:
        """An epoch has ended."""
        if self._unit == "epochs":
            self._update(self._done() + 1)

    def samples(self, seen: int) -> None:
        """So many samples of a stream have been seen."""
        self._update(seen)

    def task(self, score: float) -> None:
        """One of a series of independent tasks has ended."""
        self._update(self._done() + 1)
        self._note(f"last {score:.3f}")

    def experience(self, count: int, accuracy: float) -> None:
        """So many experiences have ended, and this is the accuracy over them."""
        self._note(f"{accuracy:.3f} after {count}")
        if not self.console.is_terminal and time.monotonic() >= self._told + SECONDS:
            self._told = time.monotonic()
            line = f"{self._label}: {accuracy:.3f} after {count} experiences"
            self.console.print(line, soft_wrap=True, markup=False)

    def _note(self, text: str) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], note=text)

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

    def skipped(self, out: Path, passed_over: str = "") -> None:
        line = f"{self.job}finished before: {out}{passed_over}"
        self.console.print(line, soft_wrap=True, markup=False)

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
