"""What a run says of itself in its directory, and whether it is still there to say it."""

import json
import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clplat.directory import LINES, RESULT, STATUS, read_result
from clplat.report.printable import printable

SILENT = 300.0  # seconds without a sign of life, after which a run counts as broken off
STATES = ("running", "finished", "failed", "stopped")  # that a status may say
TAIL = 1 << 16  # bytes of metrics.jsonl that are looked at, from its end


@dataclass(frozen=True)
class Sign:
    """A run as it is now; `silent` is how many seconds ago it gave its last sign of life.

    States: running, finished, failed, stopped, broken off (it says running, but its process is
    gone or it has been silent for too long), unknown (a damaged status, or one
    that says something else).
    """

    state: str
    experience: int | None = None
    epoch: int | None = None
    task: int | None = None
    accuracy: float | None = None
    silent: float | None = None
    reason: str = ""


def read_sign(out: Path, now: datetime | None = None) -> Sign:
    """The state of a run directory."""
    try:
        result = read_result(out) if (out / RESULT).is_file() else None
        if result is not None:
            return Sign("finished", accuracy=_number(result.get("accuracy")))
        values = json.loads((out / STATUS).read_text())
        updated = datetime.fromisoformat(values["updated"])
        silent = ((now or datetime.now(UTC)) - updated).total_seconds()
        state, reason = str(values["state"]), one_line(str(values.get("reason", "")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return Sign("unknown", reason=f"{STATUS} or {RESULT} is damaged: {error}")
    if state not in STATES:
        state, reason = "unknown", one_line(f"{STATUS} says {state}")
    if state == "running" and _gone(values):
        state, reason = "broken off", f"process {values['pid']} is gone"
    elif state == "running" and silent > SILENT:
        state, reason = "broken off", "no sign of life"
    where = {key: values.get(key) for key in ("experience", "epoch", "task")}
    whole = {key: value for key, value in where.items() if isinstance(value, int)}
    accuracy = _accuracy_so_far(out) if state != "finished" else None
    return Sign(state, **whole, accuracy=accuracy, silent=silent, reason=reason)


def one_line(text: str) -> str:
    """A text, which may have several lines, in one."""
    return printable(" ".join(text.split()))


def _number(value: Any) -> float | None:
    try:
        return float(value) if isinstance(value, int | float) else None
    except OverflowError:
        return None


def _gone(values: dict[str, Any]) -> bool:
    """Whether the process was on this host and is there no more."""
    pid = values.get("pid")
    if values.get("host") != socket.gethostname() or not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)  # asks, and sends nothing
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def _accuracy_so_far(out: Path) -> float | None:
    """Of the last evaluation that metrics.jsonl tells of."""
    try:
        with open(out / LINES, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            values = json.loads(line)
        except ValueError:  # cut off, at either end
            continue
        for key in ("accuracy", "score"):
            if isinstance(values, dict) and (number := _number(values.get(key))) is not None:
                return number
    return None
