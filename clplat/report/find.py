"""The runs below some folders."""

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clplat.directory import RESULT, STATUS, TRIALS, read_result
from clplat.errors import InputError
from clplat.report.printable import printable
from clplat.report.signs import read_sign

NAMED = ("scenario", "strategy", "digest")  # texts without which a result is none


@dataclass(frozen=True)
class Run:
    """A finished run: its directory and what it measured."""

    out: Path
    result: dict[str, Any]

    def value(self, key: str) -> float | None:
        """A finite number of the result; None where there is none."""
        value = self.result.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return float(value) if math.isfinite(value) else None

    @property
    def seeds(self) -> tuple[tuple[str, int], ...] | None:
        """Its seeds, by which it is paired with others; None where they are not known."""
        seeds = self.result.get("seeds")
        if not isinstance(seeds, dict) or not seeds:
            return None
        whole = all(isinstance(seed, int) for seed in seeds.values())
        return tuple(sorted(seeds.items())) if whole else None


@dataclass
class Found:
    """Finished runs, by place, and what was left out for which reason."""

    runs: list[Run] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def run_folders(paths: Sequence[Path], leave_out: str | None = None) -> list[Path]:
    """Every run directory below some folders, finished or not; InputError for what is none.

    What lies in a sub-folder of the name `leave_out` is left out.
    """
    found = set()
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such folder; name the one that your runs went to")
        if not path.is_dir():
            raise InputError(f"{path}: is a file; expected a folder with runs below it")
        for folder, folders, files in os.walk(path):
            folders[:] = [name for name in folders if name != leave_out]
            if RESULT in files or STATUS in files:
                found.add(Path(folder))
    return sorted(found)


def find_runs(paths: Sequence[Path]) -> Found:
    """Every finished run below the paths, but the trials of `tune.experiences` unless named."""
    found, unfinished = Found(), Counter()
    for out in run_folders(paths, leave_out=TRIALS):
        try:
            result = read_result(out)
        except (OSError, ValueError) as error:
            found.notes.append(f"left out: {out / RESULT} is damaged ({error})")
            continue
        if result is None:
            unfinished[read_sign(out).state] += 1
        elif not isinstance(result, dict) or not all(isinstance(result.get(k), str) for k in NAMED):
            named = ", ".join(NAMED)
            found.notes.append(f"left out: {out / RESULT} is no result (expected {named})")
        else:
            texts = {key: printable(v) for key, v in result.items() if isinstance(v, str)}
            found.runs.append(Run(out, result | texts))
    if unfinished:
        states = ", ".join(f"{count} {state}" for state, count in sorted(unfinished.items()))
        found.notes.append(f"left out: runs that are not finished ({states}); --watch shows them")
    found.notes = [printable(note) for note in found.notes]
    return found
