"""Checkpoint files: written whole or not at all, checked by a digest, and no code in them."""

import hashlib
import io
import logging
import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from clplat.directory import CHECKPOINT, EARLIER_CHECKPOINT, write_beside
from clplat.state import State

log = logging.getLogger("clplat")

MAGIC = b"clplat checkpoint 1 "  # then the SHA-256 of what follows the line, in hexadecimal


def save(out: Path, state: State) -> None:
    """Write a run's checkpoint; the one before it stays until this one is on the disk."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    body = buffer.getbuffer()
    beside = write_beside(out / CHECKPOINT, _line(body), body)
    if (out / CHECKPOINT).exists():
        os.replace(out / CHECKPOINT, out / EARLIER_CHECKPOINT)
    os.replace(beside, out / CHECKPOINT)


def load(out: Path) -> State | None:
    """The latest checkpoint of a run that is whole; None where there is none."""
    for name in (CHECKPOINT, EARLIER_CHECKPOINT):
        try:
            return _read(out / name)
        except FileNotFoundError:
            continue
        except ValueError as error:
            log.warning("%s: %s; looking for the one before it", out / name, error)
    return None


def remove(out: Path) -> None:
    """When the run is finished."""
    for name in (CHECKPOINT, EARLIER_CHECKPOINT, CHECKPOINT + ".tmp"):
        (out / name).unlink(missing_ok=True)


def _line(body: Any) -> bytes:
    return MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n"


def _read(path: Path) -> Any:
    with open(path, "rb") as file:
        line, body = file.readline(len(MAGIC) + 65), file.read()
    if not line.startswith(MAGIC):
        raise ValueError("not a checkpoint of this version")
    if line != _line(body):
        raise ValueError("damaged: its contents are not those of its digest")
    where = None if torch.cuda.is_available() else "cpu"
    try:
        return torch.load(io.BytesIO(body), map_location=where, weights_only=True)
    except UnpicklingError as error:
        raise ValueError("holds more than tensors, numbers and text") from error
