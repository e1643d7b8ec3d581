"""Recurrent networks with a full recurrent matrix: nonlinear in time, so sequential."""

import math

import torch
from torch import Tensor, nn

from clplat.layers.layer import Layer, State, check_state, per_head
from clplat.layers.norm import RMSNorm
from clplat.ops.gated_rnn import gated_rnn
from clplat.ops.gated_rnn.kinds import ELMAN
from clplat.ops.tier import runs_triton, state_dtype


def _recurrent(heads: int, gates: int, width: int) -> nn.Parameter:
    """Weights (heads, gates, width, width), drawn as torch.nn.RNN draws its own."""
    bound = 1 / math.sqrt(width)
    return nn.Parameter(torch.empty(heads, gates, width, width).uniform_(-bound, bound))


def _with_axis(layer: Layer, state: Tensor, batch: int) -> Tensor:
    """The op's form of a state that is one vector: (B, width) -> (B, 1, width)."""
    check_state(layer, state, batch, layer.width)
    return state.unsqueeze(1)


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(B, T, n) -> (B, T, m), laid out with time first, as `gated_rnn` reads and answers."""
    return nn.functional.linear(x.transpose(0, 1), weight, bias).transpose(0, 1)


class LeakyRNN(Layer):
    """Leaky units with a trainable time constant each (Khajehabdollahi et al. 2024).

    Of the paper's two forms, with z_t = W x_t + R h_{t-1} + b, y_t = h_t, tau >= 1 from U(1, 2):
    - activates="input": h_t = (1 - 1/tau) h_{t-1} + 1/tau f(z_t)
    - activates="sum": h_t = f((1 - 1/tau) h_{t-1} + 1/tau z_t), with f=leaky_relu its main one
    f is tanh, relu or leaky_relu. Our reading: R starts orthogonal, h at 0, and R keeps its
    diagonal. Parameters: 2 width^2 + 2 width, and a token costs as many multiplications.
    State: h (B, width).
    """

    def __init__(self, width: int, activation: str = "tanh", activates: str = "input"):
        super().__init__(width)
        if activation not in ELMAN:
            raise ValueError(
                f"LeakyRNN: activation={activation!r}; expected one of {', '.join(ELMAN)}"
            )
        if activates not in ("input", "sum"):
            raise ValueError(f"LeakyRNN: activates={activates!r}; expected input or sum")
        self.activation, self.activates = activation, activates
        self.input = nn.Linear(width, width)
        self.recurrent = _recurrent(1, 1, width)
        nn.init.orthogonal_(self.recurrent[0, 0])
        self.tau = nn.Parameter(torch.empty(width).uniform_(1, 2))

    def mix(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        leak, recurrent = 1 / self.tau.clamp(min=1), self.recurrent
        weight, bias = self.input.weight, self.input.bias
        if self.activates == "sum":  # an Elman network whose units are also joined to themselves
            weight, bias = leak[:, None] * weight, leak * bias
            recurrent = leak * recurrent + torch.diag(1 - leak)
        z = _linear(x, weight, bias).unsqueeze(2)
        leak = None if self.activates == "sum" else leak.to(z)
        state = None if state is None else _with_axis(self, state, len(x))
        y, state = gated_rnn(self.activation, z, recurrent.to(z), state, leak=leak)
        return y, state[:, 0]


class LSTM(Layer):
    """Long short-term memory (Hochreiter and Schmidhuber 1997; Gers et al. 2000).

    i, f, o = sigmoid, g = tanh of (W x_t + R h_{t-1} + b); c_t = f c_{t-1} + i g;
    y_t = h_t = o tanh(c_t). Parameters: 8 width^2 + 4 width, and a token costs as many
    multiplications. State: h, c (B, 2, width).
    """

    def __init__(self, width: int):
        super().__init__(width)
        self.input = nn.Linear(width, 4 * width)
        self.recurrent = _recurrent(1, 4, width)

    def mix(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        if state is not None:
            check_state(self, state, len(x), 2, self.width)
        if self._torch_is_faster(x):
            return self._by_torch(x, state)
        z = _linear(x, self.input.weight, self.input.bias).unflatten(2, (4, self.width))
        return gated_rnn("lstm", z, self.recurrent.to(z), state)

    def _torch_is_faster(self, x: Tensor) -> bool:
        """On processors, where its matrix products are not open to us; it cannot be compiled."""
        half = state_dtype(x) != x.dtype or torch.is_autocast_enabled(x.device.type)
        return not (runs_triton(x) or half or torch.compiler.is_compiling())

    def _by_torch(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        h, c = x.new_zeros(2, len(x), self.width) if state is None else state.unbind(1)
        recurrent = self.recurrent[0].mT.flatten(0, 1)  # (4 width, width), as torch has it
        weights = [self.input.weight, recurrent, self.input.bias, torch.zeros_like(self.input.bias)]
        begin = (h[None].contiguous(), c[None].contiguous())
        y, h, c = torch.lstm(x, begin, weights, True, 1, 0.0, self.training, False, True)
        return y, torch.stack([h[0], c[0]], 1)


class GRU(Layer):
    """Gated recurrent unit, with the reset after the product (Cho et al. 2014).

    r, z = sigmoid(W x_t + R h_{t-1} + b); n = tanh(W_n x_t + b_n + r (R_n h_{t-1} + b_h));
    y_t = h_t = (1 - z) n + z h_{t-1}. Parameters: 6 width^2 + 4 width, and a token costs as many
    multiplications. State: h (B, width).
    """

    def __init__(self, width: int):
        super().__init__(width)
        self.input = nn.Linear(width, 3 * width)
        self.recurrent = _recurrent(1, 3, width)
        self.bias = nn.Parameter(torch.zeros(width))

    def mix(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        z = _linear(x, self.input.weight, self.input.bias).unflatten(2, (3, self.width))
        state = None if state is None else _with_axis(self, state, len(x))
        y, state = gated_rnn("gru", z, self.recurrent.to(z), state, bias=self.bias.to(z))
        return y, state[:, 0]


class SLSTM(Layer):
    """sLSTM of xLSTM: exponential input gate, normaliser, memory mixing by head (Beck et al. 2024).

    c_t = f c_{t-1} + i tanh(z); n_t = f n_{t-1} + i; h_t = sigmoid(o) c_t / n_t with i = exp,
    f = sigmoid of their gates W x_t + R h_{t-1} + b, held in range by the stabiliser m_t; y_t is
    h_t, normalised by head. Parameters: 4 width^2 (1 + 1 / heads) + 4 width + width / heads, and
    a token costs as many multiplications. State: h, c, n, m (B, 4, width).
    """

    def __init__(self, width: int, heads: int = 4):
        super().__init__(width)
        self.heads = heads
        self.input = nn.Linear(width, 4 * width)
        self.recurrent = _recurrent(heads, 4, per_head(width, heads))
        self.norm = RMSNorm(width // heads)
        with torch.no_grad():  # gates that forget slowly at first, at a different pace a channel
            self.input.bias[width : 2 * width] = torch.linspace(3, 6, width)

    def mix(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        z = _linear(x, self.input.weight, self.input.bias).unflatten(2, (4, self.width))
        h, state = gated_rnn("slstm", z, self.recurrent.to(z), state)
        return self.norm(h.unflatten(2, (self.heads, -1))).flatten(2), state


def reading(layer: LeakyRNN | LSTM | GRU | SLSTM, inputs: int) -> Layer:
    """The layer, its input map drawn anew for vectors of another width than its outputs'."""
    weights = nn.Linear(inputs, layer.input.out_features, bias=False)
    weights.bias = layer.input.bias
    layer.input, layer.inputs = weights, inputs
    return layer
