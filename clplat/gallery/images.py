"""Pictures of scenarios that are made of images."""

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from clplat.gallery.canvas import bare, picture

Pair = tuple[Tensor, Tensor]  # images (N, C, H, W) in uint8, labels (N,)


def tiles(images: Tensor, columns: int) -> Tensor:
    """Images (N, C, H, W) in rows of `columns` on white paper: (h, w, 3) in 0..1."""
    count, _, height, width = images.shape
    gap = max(1, width // 12)
    rows = -(-count // columns)
    paper = torch.ones(rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
    for k, image in enumerate(images):
        top, left = k // columns * (height + gap), k % columns * (width + gap)
        pixels = image.permute(1, 2, 0).expand(-1, -1, 3) / 255
        paper[top : top + height, left : left + width] = pixels
    return paper


def _show(axes: Any, images: Tensor, columns: int) -> None:
    axes.imshow(tiles(images, columns).numpy(), interpolation="nearest")
    bare(axes)


def _name_row(axes: Any, name: str) -> None:
    axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)


def classes_figure(
    title: str, experiences: Sequence[Pair], class_order: Sequence[int], samples: int = 7
) -> Figure:
    """A row an experience: some samples of each of its classes, named by label and source."""
    labels = [y.unique().tolist() for _, y in experiences]
    figure = picture(title, 0.4 + 0.6 * len(experiences))
    grid = figure.subplots(len(experiences), max(map(len, labels)), squeeze=False)
    for k, (x, y) in enumerate(experiences):
        for axes, label in zip(grid[k], labels[k], strict=False):
            _show(axes, x[y == label][:samples], samples)
            axes.set_title(f"label {label} (class {class_order[label]})", fontsize=8, pad=3)
        for axes in grid[k, len(labels[k]) :]:
            axes.set_visible(False)
        _name_row(grid[k, 0], f"experience {k}")
    return figure


def transformed_figure(
    title: str, streams: Sequence[tuple[str, Sequence[Pair]]], samples: int = 7
) -> Figure:
    """Streams side by side, a row an experience: the same samples, each time otherwise."""
    longest = max(len(experiences) for _, experiences in streams)
    figure = picture(title, 0.6 + 0.47 * longest)
    grid = figure.subplots(longest, len(streams), squeeze=False)
    for column, (name, experiences) in zip(grid.T, streams, strict=True):
        for axes, (x, _) in zip(column, experiences, strict=False):
            _show(axes, x[:samples], samples)
        for axes in column[len(experiences) :]:
            axes.set_visible(False)
        column[0].set_title(name, fontsize=8.5)
    for k, axes in enumerate(grid[:, 0]):
        _name_row(axes, f"experience {k}")
    return figure


def few_shot_figure(
    title: str, support: Sequence[Pair], target: Sequence[Pair], about: str, samples: int
) -> Figure:
    """The support sets of a task, a column each, and then what is asked, a row a label.

    `about` says what the targets are; `samples` of each label are shown.
    """
    asked = {tuple(y.unique().tolist()): (x, y) for x, y in target}  # once for each set of labels
    rows = max(len(labels) for labels in asked)
    figure = picture(title, 0.75 + 0.42 * rows)
    halves: Any = figure.subfigures(
        1, 2, width_ratios=[1.6 * len(support), len(asked) * (samples + 0.8)]
    )
    left, right = halves
    left.suptitle("support sets, one after another", fontsize=8.5)
    right.suptitle(about, fontsize=8.5)
    for k, (axes, (x, y)) in enumerate(
        zip(left.subplots(1, len(support), squeeze=False)[0], support, strict=True)
    ):
        order = y.argsort(stable=True)
        shots = int((y == y[0]).sum())
        _show(axes, x[order], shots)
        _label_rows(axes, x.shape[2], y.unique().tolist())
        axes.set_xlabel(f"set {k}", fontsize=8)
    for axes, (labels, (x, y)) in zip(
        right.subplots(1, len(asked), squeeze=False)[0], asked.items(), strict=True
    ):
        shown = torch.cat([x[y == label][:samples] for label in labels])
        _show(axes, shown, min(samples, len(shown) // len(labels)))
        _label_rows(axes, x.shape[2], list(labels))
        sets = [str(k) for k, (_, y) in enumerate(target) if tuple(y.unique().tolist()) == labels]
        axes.set_xlabel(f"of {'sets' if len(sets) > 1 else 'set'} {', '.join(sets)}", fontsize=8)
    return figure


def _label_rows(axes: Any, height: int, labels: Sequence[int]) -> None:
    """The label at the left of each row of `tiles`."""
    step = height + max(1, height // 12)
    axes.set_yticks([k * step + (height - 1) / 2 for k in range(len(labels))], labels, fontsize=8)
    axes.tick_params(length=0, pad=1)


def pixels_figure(title: str, streams: Sequence[tuple[str, Sequence[Tensor]]]) -> Figure:
    """Of each stream one image (1, H, W) an experience, and beside it the sequence it becomes."""
    rows = max(len(images) for _, images in streams)
    figure = picture(title, 0.6 + 0.75 * rows)
    parts: Any = figure.subfigures(1, len(streams), squeeze=False)
    for part, (name, images) in zip(parts[0], streams, strict=True):
        part.suptitle(name, fontsize=8.5)
        grid = part.subplots(rows, 2, width_ratios=[1, 3], squeeze=False)
        for k, ((left, right), image) in enumerate(zip(grid, images, strict=True)):
            _show(left, image[None], 1)
            _name_row(left, f"experience {k}")
            right.plot((image.flatten() / 255).numpy(), linewidth=1, color="#0072B2")
            right.set_ylim(-0.05, 1.05)
            right.set_yticks([0, 1])
            right.tick_params(labelsize=7)
            right.spines[["top", "right"]].set_visible(False)
            if k < rows - 1:
                right.set_xticklabels([])
        grid[-1, 1].set_xlabel("step", fontsize=7.5)
    return figure
