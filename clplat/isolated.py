"""A job in a process of its own, forked from one that has imported what it needs."""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

from clplat.errors import Interrupted
from clplat.signals import ASKING, Asked, nobody
from clplat.sweep import Outcome


def preload() -> None:
    """Import what most runs need, once for all that are forked from here."""
    import sklearn.datasets  # noqa: F401 - digits come with it, and it takes longer than many a run

    import clplat.run  # noqa: F401


def isolated(job: Callable[[], Outcome], asked: Asked) -> Outcome:
    """The outcome of a job that runs in a process of its own: it may die, and others go on.

    A signal that asks to stop is handed on to it, once: it is in a process group of its own, which
    Ctrl-C does not reach. The second kills that group.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)  # none may come to a child not yet known
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os.close(reading)
        for number in ASKING:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
        _answer(job, writing)
    os.setpgid(child, child)  # here too: whichever of the two comes first
    asked.hand_on = partial(_hand_on, child)
    if asked.number is not None:  # asked before there was this child
        asked.hand_on(asked.number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
    os.close(writing)
    answer = _read(reading)
    asked.hand_on = nobody
    _, ended = os.waitpid(child, 0)
    if answer:
        return Outcome(**json.loads(answer))
    code = os.waitstatus_to_exitcode(ended)
    if asked.number is not None:
        stop = Interrupted(asked.number, saved=False)
        return Outcome("stopped", 128 + asked.number, str(stop))
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"it ended with status {code}"
    return Outcome("failed", 1, f"the process died: {how}")


def _hand_on(child: int, number: int) -> None:
    """To a child, which ends its own; SIGKILL, which it cannot answer, to all of its group."""
    (os.killpg if number == signal.SIGKILL else os.kill)(child, number)


def _answer(job: Callable[[], Outcome], writing: int) -> None:
    """In the child, which never returns: it would go on as a second process of its parent's."""
    try:
        try:
            outcome = job()
        except BaseException as error:
            traceback.print_exc()
            outcome = Outcome("failed", 1, f"{type(error).__name__}: {error}")
        with open(writing, "w") as pipe:  # which breaks where the parent has been killed
            json.dump(asdict(outcome), pipe)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(0)


def _read(reading: int) -> str:
    with open(reading) as pipe:
        return pipe.read()
