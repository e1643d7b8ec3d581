"""What a run says of itself while it goes on."""

import json
import os

import pytest

from clplat import status as module
from clplat.directory import STATUS
from clplat.status import SECONDS, Status


def read(out):
    return json.loads((out / STATUS).read_text())


@pytest.fixture
def clock(monkeypatch):
    now = [10.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_signs_of_life_are_written_every_so_often(tmp_path, clock):
    status = Status(tmp_path)
    assert read(tmp_path)["state"] == "running"
    assert read(tmp_path)["pid"] == os.getpid()
    status.alive(experience=1)
    assert "experience" not in read(tmp_path)
    clock[0] += SECONDS
    status.alive(epoch=2)
    assert (read(tmp_path)["experience"], read(tmp_path)["epoch"]) == (1, 2)


def test_a_change_of_state_is_written_at_once_and_keeps_the_rest(tmp_path, clock):
    status = Status(tmp_path)
    status.alive(experience=3)
    status.set("failed", reason="ValueError: x")
    found = read(tmp_path)
    assert (found["state"], found["reason"], found["experience"]) == ("failed", "ValueError: x", 3)
    assert found["updated"].endswith("+00:00")
