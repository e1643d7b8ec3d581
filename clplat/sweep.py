"""What became of the runs of a sweep."""

import json
import os
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from signal import Signals
from typing import Any, ClassVar

DONE = ("finished", "skipped")


@dataclass(frozen=True)
class Outcome:
    """What became of a run: finished, skipped (it was there), stopped, or failed for a reason;
    locked, while another process is at it; not begun, where the sweep was stopped before.

    `status` is what a process that runs it alone exits with; `out` is its directory, "" where the
    run was refused before it had one; `objective` what a sweeper is to maximise.
    """

    state: str
    status: int = 0
    reason: str = ""
    out: str = ""
    objective: float | None = None


def cancelled(number: int) -> Outcome:
    """A run elsewhere, of which nobody waits to hear when its sweep is stopped by a signal."""
    name = Signals(number).name
    return Outcome("stopped", 128 + number, f"cancelled by {name}; saved, if it had begun")


@dataclass
class Sweep:
    """The outcomes of a sweep, in memory and, a line each as they come, in a file."""

    file: Path
    searched: bool = False  # its settings were proposed by a sweeper that looks for the best
    lines: list[dict[str, Any]] = field(default_factory=list)
    current: ClassVar["Sweep | None"] = None  # of this command; None: it is no sweep

    @classmethod
    def begin(cls, folder: Path, searched: bool) -> None:
        began = datetime.now().strftime("%Y%m%d_%H%M%S")
        cls.current = cls(folder / f"sweep_{began}_{os.getpid()}.jsonl", searched)

    def note(self, job: int, overrides: str, given: list[str], outcome: Outcome) -> None:
        line = {"job": job, "overrides": overrides, "given": given, **asdict(outcome)}
        self.lines.append(line)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.file, "a") as file:
            file.write(json.dumps(line) + "\n")

    @property
    def status(self) -> int:
        """What the command exits with: 1 if a run failed, 2 if at most some were refused."""
        statuses = {line["status"] for line in self.lines}
        return 1 if 1 in statuses else max(statuses, default=0)

    @property
    def done(self) -> list[Path]:
        """The directories of the runs that are finished, in the order of the jobs."""
        ordered = sorted(self.lines, key=lambda line: line["job"])
        return [Path(line["out"]) for line in ordered if line["state"] in DONE]


def summary(lines: list[dict[str, Any]]) -> str:
    """How many ended how, and each that did not finish: its overrides, the reason, its log."""
    found = sorted(lines, key=lambda line: line["job"])
    states = [line["state"] for line in found]
    counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
    told = [f"{len(found)} runs: {counts}"]
    for line in found:
        if line["state"] not in DONE and line["reason"]:
            log = Path(line["out"], "run.log") if line["out"] else None
            where = f" ({log})" if log and log.is_file() else ""
            told.append(f"[{line['job'] + 1}] {line['overrides']}: {line['reason']}{where}")
    return "\n".join(told)


def best(lines: list[dict[str, Any]]) -> str:
    """The run of the highest objective, as a sweeper that searches for it would tell it."""
    judged = [line for line in lines if line["objective"] is not None]
    if not judged:
        return "best: none of the runs finished"
    line = max(judged, key=lambda line: line["objective"])
    return (
        f"best: [{line['job'] + 1}] accuracy {line['objective']:.3f} with {line['overrides']} "
        f"-> {line['out']}"
    )
