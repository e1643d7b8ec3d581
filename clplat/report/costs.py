"""What not forgetting costs: bytes held and seconds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, Locator, MaxNLocator, NullLocator

from clplat.figures import COLOURS, new_figure
from clplat.report.configurations import Configuration
from clplat.report.figures import legend_beside, literal, style
from clplat.report.quantities import in_bytes
from clplat.report.statistics import summary


def forgetting_figure(configurations: Sequence[Configuration], title: str) -> Figure | None:
    """Forgetting against memory held and against seconds: means, deviations and the Pareto front.

    None where no configuration has both numbers of either.
    """
    costs = {"memory_bytes": "memory held by the strategy", "seconds": "seconds a run"}
    figure = new_figure(10.5, 4.2)
    handles: dict[str, Any] = {}
    drawn = 0
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (cost, label) in zip(panels, costs.items(), strict=True):
        points, furthest = [], 0.0
        for k, c in enumerate(configurations):
            x, y = summary(c.values(cost)), summary(c.values("forgetting"))
            if x is None or y is None:
                continue
            points.append((x.mean, y.mean))
            furthest = max(furthest, x.mean + (x.deviation or 0.0))
            colour, marker = style(k)
            bars = axes.errorbar(
                x.mean,
                y.mean,
                xerr=x.deviation,
                yerr=y.deviation,
                color=colour,
                marker=marker,
                markerfacecolor=colour if k < len(COLOURS) else "none",
                linestyle="",
                markersize=7,
                elinewidth=1,
            )
            handles.setdefault(c.name, bars.lines[0])
        if points:
            front = np.array(pareto_front(points))
            axes.step(*front.T, where="post", color="#808080", ls=":", lw=1.2, zorder=0)
            _cost_axis(axes, [x for x, _ in points], furthest, cost == "memory_bytes")
        drawn += len(points)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel(label)
    panels[0].set_ylabel("forgetting (lower is better)")
    figure.suptitle(literal(title), fontsize=11)
    legend_beside(figure, [*handles.values()], handles)
    return figure if drawn else None


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points than which none is lower in one coordinate and no higher in the other."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(set(points)):
        if not front or y < front[-1][1]:
            front.append((x, y))
    return front


def _cost_axis(axes: Any, costs: Sequence[float], furthest: float, in_units: bool) -> None:
    """Logarithmic where costs span more than a factor of 30, with a place for none at all."""
    positive = [cost for cost in costs if cost > 0]
    if not positive:
        axes.set_xlim(-1, 1)
        axes.set_xticks([0], ["0"])
        return
    least, largest = min(positive), max(positive)
    none = len(positive) < len(costs)
    if largest <= 30 * least:
        axes.set_xlim(-0.04 * furthest if none else 0, 1.06 * furthest)
        ticks = FixedLocator(_multiples(furthest)) if in_units else MaxNLocator(6)
        _tick(axes, ticks, in_units)
        return
    if none:
        axes.set_xscale("symlog", linthresh=least / 2, linscale=0.5)
    else:
        axes.set_xscale("log")
    axes.set_xlim(-least / 16 if none else least / 1.7, max(1.7 * largest, 1.1 * furthest))
    if in_units:
        _tick(axes, FixedLocator([0.0] * none + _powers(least, largest)), in_units)


def _tick(axes: Any, ticks: Locator, in_units: bool) -> None:
    axes.xaxis.set_major_locator(ticks)
    if in_units:
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: in_bytes(value).replace(".0 ", " "))
        )


def _multiples(largest: float) -> list[float]:
    """At most six of a power of two, which are round in units of bytes."""
    step = 2.0 ** max(0, int(np.ceil(np.log2(largest / 5))))
    return [k * step for k in range(6)]


def _powers(least: float, largest: float) -> list[float]:
    low, high = int(np.ceil(np.log2(least))), int(np.log2(largest))
    return [2.0**n for n in range(low, high + 1, max(1, -(-(high - low + 1) // 4)))]
