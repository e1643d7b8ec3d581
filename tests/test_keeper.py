"""When a run is saved, and how signals end it."""

import os
import signal

import pytest

from clplat import keeper as module
from clplat.errors import Interrupted
from clplat.keeper import Keeper
from clplat.signals import ASKING


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def saved(monkeypatch):
    found = []
    monkeypatch.setattr(module.checkpoint, "save", lambda out, state: found.append(state))
    return found


def make(every, unit, tmp_path):
    return Keeper(tmp_path, every, unit, lambda: {"whole": 1})


def test_it_is_due_after_so_many_seconds(tmp_path, clock, saved):
    keeper = make(60, "seconds", tmp_path)
    assert not keeper.due("iterations")
    clock[0] += 60
    assert keeper.due("iterations")
    assert keeper.due("experiences")
    keeper.save({"now": 2})
    assert saved == [{"whole": 1, "now": 2}]
    assert not keeper.due("iterations")


def test_saving_that_takes_long_comes_less_often(tmp_path, clock, monkeypatch):
    def slow(out, state):
        clock[0] += 6

    monkeypatch.setattr(module.checkpoint, "save", slow)
    keeper = make(60, "seconds", tmp_path)
    keeper.save({})
    clock[0] += 299
    assert not keeper.due("iterations")
    clock[0] += 1
    assert keeper.due("iterations")


@pytest.mark.parametrize("unit", ["iterations", "experiences"])
def test_it_is_due_after_so_many_of_a_unit_and_of_no_other(tmp_path, saved, unit):
    keeper = make(3, unit, tmp_path)
    other = {"iterations": "experiences", "experiences": "iterations"}[unit]
    found = []
    for _ in range(7):
        assert not keeper.due(other)
        found.append(keeper.due(unit))
        if found[-1]:
            keeper.save({})
    assert found == [False, False, True, False, False, True, False]


@pytest.mark.parametrize("number", ASKING)
def test_a_signal_is_waited_for_and_then_ends_the_run(tmp_path, saved, number):
    before = signal.getsignal(number)
    keeper = make(None, "seconds", tmp_path)
    with keeper.listening():
        assert not keeper.due("iterations")
        os.kill(os.getpid(), number)
        assert keeper.due("iterations")
        with pytest.raises(Interrupted) as stop:
            keeper.save({})
    assert len(saved) == 1
    assert stop.value.number == number
    assert str(stop.value) == (
        f"stopped by {signal.Signals(number).name}, and saved; the same command goes on from there"
    )
    assert signal.getsignal(number) is before
