"""One recurrent layer and nothing else, as the papers on recurrent networks have it."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from clplat.layers.layer import Layer


class Recurrent(nn.Module):
    """A layer over a series (T, D) of any length; features are the last step's (B, width).

    The input's weights are those of the layer times a linear map from D to `width`.
    """

    def __init__(self, input_shape: Sequence[int], layer: Callable[[int], Layer], width: int = 500):
        super().__init__()
        if len(input_shape) != 2:
            raise ValueError(f"input_shape={tuple(input_shape)}; expected a series (T, D)")
        self.width = width
        self.input = nn.Linear(input_shape[1], width, bias=False)
        self.layer = layer(width)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.layer(self.input(x))
        return y[:, -1]
