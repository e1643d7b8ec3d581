"""Signals that ask a process to stop, and those that come twice."""

import os
import signal
import time

import pytest

from clplat import signals
from clplat.signals import ASKING, handled, listening


def test_a_signal_that_comes_by_two_ways_is_one(monkeypatch):
    told = []
    with handled(told.append):
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR2):
            os.kill(os.getpid(), number)
    assert told == [signal.SIGTERM]


@pytest.mark.parametrize("number", ASKING)
def test_a_second_one_does_what_it_did_before(monkeypatch, number):
    told, before = [], []
    monkeypatch.setattr(signals, "ONE", 0.01)
    earlier = signal.signal(number, lambda number, frame: before.append(number))
    try:
        with handled(told.append):
            os.kill(os.getpid(), number)
            time.sleep(0.02)
            os.kill(os.getpid(), number)
    finally:
        signal.signal(number, earlier)
    assert told == before == [number]


def test_what_is_asked_is_handed_on():
    handed = []
    with listening() as asked:
        assert asked.number is None
        asked.hand_on = handed.append
        os.kill(os.getpid(), signal.SIGUSR1)
    assert handed == [asked.number] == [signal.SIGUSR1]
