"""What SIGTERM and SIGINT do while a run goes on."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

ASKING = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def handled(told: Callable[[int], None]) -> Iterator[None]:
    """`told` is called at the first that comes; the second does what it would have done before.

    Outside the main thread, where no handler can be set, nothing is.
    """
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handler(number: int, frame: Any) -> None:
        restore()
        told(number)

    with suppress(ValueError):
        for number in ASKING:
            before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        restore()
