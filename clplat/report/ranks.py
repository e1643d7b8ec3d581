"""Ranks over blocks, and which of them differ (Demšar 2006)."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import friedmanchisquare, rankdata, studentized_range

from clplat.report.configurations import Configuration
from clplat.report.quantities import QUANTITIES

LEAST = "at least three configurations that share two blocks (scenario and seeds)"
BLOCKS = 2  # that are shared, at least
MOST = 30  # names that a diagram has room for


@dataclass(frozen=True)
class Ranks:
    """Mean ranks over blocks, 1 the best; `p` is Friedman's; `critical` Nemenyi's difference.

    `left_out`: names of those that share too few blocks with the others.
    """

    names: list[str]
    means: list[float]
    blocks: int
    p: float
    critical: float
    left_out: list[str]

    def groups(self) -> list[tuple[float, float]]:
        """From the best to the worst mean rank of each largest set whose ranks do not differ."""
        means = sorted(self.means)
        spans = [(m, max(x for x in means if x - m <= self.critical)) for m in means]
        largest = [s for k, s in enumerate(spans) if k == 0 or s[1] > spans[k - 1][1]]
        return [(low, high) for low, high in largest if high > low]


def critical_difference(configurations: int, blocks: int, level: float = 0.05) -> float:
    """Nemenyi's: mean ranks further apart than this differ."""
    q = studentized_range.ppf(1 - level, configurations, np.inf) / 2**0.5
    return float(q * (configurations * (configurations + 1) / (6 * blocks)) ** 0.5)


def rank(configurations: Sequence[Configuration], metric: str) -> Ranks | str:
    """The ranks of the configurations, by name over all scenarios; or why there are none.

    A block is a scenario with seeds; all that are ranked are in all blocks. Those that
    stand in the way of common blocks are left out.
    """
    values: dict[str, dict] = {}
    for c in configurations:
        blocks = {(c.scenario, seeds): v for seeds, v in c.by_seeds(metric).items()}
        values.setdefault(c.name, {}).update(blocks)
    names, left_out = _sharing(values)
    if len(names) < 3:
        return f"it takes {LEAST}"
    if len(names) > MOST:
        return f"{len(names)} configurations; there is room for {MOST}: compare fewer at a time"
    shared = _shared(values, names)
    sign = 1 if QUANTITIES[metric].lower_is_better else -1
    table = np.array([[sign * values[name][block] for name in names] for block in shared])
    if np.all(table == table[:, :1]):
        return f"all configurations have the same {QUANTITIES[metric].label} in every block"
    means = rankdata(table, axis=1).mean(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks for more blocks, which is said with the result
        p = float(friedmanchisquare(*table.T).pvalue)
    order = np.argsort(means, kind="stable")
    return Ranks(
        [names[k] for k in order],
        means[order].tolist(),
        len(shared),
        p,
        critical_difference(len(names), len(shared)),
        left_out,
    )


def _sharing(values: dict[str, dict]) -> tuple[list[str], list[str]]:
    """Those that share two blocks, and those that are left out for it, one after another.

    Each time the one without which the others share the most; then the one with the fewest in
    common with single others, of the two that it takes; then the one with the fewest of its own.
    """
    names, left_out = list(values), []
    blocks = list(dict.fromkeys(block for found in values.values() for block in found))
    has = np.array([[block in values[name] for block in blocks] for name in names], dtype=int)
    pairs = np.minimum(has @ has.T, BLOCKS)
    kept = list(range(len(names)))
    while len(kept) >= 3 and np.all(has[kept], axis=0).sum() < BLOCKS:
        missing = len(kept) - has[kept].sum(0)
        shared = ((missing - (1 - has[kept])) == 0).sum(1)  # by the others, without each
        common, own = pairs[np.ix_(kept, kept)].sum(1), has[kept].sum(1)
        odd = kept[np.lexsort((np.arange(len(kept)), -own, -common, shared))[-1]]
        kept.remove(odd)
        left_out.append(names[odd])
    return [names[k] for k in kept], left_out


def _shared(values: dict[str, dict], names: Sequence[str]) -> list:
    first, *others = (values[name] for name in names)
    return [block for block in first if all(block in other for other in others)]


def ranks_told(ranks: Ranks | str, metric: str) -> str:
    """What the diagram shows, or why there is none."""
    if isinstance(ranks, str):
        return f"no critical-difference diagram: {ranks}"
    p = "< 0.001" if ranks.p < 0.001 else f"= {ranks.p:.3f}"
    verdict = "" if ranks.p < 0.05 else " (as a whole they do not differ)"
    told = (
        f"ranks by {QUANTITIES[metric].label} of {len(ranks.names)} configurations over "
        f"{ranks.blocks} blocks of scenario and seeds: Friedman's test p {p}{verdict}, Nemenyi's "
        f"critical difference {ranks.critical:.2f}; few blocks say little, and seeds of one "
        "scenario are no independent data sets"
    )
    if ranks.left_out:
        told += f"; not ranked, for want of common blocks: {', '.join(ranks.left_out)}"
    return told
