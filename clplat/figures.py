"""Figures of runs, drawn without a display and without pyplot's global state."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from clplat.metrics import Matrix

# Okabe & Ito's colours, told apart with any colour vision; markers tell them apart in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C00")
MARKERS = "osD^vPX*"
ON_BRIGHT = "#010101"  # not #000000, which is the reader's ink: white on the report's dark page


def new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    return figure


def close(figure: Figure) -> None:
    figure.clear()


def scale_of(matrices: Iterable[Matrix]) -> tuple[float, float]:
    """0 to 1 where all scores lie in it, as accuracies do; else from the least to the largest."""
    scores = np.concatenate([matrix[:-1].ravel() for matrix in matrices])
    least, largest = float(np.nanmin(scores)), float(np.nanmax(scores))
    return (0.0, 1.0) if least >= 0 and largest <= 1 else (least, largest)


def draw_matrix(axes: Any, matrix: Matrix, title: str, scale: tuple[float, float]) -> Any:
    size = matrix.shape[1]
    image = axes.imshow(matrix[:size], vmin=scale[0], vmax=scale[1], cmap="cividis")
    if size <= 12:
        for (i, j), value in np.ndenumerate(matrix[:size]):
            dark = (value - scale[0]) / max(scale[1] - scale[0], 1e-12) < 0.55
            colour = "white" if dark else ON_BRIGHT
            text = axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour)
            text.set(fontsize=7.5, in_layout=False)  # inside its cell: the layout need not ask
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("tested on experience")
    axes.set_ylabel("after experience")
    axes.set_xticks(range(0, size, max(1, size // 10)))
    axes.set_yticks(range(0, size, max(1, size // 10)))
    return image


def matrix_figure(matrix: Matrix, title: str, score: str = "accuracy") -> Figure:
    """The accuracy matrix as a heat map: rows after an experience, columns tested on one."""
    figure = new_figure(4.8, 4)
    image = draw_matrix(figure.add_subplot(), matrix, title, scale_of([matrix]))
    figure.colorbar(image, label=score, shrink=0.85)
    return figure


def curve_figure(x: Sequence[float], y: Sequence[float], title: str) -> Figure:
    """One curve, such as accuracy against the share of units silenced."""
    figure = new_figure(4.2, 3)
    axes = figure.add_subplot()
    axes.plot(x, y, color=COLOURS[0], marker=MARKERS[0], linewidth=1.8)
    finish(axes, y, title)
    return figure


def finish(axes: Any, scores: Any, title: str) -> None:
    """From 0 to 1 where all scores lie in it, as accuracies do; a grid, and no box."""
    if np.min(scores) >= 0 and np.max(scores) <= 1:
        axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=11)
