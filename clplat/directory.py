"""Run directories read back; light enough to be asked before anything is imported to run."""

import json
import os
from pathlib import Path
from typing import Any

import yaml

from clplat.errors import InputError

RESULT, CONFIG, MATRIX = "result.json", "config.yaml", "accuracy_matrix.npy"
STATUS, LOCK = "status.json", "lock"
LINES, ENCODER = "metrics.jsonl", "encoder.pt"
CHECKPOINT, EARLIER_CHECKPOINT = "checkpoint.pt", "checkpoint_before.pt"
DIGEST_LINE = "# digest: "
TRIALS = "tune"  # the folder of runs that settings are chosen by


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
    """What a finished run measured; None where there is none."""
    file = out / RESULT
    return json.loads(file.read_text()) if file.is_file() else None


def already_done(out: Path, digest: str, seeds: dict[str, int]) -> dict[str, Any] | None:
    """The result, if this very run is finished; an error if the directory is another run's."""
    result = read_result(out)
    held, mend = read_digest(out), "choose another out, or remove that directory"
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
