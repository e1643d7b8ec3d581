"""Pictures of scenarios whose course is a curve: online streams, real series."""

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from clplat.figures import COLOURS
from clplat.gallery.canvas import picture, tint


def shares(labels: Tensor, classes: int, parts: int) -> Tensor:
    """Of labels (N,) in the order of a stream: the share of each class in each part of it.

    (classes, parts); parts are as even as can be.
    """
    counts = [part.bincount(minlength=classes) / len(part) for part in labels.tensor_split(parts)]
    return torch.stack(counts, 1)


def orders_figure(
    title: str,
    streams: Sequence[tuple[str, Tensor, Sequence[int]]],
    groups: Sequence[Sequence[int]],
    parts: int = 50,
) -> Figure:
    """Of each stream, (name, labels (N,), marks), which classes come when, and where it is tested.

    Classes of a group have tones of one colour.
    """
    figure = picture(title, 3.6)
    columns = -(-len(streams) // 2)
    grid: Any = figure.subplots(2, columns, sharex=True, sharey=True, squeeze=False)
    labels = [label for group in groups for label in group]
    colours = [
        tint(g, 0.9 - 0.55 * i / len(group))
        for g, group in enumerate(groups)
        for i in range(len(group))
    ]
    areas: Any = None
    for axes, (name, stream, marks) in zip(grid.flat, streams, strict=False):
        share = shares(stream, max(labels) + 1, parts)[labels]
        share = torch.cat([share, share[:, -1:]], 1)  # the last step too has a width
        edges = torch.arange(parts + 1) / parts
        areas = axes.stackplot(
            edges.numpy(), share.numpy(), colors=colours, step="post", linewidth=0
        )
        for mark in marks[:-1]:
            axes.axvline(mark / len(stream), color="black", linestyle=":", linewidth=1)
        axes.set_title(name, fontsize=8.5)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.tick_params(labelsize=7.5)
    for axes in grid[-1]:
        axes.set_xlabel("share of the stream seen", fontsize=8)
    for axes in grid[:, 0]:
        axes.set_ylabel("share of a class", fontsize=8)
    names = [f"label {label}" for label in labels]
    figure.legend(areas[::-1], names[::-1], loc="outside right center", fontsize=7.5, frameon=False)
    return figure


def series_figure(title: str, experiences: Sequence[Sequence[tuple[str, Tensor]]]) -> Figure:
    """A row an experience: of each of its classes a series (T, D), a line for each value."""
    figure = picture(title, 0.6 + 0.95 * len(experiences))
    grid: Any = figure.subplots(
        len(experiences), max(map(len, experiences)), sharex=True, sharey=True, squeeze=False
    )
    for k, (row, examples) in enumerate(zip(grid, experiences, strict=True)):
        for axes, (name, x) in zip(row, examples, strict=False):
            for d, channel in enumerate(x.T):
                axes.plot(channel.numpy(), color=COLOURS[d % len(COLOURS)], linewidth=0.8)
            axes.set_title(name, fontsize=8, pad=3)
            axes.tick_params(labelsize=7)
            axes.spines[["top", "right"]].set_visible(False)
        for axes in row[len(examples) :]:
            axes.set_visible(False)
        row[0].set_ylabel(f"experience {k}", fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("step", fontsize=7.5)
    return figure
