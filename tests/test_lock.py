"""A run directory is held by one process at a time."""

import os
import signal
import time

import pytest

from clplat.errors import Locked
from clplat.lock import held, locked


def holding(out):
    """A process that holds a run directory until it is killed."""
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        with locked(out):
            os.write(told, b"x")
            time.sleep(60)
        os._exit(0)
    os.read(ready, 1)
    return child


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path):
    out = tmp_path / "runs" / "a"
    child = holding(out)
    try:
        with pytest.raises(Locked) as error, locked(out):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert str(error.value).startswith(f"out={out}: process {child} on ")
    assert str(error.value).endswith(" is at this very run; wait for it, or choose another out")
    with locked(out):  # a process that was killed holds nothing
        pass


def test_the_lock_is_given_back_at_the_end(tmp_path):
    for _ in range(2):
        with locked(tmp_path):
            pass


def test_whether_a_directory_is_held_is_seen_from_outside(tmp_path):
    out = tmp_path / "runs" / "a"
    assert not held(out)
    child = holding(out)
    try:
        assert held(out)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not held(out)
