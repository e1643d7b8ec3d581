"""Strategies against their counterparts in Avalanche: the seconds of an iteration."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from avalanche.core import SupervisedPlugin
from avalanche.training import plugins as theirs
from avalanche.training.storage_policy import ClassBalancedBuffer
from avalanche.training.supervised import DER, ER_ACE
from hydra.utils import get_class

from clplat.bench.data import split_floats
from clplat.bench.loops import avalanche, ours, stream
from clplat.bench.timing import Figure, clock, in_turns, ratio

WIDTHS = (784, 64, 64, 10)
SAMPLES = {10: 300, 128: 2560}  # of an experience, by the size of a batch
CAPACITY = 200


class Stopwatch(SupervisedPlugin):
    """Median seconds of an iteration, for each experience."""

    def __init__(self) -> None:
        super().__init__()
        self.costs: list[float] = []
        self._ticks: list[float] = []

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self._ticks.append(clock())

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.costs.append(float(np.median(np.diff(self._ticks))))
        self._ticks = []


def own(target: str, **arguments: Any) -> Callable[[int], dict[str, Any]]:
    return lambda size: {"plugins": [get_class(f"strategies.{target}")(**arguments)]}


def plugin(kind: Callable[..., Any], **arguments: Any) -> Callable[[int], dict[str, Any]]:
    return lambda size: {"plugins": [kind(**arguments)]}


def balanced(size: int) -> dict[str, Any]:
    buffer = ClassBalancedBuffer(CAPACITY)
    return {"plugins": [theirs.ReplayPlugin(CAPACITY, storage_policy=buffer)]}


PAIRS: dict[str, tuple[Callable, Callable]] = {
    "replay": (
        own("replay.Replay", capacity=CAPACITY, memory="reservoir"),
        plugin(theirs.ReplayPlugin, mem_size=CAPACITY),
    ),
    "class-balanced replay": (own("replay.Replay", capacity=CAPACITY), balanced),
    "EWC": (
        own("ewc.EWC", strength=1.0, fisher="batch"),
        plugin(theirs.EWCPlugin, ewc_lambda=0.5),
    ),
    "LwF": (own("lwf.LwF"), plugin(theirs.LwFPlugin, alpha=1.0, temperature=2.0)),
    "MAS": (
        own("mas.MAS", strength=1e-3, importance="batch"),
        plugin(theirs.MASPlugin, lambda_reg=1e-3),
    ),
    "SI": (
        own("si.SynapticIntelligence"),
        plugin(theirs.SynapticIntelligencePlugin, si_lambda=0.1),
    ),
    "RWalk": (own("rwalk.RWalk"), plugin(theirs.RWalkPlugin)),
    "DER++": (
        own("der.DER", capacity=CAPACITY),
        lambda size: {"template": partial(DER, mem_size=CAPACITY, batch_size_mem=size)},
    ),
    "MIR": (
        own("mir.MIR", capacity=CAPACITY, candidates=100),
        lambda size: {"plugins": [theirs.MIRPlugin(size, CAPACITY, subsample=100)]},
    ),
    "GSS": (
        own("gss.GSS", capacity=CAPACITY, comparisons=5),
        plugin(theirs.GSS_greedyPlugin, mem_size=CAPACITY, mem_strength=5, input_size=[784]),
    ),
    "ER-ACE": (
        own("er_ace.ERACE", capacity=CAPACITY),
        lambda size: {"template": partial(ER_ACE, mem_size=CAPACITY, batch_size_mem=size)},
    ),
    "A-GEM": (
        own("a_gem.AGEM", capacity=CAPACITY),
        lambda size: {"plugins": [theirs.AGEMPlugin(CAPACITY // 5, sample_size=size)]},
    ),
    "GDumb": (
        own("gdumb.GDumb", capacity=CAPACITY, passes=1),
        plugin(theirs.GDumbPlugin, mem_size=CAPACITY),
    ),
}


def iterations(loop: Callable[..., Iterator[float]], size: int, make: Callable) -> Iterator[float]:
    """Median seconds of an iteration in each experience but the first, where many do nothing."""
    pairs = [(x[: SAMPLES[size]], y[: SAMPLES[size]]) for x, y in split_floats()]
    watch, options = Stopwatch(), make(size)
    options["plugins"] = [*options.get("plugins", ()), watch]
    for index, _ in enumerate(loop(stream(pairs), WIDTHS, size, **options)):
        if index:
            yield watch.costs[-1]


def strategies() -> Iterator[Figure]:
    """Times Avalanche's pace an iteration: MLP 784-64-64-10, memory 200, batches of 10 and 128."""
    for name, (mine, other) in PAIRS.items():
        for size in SAMPLES:
            seconds = in_turns(
                {
                    "ours": partial(iterations, ours, size, mine),
                    "avalanche": partial(iterations, avalanche, size, other),
                },
                rounds=3,
            )
            speed = ratio(seconds["avalanche"], seconds["ours"])
            yield Figure(f"{name}, batch {size}: an iteration, times Avalanche", speed, 2.0)
