"""How far a run is, for others to read while it goes on."""

import json
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clplat.directory import STATUS, write_atomically

SECONDS = 2.0  # at least, between two writings of one state


class Status:
    """Keeps `status.json` of a run directory: state, progress, process, time of the last sign.

    States: running, finished, failed and stopped; the last two have a `reason`.
    """

    def __init__(self, out: Path):
        self.out = out
        self.values: dict[str, Any] = {"pid": os.getpid(), "host": socket.gethostname()}
        self._next = 0.0
        self.set("running")

    def set(self, state: str, **values: Any) -> None:
        """Written at once."""
        self.values |= {"state": state, **values}
        self._write()

    def alive(self, **values: Any) -> None:
        """A sign of life and what is new; written if the last is long enough ago."""
        self.values |= values
        if time.monotonic() >= self._next:
            self._write()

    def _write(self) -> None:
        self._next = time.monotonic() + SECONDS
        now = datetime.now(UTC).isoformat(timespec="seconds")
        text = json.dumps({**self.values, "updated": now}, indent=2) + "\n"
        write_atomically(self.out / STATUS, text.encode(), durable=False)
