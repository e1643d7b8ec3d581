"""The critical-difference diagram (Demšar 2006)."""

from typing import Any

from matplotlib.figure import Figure

from clplat.figures import COLOURS, new_figure
from clplat.report.figures import literal, wrapped
from clplat.report.ranks import Ranks

INCHES = 5.0  # of the axis of ranks
LETTER = 0.082  # inches that a letter takes, at most on average
LINE, BAR = 0.3, 0.13  # inches from one to the next


def ranks_figure(ranks: Ranks, title: str) -> Figure:
    """Mean ranks, the best at the left, and a bar over each set of them that do not differ.

    Drawn in inches, y downwards from the axis, so that whatever the names are there is room.
    """
    names, size = [wrapped(literal(name)) for name in ranks.names], len(ranks.names)
    half, groups = (size + 1) // 2, ranks.groups()
    lines = max(name.count("\n") + 1 for name in names)
    step = LINE + 0.15 * (lines - 1)
    letters = max(len(line) for name in names for line in name.split("\n")) + 8
    margin, below = LETTER * letters + 0.2, BAR * (len(groups) + 1) + 0.1
    height = 0.75 + below + step * half
    figure = new_figure(INCHES + 2 * margin, height + 0.4)
    axes = figure.add_subplot()
    axes.set_xlim(-margin, INCHES + margin)
    axes.set_ylim(below + step * (half - 0.5), -0.75)
    axes.set_axis_off()
    axes.set_title(literal(title), fontsize=11)

    def x(rank: float) -> float:
        return (rank - 1) / (size - 1) * INCHES

    ink: dict[str, Any] = {"color": "#000000", "clip_on": False}
    axes.plot([0, INCHES], [0, 0], lw=1.2, **ink)
    for rank in range(1, size + 1):
        axes.plot([x(rank), x(rank)], [0, -0.07], lw=1, **ink)
        if (rank - 1) % max(1, size // 10) == 0:
            axes.text(x(rank), -0.1, str(rank), ha="center", va="bottom", fontsize=9)
    end = x(1 + ranks.critical)
    axes.plot([0, end], [-0.42, -0.42], lw=2, **ink)
    for edge in (0, end):
        axes.plot([edge, edge], [-0.38, -0.46], lw=1.5, **ink)
    axes.text(
        end / 2,
        -0.48,
        f"critical difference {ranks.critical:.2f}",
        ha="center",
        va="bottom",
        fontsize=9,
    )
    for k, (low, high) in enumerate(groups):
        y = BAR * (k + 1)
        ends = [x(low) - 0.04, x(high) + 0.04]
        axes.plot(ends, [y, y], color=COLOURS[0], lw=4, solid_capstyle="round")
    for k, (name, mean) in enumerate(zip(names, ranks.means, strict=True)):
        better = k < half
        y = below + step * (k if better else size - 1 - k)
        side = -0.1 if better else INCHES + 0.1
        axes.plot([x(mean), x(mean), side], [0, y, y], lw=0.9, **ink)
        away, align = (-0.05, "right") if better else (0.05, "left")
        axes.text(side + away, y, f"{mean:.2f}", ha=align, va="center", fontsize=9)
        axes.text(side + 11 * away, y, name, ha=align, va="center", fontsize=10)
    return figure
