"""The command line, called in this process: its imports are paid once for the whole suite.

Sweeps are called in one of their own: each run is split off from it, which a process whose autograd
has begun threads, as some test may have made it do, cannot.
"""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass

import pytest

from clplat.__main__ import main


def mine() -> list[str]:
    """Modules that a user's folder of an earlier test gave: a new process would not have them."""
    files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
    return [name for name, file in files.items() if file and re.search("/(mylab|mine)/", file)]


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Command:
    """`command("strategy=ewc seed=1")` is `clplat strategy=ewc seed=1` in the current folder."""

    monkeypatch: pytest.MonkeyPatch
    capfd: pytest.CaptureFixture[str]

    def __call__(self, arguments: str) -> Outcome:
        given = shlex.split(arguments)
        if {"-m", "--multirun"} & set(given) or any(
            a.startswith(("seeds=", "tune.")) for a in given
        ):
            environment = {**os.environ, "HYDRA_FULL_ERROR": "0"}
            done = subprocess.run(
                [sys.executable, "-m", "clplat", *given],
                capture_output=True,
                text=True,
                check=False,
                env=environment,
            )
            return Outcome(done.returncode, done.stdout, done.stderr)
        self.monkeypatch.setattr(sys, "argv", ["clplat", *given])
        self.monkeypatch.setattr(sys, "path", [*sys.path])
        self.monkeypatch.setitem(os.environ, "HYDRA_FULL_ERROR", "0")
        for name in mine():
            del sys.modules[name]
        self.capfd.readouterr()
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        return Outcome(status, *self.capfd.readouterr())
