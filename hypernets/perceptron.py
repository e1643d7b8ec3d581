"""The multi-layer perceptron that generators are made of."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from clplat.errors import InputError, at_least


def perceptron(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Linear layers with ReLU between them; no hidden layer: one linear map."""
    if not isinstance(hidden, Sequence):
        raise InputError(
            f"hypernet.generator.hidden={hidden}: expected a list of widths; set [{hidden}]"
        )
    for width in hidden:
        at_least("hypernet.generator", 1, hidden=width)
    widths = [inputs, *hidden]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))
