"""Selective state-space layers: dynamics that depend on the data."""

import math

import torch
from torch import Tensor, nn

from clplat.layers.convolution import ShortConvolution
from clplat.layers.layer import Layer, State, per_head
from clplat.layers.norm import RMSNorm
from clplat.ops.selective_scan import selective_scan
from clplat.ops.ssd import ssd
from clplat.ops.tier import widened


def _step_bias(count: int) -> Tensor:
    """Biases for which softplus gives step sizes log-uniform in [0.001, 0.1]."""
    span = math.log(0.1) - math.log(0.001)
    dt = (torch.rand(count) * span + math.log(0.001)).exp()
    return dt + (-torch.expm1(-dt)).log()


class Mamba(Layer):
    """Selective state space, S6 (Gu and Dao 2023).

    x, z = W x_t; x = SiLU(conv(x)); dt, B, C linear in x; h_t = exp(dt A) h_{t-1} + dt B x,
    y_t = W_o ((C h_t + D x) SiLU(z)). With `negative_eigenvalues` the decay is 2 exp(dt A) - 1, in
    (-1, 1), so that a state can change its sign (Grazzi et al. 2025). With E = expansion width and
    R = width / 16, rounded up: parameters width 3 E + E (2 R + 3 state + convolution + 3), and a
    token costs about as many multiplications. State: the convolution's (B, convolution - 1, E), and
    h (B, E, state).
    """

    def __init__(
        self,
        width: int,
        state: int = 16,
        expansion: int = 2,
        convolution: int = 4,
        negative_eigenvalues: bool = False,
    ):
        super().__init__(width)
        self.negative_eigenvalues = negative_eigenvalues
        inner, rank = expansion * width, -(-width // 16)
        self.sizes = [rank, state, state]
        self.input = nn.Linear(width, 2 * inner, bias=False)
        self.convolution = ShortConvolution(inner, convolution)
        self.selection = nn.Linear(inner, sum(self.sizes), bias=False)
        self.step_size = nn.Linear(rank, inner)
        with torch.no_grad():
            self.step_size.bias.copy_(_step_bias(inner))
        self.log_decay = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(inner, 1))
        self.skip = nn.Parameter(torch.ones(inner))
        self.output = nn.Linear(inner, width, bias=False)

    def mix(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        convolved, hidden = (None, None) if state is None else state
        x, z = self.input(x).chunk(2, 2)
        x, convolved = self.convolution(x, convolved)
        rank, B, C = self.selection(x).split(self.sizes, 2)
        dt = nn.functional.softplus(widened(self.step_size(rank)))
        y, hidden = selective_scan(
            x, dt, -self.log_decay.exp(), B.to(x), C.to(x), self.skip, hidden,
            negative_eigenvalues=self.negative_eigenvalues,
        )  # fmt: skip
        return self.output(y * nn.functional.silu(z)), (convolved, hidden)


class Mamba2(Layer):
    """State space duality: one decay a head (Dao and Gu 2024).

    x, B, C = SiLU(conv(W x_t)); dt = softplus; S_t = exp(-dt a) S_{t-1} + B (dt x)^T,
    y_t = W_o norm((S_t^T C + D x) SiLU(z)); B and C are shared by the heads. With E = expansion
    width: parameters width (3 E + 2 state + heads) and less, and a token costs those and 2 E state
    multiplications. State: the convolution's, and S (B, heads, state, E / heads).
    """

    def __init__(
        self,
        width: int,
        heads: int = 4,
        state: int = 64,
        expansion: int = 2,
        convolution: int = 4,
    ):
        super().__init__(width)
        inner = expansion * width
        per_head(inner, heads)
        self.heads, self.sizes = heads, [inner, inner, state, state, heads]
        self.input = nn.Linear(width, sum(self.sizes), bias=False)
        self.convolution = ShortConvolution(inner + 2 * state, convolution)
        self.step_bias = nn.Parameter(_step_bias(heads))
        self.log_decay = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.skip = nn.Parameter(torch.ones(heads, 1))
        self.norm = RMSNorm(inner)
        self.output = nn.Linear(inner, width, bias=False)

    def mix(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        convolved, hidden = (None, None) if state is None else state
        inner, _, size, _, heads = self.sizes
        z, x, dt = self.input(x).split([inner, inner + 2 * size, heads], 2)
        x, convolved = self.convolution(x, convolved)
        x, B, C = x.split([inner, size, size], 2)
        x = x.unflatten(2, (heads, -1))
        dt = nn.functional.softplus(widened(dt) + self.step_bias)
        B, C = (tensor.unsqueeze(2).expand(-1, -1, heads, -1) for tensor in (B, C))
        y, hidden = ssd(C, B, (x * dt[..., None]).to(x), -dt * self.log_decay.exp(), hidden)
        y = (y + self.skip.to(x) * x).flatten(2)
        return self.output(self.norm(y * nn.functional.silu(z))), (convolved, hidden)
