"""How far the runs of a sweep are, while it goes on."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from clplat.directory import RESULT, STATUS
from clplat.errors import InputError
from clplat.report.find import run_folders
from clplat.report.printable import printable
from clplat.report.signs import Sign, read_sign

EVERY = 1.0  # seconds between two looks
PATIENCE = 10.0  # seconds for the next run of a sweep to begin, once none runs any more
STYLES = {"running": "cyan", "finished": "green", "stopped": "yellow"}  # others: red
ORDER = ("running", "broken off", "failed", "stopped", "unknown", "finished")
Signs = Mapping[Path, Sign]
Clock = Callable[[], float]
Sleep = Callable[[float], None]


class Watcher:
    """Looks at the runs below some folders; finished ones are read once."""

    def __init__(self, folders: Sequence[Path]):
        self.folders = folders
        self._finished: dict[Path, Sign] = {}

    def look(self) -> dict[Path, Sign]:
        found = {}
        for out in run_folders(self.folders):
            sign = self._finished.get(out) or read_sign(out)
            if sign.state == "finished":
                self._finished[out] = sign
            found[out] = sign
        return found


def watch(
    folders: Sequence[Path],
    clock: Clock = time.monotonic,
    sleep: Sleep = time.sleep,
) -> None:
    """Show every run until none is running: a table in a terminal, lines elsewhere.

    InputError where there is no run at all.
    """
    watcher = Watcher(folders)
    signs = watcher.look()
    if not signs:
        looked = " ".join(map(str, folders))
        raise InputError(
            f"{looked}: no run (a folder with {STATUS} or {RESULT}) below it; name the folder that "
            "the sweep writes to, once its first run has begun"
        )
    screen = Console(highlight=False)
    show = _in_terminal if screen.is_terminal else _in_lines
    try:
        show(screen, watcher, signs, clock, sleep)
    except KeyboardInterrupt:
        sys.exit(130)


def _looks(watcher: Watcher, signs: Signs, clock: Clock, sleep: Sleep) -> Iterator[Signs]:
    """What each look finds, until nothing has run for some time."""
    ran = clock() if _runs(signs) else None
    yield signs
    while ran is not None and clock() - ran < PATIENCE:
        sleep(EVERY)
        signs = watcher.look()
        if _runs(signs):
            ran = clock()
        yield signs


def _runs(signs: Signs) -> bool:
    return any(sign.state == "running" for sign in signs.values())


def _in_terminal(
    screen: Console, watcher: Watcher, signs: Signs, clock: Clock, sleep: Sleep
) -> None:
    with Live(console=screen, auto_refresh=False) as live:
        for found in _looks(watcher, signs, clock, sleep):
            live.update(drawn(found, watcher.folders, screen.height - 4), refresh=True)


def _in_lines(screen: Console, watcher: Watcher, signs: Signs, clock: Clock, sleep: Sleep) -> None:
    """A line for each change of a run's state or experience."""
    told: dict[Path, tuple] = {}
    found = signs
    for found in _looks(watcher, signs, clock, sleep):
        for out, sign in found.items():
            what = (sign.state, sign.experience, sign.task)
            if told.get(out) != what:
                told[out] = what
                print(line(_name(out, watcher.folders), sign), flush=True)
    print(summary(found), flush=True)


def line(name: str, sign: Sign) -> str:
    """A run in one line."""
    parts = [f"{name}: {sign.state}"]
    parts += [f"experience {sign.experience}"] if sign.experience is not None else []
    parts += [f"task {sign.task}"] if sign.task is not None else []
    parts += [f"epoch {sign.epoch}"] if sign.epoch is not None else []
    parts += [f"accuracy {sign.accuracy:.3f}"] if sign.accuracy is not None else []
    parts += [sign.reason] if sign.reason else []
    return ", ".join(parts)


def summary(signs: Signs) -> str:
    counts = Counter(sign.state for sign in signs.values())
    states = ", ".join(f"{counts[state]} {state}" for state in ORDER if counts[state])
    return f"{len(signs)} runs: {states}"


def drawn(signs: Signs, folders: Sequence[Path], height: int) -> Group:
    """A table of as many runs as fit, those under way first, and how many are in which state."""
    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    rows.add_column("run", overflow="fold")
    rows.add_column("state", no_wrap=True)
    for label in ("experience", "epoch", "accuracy", "last sign"):
        rows.add_column(label, justify="right", no_wrap=True)
    ordered = sorted(signs.items(), key=lambda item: (ORDER.index(item[1].state), item[0]))
    room = max(height - 3, 3)
    for out, sign in ordered[:room]:
        where = sign.experience if sign.experience is not None else sign.task
        state = Text(sign.state, style=STYLES.get(sign.state, "red"))
        rows.add_row(
            Text(_name(out, folders)),
            state if not sign.reason else Text.assemble(state, f": {sign.reason}"),
            "" if where is None else str(where),
            "" if sign.epoch is None else str(sign.epoch),
            "" if sign.accuracy is None else f"{sign.accuracy:.3f}",
            "" if sign.silent is None else ago(sign.silent),
        )
    more = f"; {len(signs) - room} more are not shown" if len(signs) > room else ""
    return Group(rows, Text(summary(signs) + more))


def ago(seconds: float) -> str:
    """How long ago, in the largest unit of which there are two."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"


def _name(out: Path, folders: Sequence[Path]) -> str:
    """Relative to the only folder."""
    if len(folders) == 1 and out != folders[0]:
        return printable(str(out.relative_to(folders[0])))
    return printable(str(out))
