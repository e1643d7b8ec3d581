"""Gated linear recurrences over single channels: parallel in time, no matrix in the recurrence."""

import torch
from torch import Tensor, nn

from clplat.layers.layer import Layer, State
from clplat.layers.norm import RMSNorm
from clplat.ops.gated_scan import gated_scan
from clplat.ops.linear_scan import linear_scan
from clplat.ops.tier import state_dtype


class MinGRU(Layer):
    """The GRU without its past in the gates (Feng et al. 2024).

    z_t = sigmoid(W_z x_t + b_z); y_t = h_t = (1 - z_t) h_{t-1} + z_t g(W_h x_t + b_h), with
    g(v) = v + 0.5 for v >= 0, else sigmoid(v). Parameters: 2 width^2 + 2 width, and a token costs
    as many multiplications. State: h (B, width).
    """

    def __init__(self, width: int):
        super().__init__(width)
        self.gate, self.value = nn.Linear(width, width), nn.Linear(width, width)

    def mix(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return gated_scan("mingru", self.gate(x), self.value(x), state)


class MinLSTM(Layer):
    """The LSTM without its past in the gates, which sum to one (Feng et al. 2024).

    f, i = sigmoid of linear maps; y_t = h_t = (f h_{t-1} + i g(W_h x_t + b_h)) / (f + i), g as for
    MinGRU. Parameters: 3 width^2 + 3 width, and a token costs as many multiplications.
    State: h (B, width).
    """

    def __init__(self, width: int):
        super().__init__(width)
        self.forget, self.gate = nn.Linear(width, width), nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def mix(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        forget, value = self.forget(x), self.value(x)
        return gated_scan("minlstm", forget, value, state, input_gate=self.gate(x))


class HGRN(Layer):
    """Gated linear recurrence with a learned lower bound of the forget gate (Qin et al. 2023).

    a_t = bound + (1 - bound) sigmoid(W_a x_t); h_t = a_t h_{t-1} + (1 - a_t) SiLU(W_h x_t);
    y_t = W_o (norm(h_t) SiLU(W_g x_t)). The real form; a bound for each channel, spread over
    (0, 1) at first, stands for the paper's bounds that rise with depth (our reading).
    Parameters: 4 width^2 + 4 width, and a token costs as many multiplications. State: h (B, width).
    """

    def __init__(self, width: int):
        super().__init__(width)
        self.gate, self.value = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.bound = nn.Parameter(torch.linspace(-3, 3, width))
        self.norm = RMSNorm(width)
        self.output_gate = nn.Linear(width, width)
        self.output = nn.Linear(width, width, bias=False)

    def mix(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        gate, value = self.gate(x), self.value(x)
        bound = self.bound.to(state_dtype(gate)).sigmoid()  # near 1, half precision is too coarse
        h, state = gated_scan("hgrn", gate, value, state, lower_bound=bound)
        gated = self.norm(h) * nn.functional.silu(self.output_gate(x))
        return self.output(gated), state


class GateLoop(Layer):
    """Linear recurrence with complex gates that depend on the data (Katsch 2023).

    h_t = a_t h_{t-1} + k_t v_t, y_t = W_o (Re(q_t h_t) SiLU(W_g x_t)), a_t = sigmoid(W_r x_t)
    exp(i W_p x_t); as many heads as channels. Parameters: 7 width^2 + 2 width, and a token costs
    as many multiplications. State: h (B, width), complex.
    """

    def __init__(self, width: int):
        super().__init__(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.transition = nn.Linear(width, 2 * width)
        self.gate = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        with torch.no_grad():  # memories of different lengths, and hardly any turning, at first
            self.transition.bias[:width] = torch.linspace(0, 5, width)
            self.transition.bias[width:] = 0
            self.transition.weight[width:] *= 0.1

    def mix(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        q, k, v = self.query_key_value(x).chunk(3, 2)
        transition = self.transition(x)
        magnitude, phase = transition.to(state_dtype(transition)).chunk(2, 2)
        a = torch.polar(magnitude.sigmoid(), phase)
        h, state = linear_scan(a, (k * v).to(a), state)
        y = q * h.real.to(q)
        return self.output(y * nn.functional.silu(self.gate(x))), state
