"""Sweeps: each run in a process of its own, and what became of all of them."""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console

from clplat.errors import Interrupted
from clplat.signals import handled

PLACE = "CLPLAT_SWEEP"  # in the environment of a sweep's processes: the file of its outcomes
DONE = ("finished", "skipped")


@dataclass(frozen=True)
class Outcome:
    """What became of a run: finished, skipped (it was there), stopped, or failed for a reason.

    `status` is what a process that runs it alone exits with; `out` is its directory, "" where the
    run was refused before it had one.
    """

    state: str
    status: int = 0
    reason: str = ""
    out: str = ""


def isolated(job: Callable[[], Outcome]) -> Outcome:
    """The outcome of a job that runs in a process of its own: it may die, and others go on.

    A signal that asks to stop is handed on to it, once: it is in a process group of its own, which
    Ctrl-C does not reach.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os.close(reading)
        _answer(job, writing)
    os.close(writing)
    asked: list[int] = []

    def hand_on(number: int) -> None:
        asked.append(number)
        os.kill(child, number)

    with handled(hand_on):
        answer = _read(reading)
    _, ended = os.waitpid(child, 0)
    if answer:
        return Outcome(**json.loads(answer))
    code = os.waitstatus_to_exitcode(ended)
    if asked:
        return Outcome("stopped", 128 + asked[0], str(Interrupted(asked[0], saved=False)))
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"it ended with status {code}"
    return Outcome("failed", 1, f"the process died: {how}")


def _answer(job: Callable[[], Outcome], writing: int) -> None:
    """In the child, which never returns."""
    try:
        outcome = job()
    except BaseException as error:
        traceback.print_exc()
        outcome = Outcome("failed", 1, f"{type(error).__name__}: {error}")
    sys.stdout.flush()
    sys.stderr.flush()
    with open(writing, "w") as pipe:
        json.dump(asdict(outcome), pipe)
    os._exit(0)


def _read(reading: int) -> str:
    with open(reading, closefd=False) as pipe:
        text = pipe.read()
    os.close(reading)
    return text


def note(job: int, overrides: str, outcome: Outcome) -> None:
    """Append what became of a run; in one write, so that processes do not mix their lines."""
    line = json.dumps({"job": job, "overrides": overrides, **asdict(outcome)}) + "\n"
    with open(os.environ[PLACE], "ab", buffering=0) as file:
        file.write(line.encode())


def outcomes(file: Path) -> list[dict[str, Any]]:
    """What is noted of a sweep, in the order of its jobs."""
    lines = file.read_text().splitlines() if file.is_file() else []
    return sorted(map(json.loads, lines), key=lambda line: line["job"])


def summary(found: list[dict[str, Any]]) -> str:
    """How many ended how, and each that did not finish: its overrides, the reason, its log."""
    states = [line["state"] for line in found]
    counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
    lines = [f"{len(found)} runs: {counts}"]
    for line in found:
        if line["state"] not in DONE:
            log = Path(line["out"], "run.log") if line["out"] else None
            where = f" ({log})" if log and log.is_file() else ""
            lines.append(f"[{line['job'] + 1}] {line['overrides']}: {line['reason']}{where}")
    return "\n".join(lines)


class Summary(Callback):
    """Prints the summary of a sweep at its end; `status` is then what the command exits with."""

    status: int | None = None  # of the last sweep of this process; None: there was none
    runs = 0  # of it
    done: ClassVar[list[Path]] = []  # the directories of those that are finished

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        Summary.status = Summary.runs = 0
        folder = Path(config.hydra.sweep.dir).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        began = datetime.now().strftime("%Y%m%d_%H%M%S")
        os.environ[PLACE] = str(folder / f"sweep_{began}_{os.getpid()}.jsonl")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        found = outcomes(Path(os.environ[PLACE]))
        Summary.status = max((line["status"] for line in found), default=0)
        Summary.runs = len(found)
        Summary.done = [Path(line["out"]) for line in found if line["state"] in DONE]
        if len(found) > 1 or Summary.status:
            Console(stderr=True, highlight=False).print(
                summary(found), soft_wrap=True, markup=False
            )
