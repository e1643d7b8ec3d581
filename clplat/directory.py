"""Run directories read back; light enough to be asked before anything is imported to run."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from clplat.errors import InputError

RESULT, CONFIG, MATRIX = "result.json", "config.yaml", "accuracy_matrix.npy"
STATUS, LOCK = "status.json", "lock"
LINES, ENCODER = "metrics.jsonl", "encoder.pt"
CHECKPOINT, EARLIER_CHECKPOINT = "checkpoint.pt", "checkpoint_before.pt"
DIGEST_LINE = "# digest: "
TRIALS = "tune"  # the folder of runs that settings are chosen by
Value = TypeVar("Value")


def write_beside(path: Path, *parts: Any, durable: bool = True) -> Path:
    """Write bytes to a file beside `path`, which is to be renamed to it; to the disk if `durable`.

    Nothing is left of what cannot be written whole, for a disk may be full.
    """
    beside = path.with_name(path.name + ".tmp")
    try:
        with open(beside, "wb") as file:
            file.writelines(parts)
            if durable:
                file.flush()
                os.fsync(file.fileno())
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    return beside


def write_atomically(path: Path, data: bytes, durable: bool = True) -> None:
    """All of the data or nothing: to a file beside it, then renamed."""
    os.replace(write_beside(path, data, durable=durable), path)


def read_digest(out: Path) -> str | None:
    """The digest of the config that a run directory was started with, if it is one."""
    try:
        first = (out / CONFIG).read_text().splitlines()[0]
    except (FileNotFoundError, NotADirectoryError, IndexError):
        return None
    return first.removeprefix(DIGEST_LINE) if first.startswith(DIGEST_LINE) else "none"


def read_config(out: Path) -> dict[str, Any]:
    """The resolved config of a run; {} where there is none."""
    file = out / CONFIG
    # The loader in C reads the same, ten times as fast; PyYAML need not have been built with it.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(file.read_text(), Loader=loader) if file.is_file() else {}


def read_result(out: Path) -> dict[str, Any] | None:
    """What a finished run measured; None where there is none, ValueError where it is damaged."""
    file = out / RESULT
    try:
        return json.loads(file.read_text(), parse_int=_whole) if file.is_file() else None
    except RecursionError as error:
        raise ValueError("lists inside lists without end") from error


def _whole(digits: str) -> int:
    """A whole number that can be made a float, as all are when runs are compared."""
    number = int(digits)
    if abs(number) > sys.float_info.max:
        raise ValueError(f"a number is too large: {digits[:9]}...")
    return number


def given_result(key: str, out: Path) -> dict[str, Any] | None:
    """The result in the run directory that a key of the config names; None where there is none."""

    def mapping(out: Path) -> dict[str, Any] | None:
        result = read_result(out)
        if not isinstance(result, dict) and (out / RESULT).is_file():
            raise ValueError("expected names with values")
        return result

    return _given(key, out, RESULT, mapping)


def _given(key: str, out: Path, name: str, read: Callable[[Path], Value]) -> Value:
    """What a file of a run directory holds; InputError where it cannot be read."""
    try:
        return read(out)
    except (OSError, ValueError) as error:
        how = "is damaged" if isinstance(error, ValueError) else "cannot be read"
        raise InputError(
            f"{key}={out}: its {name} {how} ({error}); remove that directory, or choose another "
            f"{key}"
        ) from error


def already_done(out: Path, digest: str, seeds: dict[str, int]) -> dict[str, Any] | None:
    """The result, if this very run is finished; an error if the directory is another run's."""
    result = given_result("out", out)
    held = _given("out", out, CONFIG, read_digest)
    mend = "choose another out, or remove that directory"
    if held is not None and held != digest:
        raise InputError(
            f"out={out}: holds a run of another config (digest {held}, this one is {digest}); "
            f"{mend}"
        )
    if result is not None and result.get("seeds") != seeds:
        raise InputError(
            f"out={out}: holds a run with other seeds ({result.get('seeds')}, these are {seeds}); "
            f"{mend}"
        )
    if out.exists() and not out.is_dir():
        raise InputError(f"out={out}: is a file; expected a directory; choose another out")
    return result
