"""Whole sweeps as subprocesses, and a strategy whose runs die."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SHORT = "train.epochs=1 optimizer.lr=0.001"


def lasting(epochs: int) -> str:
    """Runs that are saved every few moments.

    On two nodes one may begin seconds after the other: to be seen at work at once they must last.
    """
    return f"train.epochs={epochs} checkpoint.every=50 checkpoint.unit=iterations"


LONG = lasting(20)  # some seconds


@contextmanager
def started(arguments: str, folder: Path, **environment: str) -> Iterator[subprocess.Popen]:
    """`clplat -m arguments` in a folder; ended if it has not by itself."""
    process = subprocess.Popen(
        [sys.executable, "-m", "clplat", "-m", *arguments.split()],
        cwd=folder,
        env={**os.environ, "HYDRA_FULL_ERROR": "0", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def swept(arguments: str, folder: Path, **environment: str) -> tuple[int, str]:
    """Its exit status, and what it printed on standard error, in the end."""
    with started(arguments, folder, **environment) as process:
        return ended(process)


def ended(process: subprocess.Popen) -> tuple[int, str]:
    _, err = process.communicate()
    return process.returncode, err


def outcomes(folder: Path) -> list[dict[str, Any]]:
    """What all sweeps in a folder noted."""
    files = sorted((folder / "runs").glob("sweep_*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def wait_until(condition: Callable[[], bool], seconds: float = 600) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def write_dies(folder: Path) -> str:
    """Write a strategy whose process ends without a word; return the arguments that choose it."""
    mine = folder / "mylab"
    (mine / "strategy").mkdir(parents=True)
    (mine / "strategy" / "dies.yaml").write_text("# Dies.\n_target_: dies.Dies\n")
    (mine / "dies.py").write_text(
        "import os\nfrom avalanche.core import SupervisedPlugin\n"
        "class Dies(SupervisedPlugin):\n"
        "    def before_training_exp(self, strategy, **kwargs):\n"
        "        os._exit(7)\n"
    )
    return "--config-dir mylab strategy=dies,finetune"
