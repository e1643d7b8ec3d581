"""Memories that learn while they are read: test-time training, Titans and Miras."""

import math
from functools import partial

import torch
from torch import Tensor, nn

from clplat.layers.convolution import ShortConvolution
from clplat.layers.layer import Layer, State, per_head
from clplat.layers.norm import RMSNorm, unit
from clplat.ops.neural_memory import neural_memory
from clplat.ops.neural_memory.rule import check_settings
from clplat.ops.tier import widened


class Gates(nn.Module):
    """Step size, momentum and decay (B, T, heads) of the inner learning, from sigmoids of x.

    A chunk's steps sum to 1 at first and to 2 at most, with momentum too (the step size is
    theta (1 - eta)): a linear memory with keys of unit length cannot diverge by its steps alone
    (our reading). The decay is near 1 at first.
    """

    def __init__(self, width: int, heads: int, chunk: int, momentum: bool, decay: bool):
        super().__init__()
        self.largest = 2 / chunk
        self.rate = nn.Linear(width, heads)
        self.momentum = nn.Linear(width, heads) if momentum else None
        self.decay = nn.Linear(width, heads) if decay else None
        if self.decay is not None:
            nn.init.constant_(self.decay.bias, 4.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        rate, momentum, decay = (
            None if linear is None else widened(linear(x)).sigmoid()
            for linear in (self.rate, self.momentum, self.decay)
        )
        assert rate is not None
        rate = self.largest * rate
        return rate if momentum is None else rate * (1 - momentum), momentum, decay


def initial_weights(heads: int, width: int, hidden: int | None) -> nn.ParameterList:
    """Of a linear memory, or of one with a hidden layer: (heads, in, out) each."""
    sizes = [(width, width)] if hidden is None else [(width, hidden), (hidden, width)]
    return nn.ParameterList(
        nn.Parameter(torch.randn(heads, before, after) / math.sqrt(before))
        for before, after in sizes
    )


class _Memory(Layer):
    """What the layers below share: projections, gates, the memory, norm and output.

    q, k, v = SiLU(conv(W x_t)), q and k of unit length; y_t = W_o (norm(f(q)) SiLU(W_g x_t)).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        chunk: int,
        hidden: int | None,
        momentum: bool = False,
        decay: bool = True,
        loss: str = "l2",
        loss_parameter: float = 1.0,
        retention: str = "decay",
        retention_parameter: float = 4.0,
    ):
        super().__init__(width)
        per = per_head(width, heads)
        self.heads = heads
        check_settings(loss, loss_parameter, retention, retention_parameter, chunk)
        self.memory = partial(
            neural_memory,
            loss=loss,
            loss_parameter=loss_parameter,
            retention=retention,
            retention_parameter=retention_parameter,
            chunk=chunk,
        )
        self.input = nn.Linear(width, 3 * width, bias=False)
        self.convolution = ShortConvolution(3 * width)
        self.gates = Gates(width, heads, chunk, momentum, decay)
        self.weights = initial_weights(heads, per, hidden and hidden * per)
        self.norm = RMSNorm(per)
        self.gate = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def mix(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        convolved, learned = (None, None) if state is None else state
        inner, convolved = self.convolution(self.input(x), convolved)
        q, k, v = inner.unflatten(2, (3, self.heads, -1)).unbind(2)
        q, k = unit(q), unit(k)
        rate, momentum, decay = self.gates(x)
        y, learned = self.memory(
            q, k, v, rate, tuple(self.weights), learned, momentum=momentum, decay=decay
        )
        y = self.norm(y).flatten(2) * nn.functional.silu(self.gate(x))
        return self.output(y), (convolved, learned)


class TTTLinear(_Memory):
    """Test-time training of a linear map in mini-batches (Sun et al. 2024).

    W_t = W_{t-1} - theta_t grad |k_t W - v_t|^2 / 2, the gradient at the weights of the chunk's
    start; y_t reads q_t W_t, normalised and gated. The paper's norm inside the inner loss is left
    out (our reading). Parameters: 5 width^2 + width^2 / heads and less, and a token costs those
    and 3 width^2 / heads multiplications. State: the convolution's, and weights, momentum and
    anchor (B, heads, width / heads, width / heads) each, and how many tokens the chunk took.
    """

    def __init__(self, width: int, heads: int = 4, chunk: int = 16):
        super().__init__(width, heads, chunk, None, decay=False)


class TTTMLP(_Memory):
    """Test-time training of a two-layer perceptron in mini-batches (Sun et al. 2024).

    As TTTLinear with f(k) = gelu(k W1) W2, `hidden` times as wide inside. Parameters: 5 width^2 +
    2 hidden width^2 / heads and less, and a token costs those and 7 hidden width^2 / heads
    multiplications. State: as for TTTLinear, of two matrices (B, heads, width / heads,
    hidden width / heads) and its transpose's shape.
    """

    def __init__(self, width: int, heads: int = 4, chunk: int = 16, hidden: int = 4):
        super().__init__(width, heads, chunk, hidden, decay=False)


class TitansMemory(_Memory):
    """The neural long-term memory of Titans by itself (Behrouz et al. 2025).

    S_t = eta_t S_{t-1} - theta_t grad |f(k_t) - v_t|^2 / 2, M_t = alpha_t M_{t-1} + S_t, f a
    two-layer perceptron, all three gates from the token. Parameters and cost as for TTTMLP with
    `hidden` 2. State: as for TTTMLP.
    """

    def __init__(self, width: int, heads: int = 4, chunk: int = 16, hidden: int = 2):
        super().__init__(width, heads, chunk, hidden, momentum=True)


class Moneta(_Memory):
    """Miras with an l_p loss and l_q retention (Behrouz et al. 2025b).

    A_t = alpha_t A_{t-1} - theta_t grad |f(k_t) - v_t|_p^p / p, M = A / ||A||_q^(q - 2); reads see
    the memory of the chunk's start, the last token of a chunk that of its end (our reading; for a
    chunk of 1 the paper's recurrence). Parameters, cost and state as for TitansMemory.
    """

    def __init__(
        self,
        width: int,
        heads: int = 4,
        chunk: int = 16,
        hidden: int = 2,
        p: float = 3.0,
        q: float = 4.0,
    ):
        super().__init__(
            width,
            heads,
            chunk,
            hidden,
            loss="lp",
            loss_parameter=p,
            retention="lq",
            retention_parameter=q,
        )


class Yaad(_Memory):
    """Miras with a Huber loss, robust to tokens that do not fit (Behrouz et al. 2025b).

    M_t = alpha_t M_{t-1} - theta_t grad Huber(f(k_t) - v_t), quadratic below `threshold`, linear
    above it: one threshold for all, entry by entry (our reading). Parameters, cost and state as
    for TitansMemory.
    """

    def __init__(
        self,
        width: int,
        heads: int = 4,
        chunk: int = 16,
        hidden: int = 2,
        threshold: float = 1.0,
    ):
        super().__init__(width, heads, chunk, hidden, loss="huber", loss_parameter=threshold)


class Memora(_Memory):
    """Miras with KL retention: the memory's columns are distributions (Behrouz et al. 2025b).

    M_t = softmax(alpha_t log M_{t-1} - theta_t grad |f(k_t) - v_t|^2 / 2) over the input axis;
    reads as for Moneta. Parameters, cost and state as for TitansMemory.
    """

    def __init__(self, width: int, heads: int = 4, chunk: int = 16, hidden: int = 2):
        super().__init__(width, heads, chunk, hidden, retention="softmax")
