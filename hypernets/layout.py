"""How generated numbers become a network's parameters, and the scale that they begin at.

A generator's outputs are of one size at first, whatever they are for. A layout brings them to the
scale of each parameter of the target: weights w of linear maps, convolutions and embeddings, which
are drawn independently, are generated with the deviation of their own initialisation (the aim of
hyperfan-in, Chang et al. 2020, reached here by measuring). All other parameters (biases, norms,
time constants, recurrent matrices) have values that their layer chose: they are those values plus a
generated change, times a learned gain that starts at 0.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clplat.errors import InputError

DRAWN = (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd)
NO_CLASS = -1
DRAWS = 16  # of an embedding, to measure what a generator's outputs are like at first


class Beginning(NamedTuple):
    """What the numbers of a part begin as, and what they serve."""

    blocks: list[tuple[int, float]]  # how many, and their deviation; 0: a gain is learned, from 0
    label: Tensor  # (numbers,) the class that each serves alone; NO_CLASS: none
    anew: bool = False  # whether the parameter's own values are given up


class Direct(nn.Module):
    """A parameter whose every entry is generated; `centre` is what the numbers are added to."""

    centre: Tensor | None

    def __init__(self, names: Sequence[str], shape: torch.Size, centre: Tensor | None = None):
        super().__init__()
        self.names, self.shape, self.size = list(names), shape, shape.numel()
        self.register_buffer("centre", None if centre is None else centre.clone())

    def forward(self, numbers: Tensor) -> Tensor:
        """(..., size) to (..., *shape)."""
        value = numbers.reshape((*numbers.shape[:-1], *self.shape))
        return value if self.centre is None else self.centre + value


def direct(names: Sequence[str], value: Tensor, drawn: bool, rows: Tensor) -> tuple[Any, Beginning]:
    """A drawn parameter is drawn anew; another is its own value and a change."""
    spread = float(value.square().mean().sqrt()) if drawn else 0.0
    part = Direct(names, value.shape, None if spread else value)
    label = by_row(rows, value.shape)
    return part, Beginning([(part.size, spread)], label, anew=spread > 0)


def kept(names: Sequence[str], value: Tensor, drawn: bool, rows: Tensor) -> tuple[Any, Beginning]:
    """Its own value and a change, in a scale that is nobody's to learn."""
    part = Direct(names, value.shape, value)
    return part, Beginning([(part.size, 1.0)], by_row(rows, value.shape))


# (names of a parameter, its value, whether it is drawn, the class of each row) -> its part.
MakePart = Callable[[Sequence[str], Tensor, bool, Tensor], tuple[Any, Beginning]]


def by_row(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """What stands for each row, (rows,) or () for all, at every entry, flat."""
    ones = [1] * (len(shape) - rows.ndim)
    return rows.reshape((*rows.shape, *ones)).expand(tuple(shape)).flatten()


class Layout(nn.Module):
    """From the outputs (K, size) of a generator to the parameters of K networks.

    `layers` are (start, size, kind) of the target's layers, in order; those of a kind are alike.
    `drawn` says of each parameter whether it is drawn. `label` (size,) is the class that a number
    serves alone, such as a row of the head; else -1. `classes` is how many the head tells apart.
    Takes the parameters out of `target`: what is left in their place is for
    `torch.func.functional_call` to fill in. Parameters that ask for no gradient stay. InputError,
    by name: a parameter that is not of floating point, or none at all.
    """

    scale: Tensor  # of each block of numbers
    unit: Tensor  # of each block: what brings outputs of the generator to a deviation of 1
    counts: Tensor
    label: Tensor

    def __init__(self, target: nn.Module, classes: int | None = None, part: MakePart = direct):
        super().__init__()
        found = _found(target)
        self.drawn = [_drawn(target, names[0]) for names, _ in found]
        made = [
            part(names, value.detach(), drawn, _rows(names[0], value, classes))
            for (names, value), drawn in zip(found, self.drawn, strict=True)
        ]
        parts = [part for part, _ in made]
        beginnings = [beginning for _, beginning in made]
        blocks = [block for beginning in beginnings for block in beginning.blocks]
        counts, scales = zip(*blocks, strict=True)
        label = torch.cat([beginning.label for beginning in beginnings])
        self.begins_as_target = not any(beginning.anew for beginning in beginnings)
        _take_out(target, [name for names, _ in found for name in names])
        self.parts = nn.ModuleList(parts)
        self.lengths = [part.size for part in parts]
        self.size = sum(self.lengths)
        self.layers = _layers(parts)
        self.gains = 0.0 in scales  # whether any number has one
        self.gain = nn.Parameter(torch.zeros(len(blocks)), requires_grad=self.gains)
        self.register_buffer("scale", torch.tensor(scales))
        self.register_buffer("unit", torch.ones(len(blocks)))
        self.register_buffer("counts", torch.tensor(counts), persistent=False)
        self.register_buffer("label", label.int(), persistent=False)

    @torch.no_grad()
    def calibrate(self, draw: Callable[[], Tensor]) -> None:
        """Make the numbers begin at their scale: `draw` gives outputs (size,) of the generator."""
        squares = torch.zeros(len(self.counts))
        for _ in range(DRAWS):
            pieces = draw().split(self.counts.tolist())
            squares += torch.stack([piece.square().mean() for piece in pieces])
        squares = torch.where(squares > 0, squares, DRAWS)  # outputs that begin at 0 have no scale
        self.unit.copy_((DRAWS / squares).sqrt())

    def forward(self, outputs: Tensor) -> Tensor:
        """Outputs (..., size) of a generator at the scale of the parameters they are for."""
        scale = torch.where(self.scale > 0, self.scale, self.gain) if self.gains else self.scale
        spread = (scale * self.unit).repeat_interleave(self.counts, output_size=self.size)
        return spread * outputs

    def weights(self, numbers: Tensor) -> dict[str, Tensor]:
        """Numbers (..., size) as parameters (..., *shape); tied ones under each of their names."""
        pieces = numbers.split(self.lengths, -1)
        values = [part(piece) for part, piece in zip(self.parts, pieces, strict=True)]
        return {
            name: value
            for part, value in zip(self.parts, values, strict=True)
            for name in part.names  # type: ignore[union-attr]
        }


def _found(target: nn.Module) -> list[tuple[list[str], Tensor]]:
    """Trainable parameters in order, each with all of its names."""
    names: dict[int, list[str]] = {}
    values: dict[int, Tensor] = {}
    for name, value in target.named_parameters(remove_duplicate=False):
        if not value.requires_grad:
            continue
        if isinstance(value, nn.parameter.UninitializedParameter) or not value.is_floating_point():
            kind = getattr(value, "dtype", None)
            raise InputError(
                f"hypernet: the parameter {name} of the target is {kind}, of unknown shape or not "
                "real; give it a shape and a type of floating point, or requires_grad=False"
            )
        names.setdefault(id(value), []).append(name)
        values[id(value)] = value
    if not names:
        raise InputError(
            "hypernet: the target has no parameter that asks for a gradient, and none is "
            "generated; choose another backbone, or hypernet=none"
        )
    return [(names[key], values[key]) for key in names]


def _drawn(target: nn.Module, name: str) -> bool:
    owner, _, own = name.rpartition(".")
    return own == "weight" and isinstance(target.get_submodule(owner), DRAWN)


def _rows(name: str, value: Tensor, classes: int | None) -> Tensor:
    """The class of each row, where rows stand for classes."""
    if classes is not None and name.startswith("head.") and value.shape[:1] == (classes,):
        return torch.arange(classes)
    return torch.tensor(NO_CLASS)


def _take_out(target: nn.Module, names: Iterable[str]) -> None:
    for name in names:
        owner, _, own = name.rpartition(".")
        module = target.get_submodule(owner)
        if own in module._parameters:  # not a module met by another of its names
            shape = module._parameters.pop(own).shape  # type: ignore[union-attr]
            module.register_buffer(own, torch.zeros(()).expand(shape), persistent=False)


def _layers(parts: Sequence[Any]) -> list[tuple[int, int, tuple]]:
    """The parts of one module are a layer."""
    layers, start = [], 0
    for _, group in groupby(parts, key=lambda part: part.names[0].rpartition(".")[0]):
        members = list(group)
        size = sum(p.size for p in members)
        layers.append((start, size, tuple(tuple(p.shape) for p in members)))
        start += size
    return layers
