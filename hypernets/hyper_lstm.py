"""An LSTM whose weights a small LSTM scales anew at every token."""

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, pad

from clplat.errors import at_least
from clplat.layers.layer import Layer, State, check_state
from clplat.ops.tier import full_precision, widened

GATES = 4  # i, f, o, g
EPSILON = 1e-3  # of the normalisation, as in the authors' code


class HyperLSTM(Layer):
    """LSTM with its gates scaled unit by unit by a small LSTM (HyperLSTM, Ha et al. 2017).

    The small LSTM reads [x_t; h_{t-1}] and gives s_t. Each gate has embeddings of it, z_x = Z_x s_t
    + e_x, z_h = Z_h s_t + e_h and z_b = Z_b s_t, and is the LSTM's gate of LN(D_x z_x * W x_t +
    D_h z_h * R h_{t-1} + D_b z_b + b); then c_t = f c_{t-1} + i g and y_t = h_t = o tanh(LN(c_t)).
    The small LSTM is normalised likewise. At first W and R of each gate are orthogonal, and
    whatever s_t is, D z is 0.1 and D_b z_b is 0. As in the authors' code and not in their
    equations, z is of s_t, not s_{t-1}, forget gates have a bias of 1 after LN, and LN adds 0.001
    to the variance. Dropout is left out. While the biases are 0, tokens of nothing but zeros at the
    start of a sequence each multiply its gradients by about 25: a dozen are too many.

    Parameters, with H = hyper_width and E = embedding: 8 width (width + H) + 4 H^2 +
    (12 E + 14) (width + H) + 8 E; a token costs about as many multiplications.
    State: h with s, c with the small LSTM's (B, 2, width + H), in float32 at least.
    Raises: InputError for hyper_width below 2 and embedding below 1.
    """

    def __init__(self, width: int, hyper_width: int = 32, embedding: int = 4):
        at_least("backbone.layer", 2, hyper_width=hyper_width)  # LN makes a constant of one number
        at_least("backbone.layer", 1, embedding=embedding)
        super().__init__(width)
        self.hyper_width = hyper_width
        self.input = _orthogonal(width, width)
        self.recurrent = _orthogonal(width, width)
        self.bias = nn.Parameter(torch.zeros(GATES, 1, width))
        self.cell = NormalisedCell(width)
        self.hyper_input = _orthogonal(2 * width, hyper_width)  # of x, then of h
        self.hyper_recurrent = _orthogonal(hyper_width, hyper_width)
        self.hyper_bias = nn.Parameter(torch.zeros(GATES, 1, hyper_width))
        self.hyper_cell = NormalisedCell(hyper_width)
        # Z and e, first of the gates' scales of W x, then of those of R h, then of their shifts
        self.embed = nn.Parameter(torch.zeros(3 * GATES, hyper_width, embedding))
        nn.init.normal_(self.embed[2 * GATES :], std=0.01)
        self.embed_bias = nn.Parameter(torch.ones(2 * GATES, 1, embedding))
        self.scale = nn.Parameter(torch.full((2 * GATES, embedding, width), 0.1 / embedding))
        self.shift = nn.Parameter(torch.zeros(GATES, embedding, width))

    def mix(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        size = self.width + self.hyper_width
        if state is None:
            state = x.new_zeros(len(x), 2, size)
        check_state(self, state, len(x), 2, size)
        of_x = _by_gate(x, self.input)
        hyper_of_x = _by_gate(x, self.hyper_input[:, : self.width])
        with full_precision(x):
            y, state = self._unroll(widened(of_x), widened(hyper_of_x), widened(state))
        return y.to(of_x.dtype), state

    def _unroll(self, of_x: Tensor, hyper_of_x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """of_x (T, 4, B, width), hyper_of_x (T, 4, B, H) -> y (B, T, width), the state after it."""
        recurrent, bias, embed = map(widened, (self.recurrent, self.bias, self.embed))
        embed_bias = pad(widened(self.embed_bias), (0, 0, 0, 0, 0, GATES))  # the shifts have none
        (scale_x, scale_h), shift = widened(self.scale).split(GATES), widened(self.shift)
        hyper_of_h = self.hyper_input[:, self.width :]
        hyper_recurrent = widened(torch.cat([hyper_of_h, self.hyper_recurrent], 1))
        hyper_of_x = hyper_of_x + widened(self.hyper_bias)

        (h, s), (c, d) = (part.split((self.width, self.hyper_width), 1) for part in state.unbind(1))
        outputs = []
        for x_t, hyper_x_t in zip(of_x.unbind(), hyper_of_x.unbind(), strict=True):
            h_s = torch.cat([h, s], 1).expand(GATES, -1, -1)
            s, d = self.hyper_cell(torch.baddbmm(hyper_x_t, h_s, hyper_recurrent), d)
            z = torch.baddbmm(embed_bias, s.expand(3 * GATES, -1, -1), embed)
            z_x, z_h, z_b = z.split(GATES)
            of_h = torch.bmm(h.expand(GATES, -1, -1), recurrent)
            gates = torch.baddbmm(bias, z_b, shift)
            gates = torch.addcmul(gates, torch.bmm(z_x, scale_x), x_t)
            gates = torch.addcmul(gates, torch.bmm(z_h, scale_h), of_h)
            h, c = self.cell(gates, c)
            outputs.append(h)
        after = torch.stack([torch.cat([h, s], 1), torch.cat([c, d], 1)], 1)
        return torch.stack(outputs, 1), after


class NormalisedCell(nn.Module):
    """An LSTM from its gates' sums on, with layer normalisation (Ba et al. 2016).

    z (4, B, width), the sums of i, f, o, g, and c (B, width) -> h and c (B, width).
    """

    def __init__(self, width: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(GATES, 1, width))
        self.bias = nn.Parameter(torch.zeros(GATES, 1, width))
        nn.init.ones_(self.bias[1])
        self.cell_gain = nn.Parameter(torch.ones(width))
        self.cell_bias = nn.Parameter(torch.zeros(width))

    def forward(self, z: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        size, gain, bias = c.shape[1:], self.cell_gain.to(c), self.cell_bias.to(c)
        z = torch.addcmul(self.bias.to(z), layer_norm(z, size, eps=EPSILON), self.gain.to(z))
        opening, g = z.split([GATES - 1, 1])
        i, f, o = opening.sigmoid().unbind()
        c = torch.addcmul(f * c, i, g[0].tanh())
        return o * layer_norm(c, size, gain, bias, EPSILON).tanh(), c


def _orthogonal(inputs: int, outputs: int) -> nn.Parameter:
    """Weights (4, inputs, outputs), each gate's orthogonal."""
    weights = torch.empty(GATES, inputs, outputs)
    for weight in weights:
        nn.init.orthogonal_(weight)
    return nn.Parameter(weights)


def _by_gate(x: Tensor, weights: Tensor) -> Tensor:
    """x (B, T, n) and weights (4, n, m) -> (T, 4, B, m): all tokens and gates in one product."""
    return torch.einsum("bti,gij->tgbj", x, weights).contiguous()
