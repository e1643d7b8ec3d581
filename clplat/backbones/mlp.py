"""Multi-layer perceptron."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class MLP(nn.Module):
    """Flatten, then linear layers with ReLU; the last hidden layer is the features."""

    def __init__(self, input_shape: Sequence[int], hidden: Sequence[int], dropout: float = 0.0):
        super().__init__()
        widths = [math.prod(input_shape), *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for width, wider in pairwise(widths):
            layers += [nn.Linear(width, wider), nn.ReLU()]
            layers += [nn.Dropout(dropout)] if dropout else []
        self.layers = nn.Sequential(*layers)
        self.width = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
