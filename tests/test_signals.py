"""Signals that ask a process to stop, and those that come twice."""

import os
import signal
import time
from types import SimpleNamespace
from typing import Any

import pytest

from clplat import signals
from clplat.engines import basic, joblib
from clplat.errors import Interrupted
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


def test_a_second_one_is_handed_on_as_a_kill_before_its_own_end(monkeypatch):
    events = []
    monkeypatch.setattr(signals, "ONE", 0.01)
    earlier = signal.signal(signal.SIGTERM, lambda number, frame: events.append("ended"))
    try:
        with listening() as asked:
            asked.hand_on = events.append
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, earlier)
    assert events == [signal.SIGTERM, signal.SIGKILL, "ended"]


def ask_to_stop():
    os.kill(os.getpid(), signal.SIGUSR1)


def test_no_run_is_begun_where_the_imports_are_interrupted(monkeypatch):
    def isolated(job, asked):
        raise AssertionError

    job: Any = SimpleNamespace(number=3)
    monkeypatch.setattr(basic, "preload", ask_to_stop)
    monkeypatch.setattr(basic, "isolated", isolated)
    with pytest.raises(Interrupted, match="stopped by SIGUSR1 before there was anything to save"):
        next(basic.run([job]))


def test_a_worker_hears_what_comes_while_it_imports(monkeypatch):
    job: Any = SimpleNamespace(number=3)
    monkeypatch.setattr(joblib, "prepare", lambda: None)
    monkeypatch.setattr(joblib, "preload", ask_to_stop)
    monkeypatch.setattr(joblib, "isolated", lambda call, asked: asked.number)
    assert joblib.in_worker(job) == (3, signal.SIGUSR1)
