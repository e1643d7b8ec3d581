"""Fast weights corrected towards what they should have said: the delta rule."""

import torch
from torch import Tensor, nn

from clplat.layers.convolution import ShortConvolution
from clplat.layers.layer import Layer, State, per_head
from clplat.layers.norm import RMSNorm, unit
from clplat.ops.delta_rule import delta_rule
from clplat.ops.tier import widened


class _Delta(Layer):
    """What the layers below share: projections, short convolution, delta rule, norm, output."""

    def __init__(
        self,
        width: int,
        heads: int,
        householder: int,
        decay: bool,
        negative_eigenvalues: bool,
        convolution: int,
    ):
        super().__init__(width)
        if householder < 1:
            raise ValueError(f"householder={householder} steps a token; expected at least 1")
        self.norm = RMSNorm(per_head(width, heads))
        self.heads, self.householder = heads, householder
        self.top = 2.0 if negative_eigenvalues else 1.0
        inner = (1 + 2 * householder) * width
        self.input = nn.Linear(width, inner, bias=False)
        self.convolution = ShortConvolution(inner, convolution)
        self.beta = nn.Linear(width, householder * heads)
        self.decay = nn.Linear(width, heads) if decay else None
        self.gate = nn.Linear(width, width, bias=False) if decay else None
        if self.decay is not None:  # keeps 0.75 to 0.98 a token at first, a head each
            self.log_rate = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
            nn.init.constant_(self.decay.bias, -4.0)
        self.output = nn.Linear(width, width, bias=False)

    def mix(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        convolved, hidden = (None, None) if state is None else state
        inner, convolved = self.convolution(self.input(x), convolved)
        width, n = self.width, self.householder
        q, k, v = inner.split([width, n * width, n * width], 2)
        q = q.unflatten(2, (self.heads, -1))
        # (B, T, n * width) -> (B, T * n, heads, width / heads): the sub-steps in their order
        k, v = (part.unflatten(2, (n, self.heads, -1)).flatten(1, 2) for part in (k, v))
        q, k = unit(q), unit(k)
        beta = self.top * widened(self.beta(x)).sigmoid().unflatten(2, (n, self.heads)).flatten(
            1, 2
        )
        log_decay = None
        if self.decay is not None:
            log_decay = -self.log_rate.exp() * nn.functional.softplus(widened(self.decay(x)))
        y, hidden = delta_rule(q, k, v, beta, log_decay, hidden, n_householder=n)
        y = self.norm(y).flatten(2)
        if self.gate is not None:
            y = y * nn.functional.silu(self.gate(x))
        return self.output(y), (convolved, hidden)


class DeltaNet(_Delta):
    """A linear transformer whose writes replace what their key held (Schlag 2021; Yang 2024).

    S_t = (I - beta k k^T) S_{t-1} + beta k v^T, y_t = W_o norm(S_t^T q_t), q and k of unit length;
    q, k, v pass a short convolution and SiLU; beta = sigmoid(W x_t), doubled with
    `negative_eigenvalues`: then a write can reflect the state (Grazzi et al. 2025). Parameters:
    4 width^2 and 3 convolution width, and a token costs those and 4 width^2 / heads
    multiplications. State: the convolution's (B, convolution - 1, 3 width), and S (B, heads,
    width / heads, width / heads).
    """

    def __init__(
        self,
        width: int,
        heads: int = 4,
        negative_eigenvalues: bool = False,
        convolution: int = 4,
    ):
        super().__init__(width, heads, 1, False, negative_eigenvalues, convolution)


class GatedDeltaNet(_Delta):
    """The delta rule with a decay for each head and a gated output (Yang et al. 2025).

    S_t = a_t (I - beta k k^T) S_{t-1} + beta k v^T with a_t = exp(-exp(r) softplus(W_a x_t));
    y_t = W_o (norm(S_t^T q_t) SiLU(W_g x_t)); the rest as for DeltaNet. Parameters: 5 width^2 and
    3 convolution width, and a token costs those and 5 width^2 / heads multiplications. State: as
    for DeltaNet.
    """

    def __init__(
        self,
        width: int,
        heads: int = 4,
        negative_eigenvalues: bool = False,
        convolution: int = 4,
    ):
        super().__init__(width, heads, 1, True, negative_eigenvalues, convolution)


class DeltaProduct(_Delta):
    """Several delta-rule steps a token, so a product of Householder maps (Siems et al. 2025).

    For each of n = `householder` keys and values of a token in turn S <- (I - beta k k^T) S +
    beta k v^T; with `decay` as for GatedDeltaNet, once a token. Parameters: (2 + 2 n) width^2 and
    (1 + 2 n) convolution width, and a token costs those and (1 + 3 n) width^2 / heads
    multiplications. State: the convolution's (B, convolution - 1, (1 + 2 n) width), and S (B,
    heads, width / heads, width / heads).
    """

    def __init__(
        self,
        width: int,
        heads: int = 4,
        householder: int = 2,
        decay: bool = False,
        negative_eigenvalues: bool = True,
        convolution: int = 4,
    ):
        super().__init__(width, heads, householder, decay, negative_eigenvalues, convolution)
