"""One recurrent layer and nothing else, as the papers on recurrent networks have it."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from clplat.errors import InputError
from clplat.layers.layer import Layer
from clplat.layers.recurrent import GRU, LSTM, SLSTM, LeakyRNN, reading


class Recurrent(nn.Module):
    """A layer over a series (T, D) of any length; features are the last step's (B, width).

    Images (C, H, W) are read pixel by pixel, rows from the top. Layers with a recurrent matrix read
    the series by an input map of their own; others are given it through a linear one.
    """

    def __init__(self, input_shape: Sequence[int], layer: Callable[[int], Layer], width: int = 500):
        super().__init__()
        if len(input_shape) not in (2, 3):
            raise InputError(
                f"backbone=recurrent: reads series (T, D) or images (C, H, W), and the scenario "
                f"gives {tuple(input_shape)}; choose another backbone"
            )
        self.width, self.channels = width, input_shape[1 if len(input_shape) == 2 else 0]
        self.layer, self.input = layer(width), nn.Identity()
        if isinstance(self.layer, LeakyRNN | LSTM | GRU | SLSTM):
            self.layer = reading(self.layer, self.channels)
        else:
            self.input = nn.Linear(self.channels, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            x = x.flatten(2).mT  # (B, C, H, W) -> (B, H * W, C)
        y, _ = self.layer(self.input(x))
        return y[:, -1]
