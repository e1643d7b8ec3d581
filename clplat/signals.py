"""What the signals that ask a process to stop do while a run goes on."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

# The last two are what clusters send before a time limit or a preemption.
ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
# SLURM signals every process of a step: a run gets it from there, and handed on by its sweep.
ONE = 1.0  # second within which two signals are one


@contextmanager
def handled(
    told: Callable[[int], None], again: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """`told` is called at the first that comes; the second does what it would have done before,
    once `again` is called.

    Outside the main thread, where no handler can be set, nothing is.
    """
    before: dict[int, Any] = {}
    first: list[float] = []

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handler(number: int, frame: Any) -> None:
        if not first:
            first.append(time.monotonic())
            told(number)
        elif time.monotonic() - first[0] > ONE:
            again()
            restore()
            signal.raise_signal(number)

    with suppress(ValueError):
        for number in ASKING:
            before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        restore()


def nobody(number: int) -> None:
    """There is no process to hand a signal on to."""


@dataclass
class Asked:
    """Which signal asked to stop, if any has; it is handed on by `hand_on`, a second as SIGKILL."""

    number: int | None = None
    hand_on: Callable[[int], None] = nobody


@contextmanager
def listening() -> Iterator[Asked]:
    """For a process that has others carry out the runs."""
    asked = Asked()

    def told(number: int) -> None:
        asked.number = number
        asked.hand_on(number)

    def again() -> None:
        asked.hand_on(signal.SIGKILL)  # now: the second may end this process with no code of ours

    with handled(told, again):
        yield asked
