"""Figures of runs, drawn without a display and without pyplot's global state."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from clplat.metrics import Matrix

# Okabe & Ito's colours, told apart with any colour vision; markers tell them apart in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C00")
MARKERS = "osD^vPX*"


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    return figure


def close(figure: Figure) -> None:
    figure.clear()


def _scale(matrices: Iterable[Matrix]) -> tuple[float, float]:
    """0 to 1 where all scores lie in it, as accuracies do; else from the least to the largest."""
    scores = np.concatenate([matrix[:-1].ravel() for matrix in matrices])
    least, largest = float(np.nanmin(scores)), float(np.nanmax(scores))
    return (0.0, 1.0) if least >= 0 and largest <= 1 else (least, largest)


def _draw_matrix(axes: Any, matrix: Matrix, title: str, scale: tuple[float, float]) -> Any:
    size = matrix.shape[1]
    image = axes.imshow(matrix[:size], vmin=scale[0], vmax=scale[1], cmap="cividis")
    if size <= 12:
        for (i, j), value in np.ndenumerate(matrix[:size]):
            dark = (value - scale[0]) / max(scale[1] - scale[0], 1e-12) < 0.55
            colour = "white" if dark else "black"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=7.5)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("tested on experience")
    axes.set_ylabel("after experience")
    axes.set_xticks(range(0, size, max(1, size // 10)))
    axes.set_yticks(range(0, size, max(1, size // 10)))
    return image


def matrix_figure(matrix: Matrix, title: str, score: str = "accuracy") -> Figure:
    """The accuracy matrix as a heat map: rows after an experience, columns tested on one."""
    figure = _figure(4.8, 4)
    image = _draw_matrix(figure.add_subplot(), matrix, title, _scale([matrix]))
    figure.colorbar(image, label=score, shrink=0.85)
    return figure


def matrices_figure(matrices: Mapping[str, Matrix], title: str, score: str = "accuracy") -> Figure:
    """Heat maps of several strategies side by side, on one scale."""
    columns = min(3, len(matrices))
    rows = -(-len(matrices) // columns)
    figure = _figure(3.4 * columns + 0.8, 3.3 * rows + 0.4)
    grid = figure.subplots(rows, columns, squeeze=False)
    image: Any = None
    scale = _scale(matrices.values())
    for axes in grid.flat[len(matrices) :]:
        axes.set_visible(False)
    for axes, (name, matrix) in zip(grid.flat, matrices.items(), strict=False):
        image = _draw_matrix(axes, matrix, name, scale)
    for axes in grid.flat:
        axes.label_outer()
    figure.colorbar(image, ax=grid, label=score, shrink=0.6)
    figure.suptitle(title, fontsize=11)
    return figure


def curves_figure(
    curves: Mapping[str, Sequence[Sequence[float]]], title: str, score: str = "accuracy"
) -> Figure:
    """Score over the experiences so far: mean over runs, and a band of one deviation."""
    longest = max(len(runs[0]) for runs in curves.values())
    lines = {name: (np.arange(1, len(runs[0]) + 1), runs) for name, runs in curves.items()}
    figure, axes = _lines_figure(lines, title, markers=True)
    axes.set_xlabel("experiences trained")
    axes.set_ylabel(f"{score} over the experiences so far")
    axes.set_xticks(range(1, longest + 1, 1 if longest <= 20 else longest // 10))
    return figure


def anytime_figure(
    curves: Mapping[str, tuple[Sequence[int], Sequence[Sequence[float]]]],
    title: str,
    score: str = "accuracy",
) -> Figure:
    """Score against samples seen: of each name the samples, and the scores of each run."""
    figure, axes = _lines_figure(curves, title, markers=False)
    axes.set_xlabel("samples seen")
    axes.set_ylabel(f"{score} over what was seen so far")
    return figure


def curve_figure(x: Sequence[float], y: Sequence[float], title: str) -> Figure:
    """One curve, such as accuracy against the share of units silenced."""
    figure = _figure(4.2, 3)
    axes = figure.add_subplot()
    axes.plot(x, y, color=COLOURS[0], marker=MARKERS[0], linewidth=1.8)
    _finish(axes, y, title)
    return figure


def _finish(axes: Any, scores: Any, title: str) -> None:
    """From 0 to 1 where all scores lie in it, as accuracies do; a grid, and no box."""
    if np.min(scores) >= 0 and np.max(scores) <= 1:
        axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=11)


def _lines_figure(
    lines: Mapping[str, tuple[Any, Sequence[Sequence[float]]]], title: str, markers: bool
) -> tuple[Figure, Any]:
    """A line for each name: the mean over its runs (runs, points), and a band of one deviation."""
    figure = _figure(7, 4.2)
    axes = figure.add_subplot()
    for k, (name, (x, runs)) in enumerate(lines.items()):
        values = np.asarray(runs)
        mean, deviation = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else 0
        colour = COLOURS[k % len(COLOURS)]
        marker = MARKERS[k % len(MARKERS)] if markers else None
        axes.plot(x, mean, color=colour, marker=marker, markersize=5, label=name, linewidth=1.6)
        axes.fill_between(x, mean - deviation, mean + deviation, color=colour, alpha=0.15, lw=0)
    _finish(axes, np.concatenate([np.ravel(runs) for _, runs in lines.values()]), title)
    # Named at the side, in the order in which the curves end, so that no line is crossed to read.
    handles, labels = axes.get_legend_handles_labels()
    ends = [-np.asarray(lines[name][1])[:, -1].mean() for name in labels]
    order = np.argsort(ends, kind="stable")
    axes.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        frameon=False,
    )
    return figure, axes
