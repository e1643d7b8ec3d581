"""Our strategies and their counterparts in Avalanche, with the same memory and settings."""

from collections.abc import Callable
from functools import partial
from typing import Any

from avalanche.training import plugins as theirs
from avalanche.training.storage_policy import ClassBalancedBuffer
from avalanche.training.supervised import DER, ER_ACE, ICaRL
from hydra.utils import get_class
from torch import nn

from clplat.backbones.classifier import classifier
from clplat.backbones.heads import NearestMean, NearestMeanFit
from clplat.bench.loops import IntegerLabels

WIDTHS = (784, 64, 64, 10)
CAPACITY = 200


def own(target: str, **arguments: Any) -> Callable[[int], dict[str, Any]]:
    return lambda size: {"plugins": [get_class(f"strategies.{target}")(**arguments)]}


def plugin(kind: Callable[..., Any], **arguments: Any) -> Callable[[int], dict[str, Any]]:
    return lambda size: {"plugins": [kind(**arguments)]}


def balanced(size: int) -> dict[str, Any]:
    buffer = ClassBalancedBuffer(CAPACITY)
    return {"plugins": [theirs.ReplayPlugin(CAPACITY, storage_policy=buffer)]}


def candidates(size: int) -> int:
    """Of which MIR chooses a batch."""
    return min(5 * size, CAPACITY)


def icarl(size: int) -> dict[str, Any]:
    strategy = get_class("strategies.icarl.ICaRL")(CAPACITY)

    def nearest_mean(network: nn.Sequential) -> nn.Module:
        return classifier(network[:-1], NearestMean(*WIDTHS[-2:]))

    return {"plugins": [strategy, NearestMeanFit(strategy.memory)], "wrap": nearest_mean}


def their_icarl(model: nn.Sequential, **options: Any) -> ICaRL:
    return ICaRL(
        feature_extractor=model[:-1],
        classifier=model[-1],
        memory_size=CAPACITY,
        buffer_transform=None,
        fixed_memory=True,
        **options,
    )


# Of each, what makes the options of the loops in loops.py from the size of a batch.
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
        lambda size: own("mir.MIR", capacity=CAPACITY, candidates=candidates(size))(size),
        lambda size: {"plugins": [theirs.MIRPlugin(size, CAPACITY, subsample=candidates(size))]},
    ),
    "GSS": (
        own("gss.GSS", capacity=CAPACITY, comparisons=5),
        plugin(theirs.GSS_greedyPlugin, mem_size=CAPACITY, mem_strength=5, input_size=[784]),
    ),
    "ER-ACE": (
        own("er_ace.ERACE", capacity=CAPACITY, memory="class_balanced"),
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
    "iCaRL": (icarl, lambda size: {"template": their_icarl, "samples": IntegerLabels}),
}
