"""What a run costs beside its training: saving it."""

import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

from clplat.__main__ import main
from clplat.bench.timing import Figure, clock
from clplat.keeper import Keeper

COMMON = [
    "scenario=split_fashion_mnist",
    "scenario.samples_per_class=600",
    "train.epochs=2",
    "checkpoint.every=50",
    "checkpoint.unit=iterations",
]
RUNS = {
    "MLP, EWC": ["strategy=ewc", "strategy.fisher=batch"],
    "MLP, replay of 5,000": ["strategy=replay", "strategy.capacity=5000"],
    "MLP of 3 million weights": ["strategy=lwf", "backbone.hidden=[1400,1400]"],
}


def savings(arguments: list[str]) -> list[float]:
    """Seconds of each checkpoint of a run."""
    seconds = []
    save = Keeper.save

    def timed(keeper: Keeper, state: Any) -> None:
        began = clock()
        save(keeper, state)
        seconds.append(clock() - began)

    with tempfile.TemporaryDirectory() as folder, patch.object(Keeper, "save", timed):
        command = ["clplat", *COMMON, *arguments, f"out={Path(folder, 'run')}"]
        with patch("sys.argv", command), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            main()
    return seconds


def checkpoints() -> Iterator[Figure]:
    """The share of a run's time that one checkpoint a minute takes."""
    for name, arguments in RUNS.items():
        seconds = savings(arguments)
        share = 100 * mean(seconds) / 60
        yield Figure(f"a checkpoint a minute, {name}: of the time", share, 2.0, "%", at_most=True)
        print(f"    (mean of {len(seconds)} checkpoints)")
