"""The short causal convolution in front of most linear recurrences."""

import torch
from torch import Tensor, nn

from clplat.layers.layer import Layer, State, check_state


class ShortConvolution(Layer):
    """A causal convolution of each channel by itself, then SiLU (Gu and Dao 2023, Mamba).

    y_t = SiLU(bias + sum_{j < size} weight_j x_{t-j}). State: the last size - 1 inputs,
    (B, size - 1, width). Cost a token: size multiplications a channel.
    """

    def __init__(self, width: int, size: int = 4):
        super().__init__(width)
        if size < 1:
            raise ValueError(f"a convolution of size {size}; expected at least 1")
        self.size = size
        self.weight = nn.Parameter(torch.empty(width, 1, size).uniform_(-1, 1) / size**0.5)
        self.bias = nn.Parameter(torch.zeros(width))

    def mix(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        if state is None:
            state = x.new_zeros(len(x), self.size - 1, self.width)
        check_state(self, state, len(x), self.size - 1, self.width)
        x = torch.cat([state.to(x), x], 1)
        y = nn.functional.conv1d(x.mT, self.weight.to(x), self.bias.to(x), groups=self.width)
        return nn.functional.silu(y.mT), x[:, x.shape[1] - self.size + 1 :]
