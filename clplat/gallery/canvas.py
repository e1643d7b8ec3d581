"""What all pictures share: paper, colours, rows of cells."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from clplat.figures import COLOURS

Colour = tuple[float, float, float]
Cell = tuple[str, Colour] | None  # what stands in it and its ground; None: no cell

EMPTY: Colour = (0.93, 0.93, 0.93)
# Grey in the place of black, on which letters could not be read.
INKS = ["#999999" if colour == "#000000" else colour for colour in COLOURS]


def picture(title: str, height: float = 3.0) -> Figure:
    """White paper, 7 inches wide, 100 dots an inch."""
    figure = Figure(figsize=(7, height), layout="constrained", dpi=100)
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    return figure


def tint(number: int, share: float = 0.55) -> Colour:
    """The colour of a number, mixed with white so that black letters can be read on it."""
    r, g, b = (1 - share * (1 - part) for part in to_rgb(INKS[number % len(INKS)]))
    return r, g, b


def bare(axes: Any) -> None:
    """No ticks and no frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def draw_cells(axes: Any, rows: Sequence[Sequence[Cell]], size: float = 7) -> None:
    """Coloured squares with a few letters each; shorter rows end earlier."""
    columns = max(map(len, rows))
    ground: NDArray[np.float64] = np.ones((len(rows), columns, 3))
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            if cell is not None:
                ground[i, j] = cell[1]
                axes.text(j, i, cell[0], ha="center", va="center_baseline", fontsize=size)
    axes.imshow(ground, aspect="auto", interpolation="nearest")
    bare(axes)
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
