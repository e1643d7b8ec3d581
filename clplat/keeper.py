"""When a run is saved: at intervals, and as it is asked to stop."""

import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from clplat import checkpoint
from clplat.errors import Interrupted
from clplat.signals import handled
from clplat.state import State

log = logging.getLogger("clplat")

SHARE = 0.02  # of the time, at most, goes into saving at intervals of seconds


class Keeper:
    """Saves a run in its directory every so many `seconds`, `iterations` or `experiences`.

    `whole` gives what the run has beside that which is passed to `save`. `every` None: only when
    the run is asked to stop.
    """

    def __init__(self, out: Path, every: float | None, unit: str, whole: Callable[[], State]):
        self.out, self.every, self.unit, self.whole = out, every, unit, whole
        self.signal: int | None = None  # that asked the run to stop
        self._next = self._start(0.0)

    def _start(self, cost: float) -> float:
        if self.every is None:
            return float("inf")
        if self.unit == "seconds":
            return time.monotonic() + max(self.every, cost / SHARE)
        return self.every

    def due(self, unit: str) -> bool:
        """Whether to save now that an iteration or an experience has ended."""
        if self.signal is not None:
            return True
        if self.unit == "seconds":
            return time.monotonic() >= self._next
        self._next -= unit == self.unit
        return self._next <= 0

    def save(self, state: State) -> None:
        """Write the checkpoint; raises Interrupted if the run was asked to stop."""
        began = time.monotonic()
        checkpoint.save(self.out, {**self.whole(), **state})
        self._next = self._start(time.monotonic() - began)
        if self.signal is not None:
            raise Interrupted(self.signal)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """The first SIGTERM or SIGINT asks the run to stop; the second ends it at once."""

        def ask(number: int) -> None:
            self.signal = number
            log.info("asked to stop by %s: saving first", signal.Signals(number).name)

        with handled(ask):
            yield
