"""Attention without a softmax, as a matrix-valued recurrence with a decay for each head."""

import torch
from torch import Tensor, nn

from clplat.layers.layer import Layer, State, per_head
from clplat.layers.norm import RMSNorm
from clplat.layers.rotary import positions, rotate
from clplat.ops.ssd import mlstm, ssd
from clplat.ops.tier import widened


class _Projections(nn.Module):
    """Queries, keys and values (B, T, heads, width / heads) of x; keys scaled by 1 / sqrt of it."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.scale = heads, per_head(width, heads) ** -0.5
        self.linear = nn.Linear(width, 3 * width, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.linear(x).unflatten(2, (3, self.heads, -1)).unbind(2)
        return q, self.scale * k, v


class _GatedOutput(nn.Module):
    """W_o (norm(y) SiLU(W_g x)), the norm by head."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm = RMSNorm(per_head(width, heads))
        self.gate = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return self.output(self.norm(y).flatten(2) * nn.functional.silu(self.gate(x)))


class RetNet(Layer):
    """Retention: rotary queries and keys, a fixed decay for each head (Sun et al. 2023).

    S_t = gamma S_{t-1} + k_t v_t^T, y_t = W_o (norm(S_t^T q_t) SiLU(W_g x_t)),
    gamma = 1 - 2^(-5 - head). Parameters: 5 width^2, and a token costs those and
    2 width^2 / heads multiplications. State: S (B, heads, width / heads, width / heads), and the
    count of tokens (B,).
    """

    def __init__(self, width: int, heads: int = 4):
        super().__init__(width)
        self.projections = _Projections(width, heads)
        self.output = _GatedOutput(width, heads)
        self.heads = heads

    def mix(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        hidden, taken = (None, None) if state is None else state
        position, taken = positions(x, taken)
        q, k, v = self.projections(x)
        gamma = 1 - 2.0 ** (-5 - torch.arange(self.heads, device=x.device, dtype=torch.float64))
        log_decay = gamma.log().to(q).expand(*x.shape[:2], -1)
        y, hidden = ssd(rotate(q, position), rotate(k, position), v, log_decay, hidden)
        return self.output(y, x), (hidden, taken)


class GLA(Layer):
    """Gated linear attention in its simple form: a decay for each head (Yang et al. 2024).

    S_t = a_t S_{t-1} + k_t v_t^T, y_t = W_o (norm(S_t^T q_t) SiLU(W_g x_t)),
    a_t = sigmoid(W_a x_t)^(1/16). The paper's decay has one value for each key channel.
    Parameters: 5 width^2 + (width + 1) heads, and a token costs those and 2 width^2 / heads
    multiplications. State: S (B, heads, width / heads, width / heads).
    """

    def __init__(self, width: int, heads: int = 4):
        super().__init__(width)
        self.projections = _Projections(width, heads)
        self.decay = nn.Linear(width, heads)
        self.output = _GatedOutput(width, heads)

    def mix(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        log_decay = nn.functional.logsigmoid(widened(self.decay(x))) / 16
        q, k, v = self.projections(x)
        y, state = ssd(q, k, v, log_decay, state)
        return self.output(y, x), state


class MLSTM(Layer):
    """mLSTM of xLSTM: a matrix memory with input and forget gates (Beck et al. 2024).

    C_t = f C_{t-1} + i k_t v_t^T, f = sigmoid. With gate "exponential", i = exp and the reading is
    divided by a normaliser n_t, both held in range by a stabiliser m_t; with "sigmoid" there is
    neither (Beck et al. 2025). y_t = W_o (norm(C_t^T q_t) SiLU(W_g x_t)). Parameters: 5 width^2 +
    2 (width + 1) heads, and a token costs those and 2 width^2 / heads multiplications. State: C
    (B, heads, width / heads, width / heads); exponential: with n (B, heads, width / heads) and m
    (B, heads).
    """

    def __init__(self, width: int, heads: int = 4, gate: str = "exponential"):
        super().__init__(width)
        if gate not in ("exponential", "sigmoid"):
            raise ValueError(f"MLSTM: gate={gate!r}; expected exponential or sigmoid")
        self.gate = gate
        self.projections = _Projections(width, heads)
        self.input_gate, self.forget_gate = nn.Linear(width, heads), nn.Linear(width, heads)
        with torch.no_grad():  # memories that last, of another length for each head
            self.forget_gate.bias.copy_(torch.linspace(3, 6, heads))
        self.output = _GatedOutput(width, heads)

    def mix(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        q, k, v = self.projections(x)
        i, f = self.input_gate(x), self.forget_gate(x)
        if self.gate == "exponential":
            y, state = mlstm(q, k, v, i, f, state)
        else:
            k = k * i.sigmoid()[..., None].to(k)
            y, state = ssd(q, k, v, nn.functional.logsigmoid(widened(f)), state)
        return self.output(y, x), state
