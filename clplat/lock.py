"""One process a run directory."""

import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clplat.directory import LOCK
from clplat.errors import InputError, Locked

log = logging.getLogger("clplat")


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold a run directory, which is made if it is not there, until the process ends.

    Locked where another process holds it. The file stays: whoever removed it could leave two
    processes with a lock each.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        opened = open(out / LOCK, "a+")  # noqa: SIM115 - closed below
    except OSError as error:
        raise InputError(
            f"out={out}: cannot be written to ({error.strerror}); choose another out"
        ) from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise Locked(
                f"out={out}: process {file.read().strip() or 'unknown'} is at this very run; wait "
                "for it, or choose another out"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
                raise
            log.warning("%s: this file system has no locks; two runs there would mix", out)
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def held(out: Path) -> bool:
    """Whether a process holds a run directory now."""
    try:
        with open(out / LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or no locks
        return False
    return False
