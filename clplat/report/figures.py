"""Curves and accuracy matrices of several configurations."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from clplat.directory import LINES
from clplat.figures import COLOURS, MARKERS, draw_matrix, finish, new_figure, scale_of
from clplat.metrics import Matrix
from clplat.report.configurations import Configuration

MOST = 12  # configurations in a figure; more could not be told apart
Curves = Mapping[str, tuple[Sequence[float], Sequence[Sequence[float]]]]


def literal(name: str) -> str:
    """A name as matplotlib is to show it: no mathematics, and not hidden from legends."""
    text = name.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def of_those(shown: int, all_of_them: int) -> str:
    return "" if shown == all_of_them else f" (the best {shown} of {all_of_them})"


def style(k: int) -> tuple[str, str]:
    """Colour and marker of the k-th configuration, the same in all figures."""
    return COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]


def score_of(configurations: Sequence[Configuration]) -> str:
    """What the matrices hold: accuracy, unless the scenario says otherwise."""
    named = {str(r.result.get("score", "accuracy")) for c in configurations for r in c.runs}
    return named.pop() if len(named) == 1 else "score"


def accuracy_curves(configurations: Sequence[Configuration]) -> Curves:
    """The score over the experiences so far, of those whose runs have as many of them."""
    curves = {}
    for c in configurations:
        runs = [_numbers(run.result.get("accuracy_so_far")) for run in c.runs]
        if runs[0] and len({len(run) for run in runs}) == 1:
            curves[c.name] = (range(1, len(runs[0]) + 1), runs)
    return curves


def _numbers(values: Any) -> list[float]:
    """A list of numbers as it is, of anything else none."""
    whole = isinstance(values, list) and all(isinstance(v, int | float) for v in values)
    return values if whole else []


def anytime_curves(configurations: Sequence[Configuration]) -> Curves:
    """Samples seen and accuracy of each run, of those that were evaluated inside experiences."""
    curves = {}
    for c in configurations:
        if len(c.values("anytime_accuracy")) < len(c.runs):
            continue
        try:
            points = [_evaluations(run.out / LINES) for run in c.runs]
        except (OSError, ValueError, TypeError, KeyError):
            continue
        common = sorted(set.intersection(*map(set, points)))  # groups end at different places
        if common:
            curves[c.name] = common, [[of_run[samples] for samples in common] for of_run in points]
    return curves


def _evaluations(file: Path) -> dict[int, float]:
    """The accuracy after so many samples, of those inside experiences too."""
    lines = map(json.loads, file.read_text().splitlines())
    return {line["samples"]: line["accuracy"] for line in lines if "samples" in line}


def curves_figure(curves: Curves, title: str, score: str, samples: bool = False) -> Figure:
    """A line for each name: the mean over its runs (runs, points), and a band of one deviation.

    Against experiences, or samples seen.
    """
    figure = new_figure(8, 4.2)
    axes = figure.add_subplot()
    handles = {}
    for k, (name, (x, runs)) in enumerate(curves.items()):
        values = np.asarray(runs, dtype=float)
        mean, deviation = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else 0
        colour, marker = style(k)
        (handles[name],) = axes.plot(
            x,
            mean,
            color=colour,
            marker=None if samples else marker,
            linestyle="--" if k >= len(COLOURS) else "-",
            markersize=5,
            linewidth=1.6,
        )
        axes.fill_between(x, mean - deviation, mean + deviation, color=colour, alpha=0.15, lw=0)
    finish(axes, np.concatenate([np.ravel(runs) for _, runs in curves.values()]), literal(title))
    if samples:
        axes.set_xlabel("samples seen")
        axes.set_ylabel(f"{score} over what was seen so far")
    else:
        axes.set_xlabel("experiences trained")
        axes.set_ylabel(f"{score} over the experiences so far")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    # Named at the side, in the order in which the curves end, so that no line is crossed to read.
    ends = {name: -float(np.mean([run[-1] for run in runs])) for name, (_, runs) in curves.items()}
    order = sorted(curves, key=lambda name: ends[name])
    legend_beside(figure, [handles[name] for name in order], order)
    return figure


def legend_beside(figure: Figure, handles: Sequence[Any], names: Iterable[str]) -> None:
    labels = [literal(name) for name in names]
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)


def matrices_figure(matrices: Mapping[str, Matrix], title: str, score: str) -> Figure:
    """Heat maps of several configurations side by side, on one scale."""
    columns = min(4 if len(matrices) > 6 else 3, len(matrices))
    rows = -(-len(matrices) // columns)
    titles = [wrapped(literal(name)) for name in matrices]
    lines = max(title.count("\n") for title in titles)
    figure = new_figure(max(3.2 * columns + 0.9, 4.8), (3.4 + 0.2 * lines) * rows + 0.6)
    grid = figure.subplots(rows, columns, squeeze=False)
    image: Any = None
    scale = scale_of(matrices.values())
    for axes in grid.flat[len(matrices) :]:
        axes.set_visible(False)
    for k, (axes, matrix) in enumerate(zip(grid.flat, matrices.values(), strict=False)):
        image = draw_matrix(axes, matrix, titles[k], scale)
        axes.set_xlabel("tested on experience" if k + columns >= len(matrices) else "")
        axes.set_ylabel("after experience" if k % columns == 0 else "")
    figure.colorbar(image, ax=grid, label=score, shrink=0.6 if rows > 1 else 0.85)
    figure.suptitle(literal(title), fontsize=11)
    return figure


def wrapped(name: str, width: int = 30) -> str:
    """In lines that are no wider than a heat map, where it has words."""
    lines = [""]
    for word in name.split(" "):
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return "\n".join(lines)
