"""Checkpoint files: whole or not there, the one before where one is damaged, and never code."""

import errno
import hashlib
import io
import logging
import os

import pytest
import torch

from clplat import checkpoint
from clplat.checkpoint import MAGIC
from clplat.directory import CHECKPOINT, EARLIER_CHECKPOINT

STATE = {"weights": {"a": torch.arange(6.0).view(2, 3)}, "count": 3, "text": "x", "nothing": None}


def number(k):
    return {**STATE, "count": k}


@pytest.fixture
def two(tmp_path):
    checkpoint.save(tmp_path, number(1))
    checkpoint.save(tmp_path, number(2))
    return tmp_path


def test_what_was_saved_last_comes_back(two):
    state = checkpoint.load(two)
    assert state["count"] == 2
    assert torch.equal(state["weights"]["a"], STATE["weights"]["a"])
    assert sorted(p.name for p in two.iterdir()) == sorted([CHECKPOINT, EARLIER_CHECKPOINT])


def test_where_there_is_none_there_is_none(tmp_path):
    assert checkpoint.load(tmp_path) is None


def test_none_is_left_once_a_run_is_finished(two):
    (two / (CHECKPOINT + ".tmp")).write_bytes(b"half")
    checkpoint.remove(two)
    assert list(two.iterdir()) == []


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[len(data) // 2] ^= 4
    elif how == "of another version":
        data = bytearray(b"clplat checkpoint 0 ") + data[len(MAGIC) :]
    else:
        data = data[: {"truncated": len(data) // 2, "cut in its first line": 30, "empty": 0}[how]]
    path.write_bytes(data)


@pytest.mark.parametrize(
    "how", ["flipped", "truncated", "cut in its first line", "empty", "of another version"]
)
def test_a_damaged_one_is_named_and_the_one_before_it_taken(two, how, caplog):
    damage(two / CHECKPOINT, how)
    with caplog.at_level(logging.WARNING):
        assert checkpoint.load(two)["count"] == 1
    assert f"{two / CHECKPOINT}: " in caplog.text
    damage(two / EARLIER_CHECKPOINT, how)
    assert checkpoint.load(two) is None


def test_code_in_it_is_not_run(tmp_path, caplog):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    body = io.BytesIO()
    torch.save({"state": Evil()}, body)
    line = MAGIC + hashlib.sha256(body.getvalue()).hexdigest().encode() + b"\n"
    (tmp_path / CHECKPOINT).write_bytes(line + body.getvalue())
    assert checkpoint.load(tmp_path) is None
    assert "holds more than tensors, numbers and text" in caplog.text
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_last_one_whole(two, monkeypatch, moment):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    if moment == "write":
        monkeypatch.setattr(checkpoint.hashlib, "sha256", full)  # before the first byte
    else:
        monkeypatch.setattr(checkpoint.os, moment, full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(two, number(3))
    monkeypatch.undo()
    assert checkpoint.load(two)["count"] == 2
    if moment != "replace":
        assert not (two / (CHECKPOINT + ".tmp")).exists()


def test_a_death_between_the_two_renamings_leaves_the_one_before(two, monkeypatch):
    replace, calls = os.replace, []

    def once(*args):
        if calls:
            raise KeyboardInterrupt
        calls.append(args)
        replace(*args)

    monkeypatch.setattr(checkpoint.os, "replace", once)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(two, number(3))
    assert not (two / CHECKPOINT).exists()
    assert checkpoint.load(two)["count"] == 2
