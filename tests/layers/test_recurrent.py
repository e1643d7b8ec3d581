"""Recurrent layers against torch's own kernels, and against loops over the papers' equations."""

import pytest
import torch
from torch import Tensor

from clplat.layers.recurrent import GRU, LSTM, SLSTM, LeakyRNN
from tests.layers import naive
from tests.layers.compare import (
    CHECKS,
    assert_matches,
    assert_matches_twice,
    assert_state,
    count,
    made,
    sequence,
    stays_finite_at_extremes,
)

LAYERS = {
    "leaky tanh": lambda: LeakyRNN(8),
    "leaky relu": lambda: LeakyRNN(8, "relu"),
    "leaky relu around the sum": lambda: LeakyRNN(8, "leaky_relu", "sum"),
    "tanh around the sum": lambda: LeakyRNN(8, "tanh", "sum"),
    "lstm": lambda: LSTM(8),
    "gru": lambda: GRU(8),
    "slstm": lambda: SLSTM(8, 2),
    "slstm of one head": lambda: SLSTM(8, 1),
}


def recurrent_weight(layer) -> Tensor:
    """As torch lays it out: (gates width, width), to be multiplied from the left."""
    return layer.recurrent[0].mT.flatten(0, 1)


def torch_weights(layer, bias: Tensor) -> list[Tensor]:
    """Input and recurrent weights, then input and recurrent biases."""
    return [layer.input.weight, recurrent_weight(layer), layer.input.bias, bias]


def torch_rnn(layer, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
    h = x.new_zeros(len(x), layer.width) if h is None else h
    kernel = {"tanh": torch.rnn_tanh, "relu": torch.rnn_relu}[layer.activation]
    weights = torch_weights(layer, x.new_zeros(layer.width))
    y, h = kernel(x, h[None], weights, True, 1, 0.0, False, False, True)
    return y, h[0]


def torch_lstm(layer, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    state = x.new_zeros(len(x), 2, layer.width) if state is None else state
    weights = torch_weights(layer, x.new_zeros(4 * layer.width))
    pair = [state[None, :, 0].contiguous(), state[None, :, 1].contiguous()]
    y, h, c = torch.lstm(x, pair, weights, True, 1, 0.0, False, False, True)
    return y, torch.stack([h[0], c[0]], 1)


def torch_gru(layer, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
    h = x.new_zeros(len(x), layer.width) if h is None else h
    weights = torch_weights(layer, torch.cat([x.new_zeros(2 * layer.width), layer.bias]))
    y, h = torch.gru(x, h[None], weights, True, 1, 0.0, False, False, True)
    return y, h[0]


def naive_leaky(layer, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
    h = x.new_zeros(len(x), layer.width) if h is None else h
    phi = {
        "tanh": torch.tanh,
        "relu": lambda z: z.clamp(min=0),
        "leaky_relu": lambda z: torch.maximum(z, 0.01 * z),
    }[layer.activation]
    outputs = []
    for x_t in x.unbind(1):
        z = naive.linear(layer.input, x_t) + h @ recurrent_weight(layer).T
        if layer.activates == "sum":
            h = phi((1 - 1 / layer.tau) * h + z / layer.tau)
        else:
            h = (1 - 1 / layer.tau) * h + phi(z) / layer.tau
        outputs.append(h)
    return torch.stack(outputs, 1), h


def naive_slstm(layer, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Without the stabiliser: c and n hold exp(m) times what the layer's state holds."""
    if state is None:
        state = torch.stack([x.new_zeros(len(x), layer.width)] * 3 + [x[:, 0] * 0 - 1e30], 1)
    h, c, n, m = state.unbind(1)
    m = m.detach()
    c, n = c * m.exp(), n * m.exp()
    outputs = []
    for x_t in x.unbind(1):
        by_head = [
            torch.einsum("bi,gij->bgj", part, layer.recurrent[k])
            for k, part in enumerate(naive.heads(h, layer.heads).unbind(1))
        ]
        gates = naive.linear(layer.input, x_t).reshape(len(x), 4, -1) + torch.cat(by_head, 2)
        i, f, z, o = gates.unbind(1)
        c = naive.sigmoid(f) * c + i.exp() * z.tanh()
        n = naive.sigmoid(f) * n + i.exp()
        h = naive.sigmoid(o) * c / n
        m = torch.maximum(naive.sigmoid(f).log() + m, i).detach()
        outputs.append(naive.rms_norm(layer.norm, naive.heads(h, layer.heads)).flatten(1))
    return torch.stack(outputs, 1), torch.stack([h, c * (-m).exp(), n * (-m).exp(), m], 1)


@pytest.mark.parametrize("time", [1, 5])
@pytest.mark.parametrize(("name", "kernel"), [("lstm", torch_lstm), ("gru", torch_gru)])
def test_equals_torchs_own(name, kernel, time):
    assert_matches_twice(made(LAYERS[name]), kernel, time)


@pytest.mark.parametrize("name", ["leaky tanh", "leaky relu"])
def test_without_a_leak_is_torchs_rnn(name):
    layer, x = made(LAYERS[name]), sequence()
    with torch.no_grad():
        layer.tau.fill_(1)
    for state in (None, sequence(seed=1)[:, 0]):
        y, final = layer(x, state)
        expected = torch_rnn(layer, x, state)
        torch.testing.assert_close((y, final), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in LAYERS if "stm" not in name and name != "gru"])
@pytest.mark.parametrize("slowest", [1.5, 40.0])
def test_leaky_equals_a_loop(name, slowest):
    layer = made(LAYERS[name])
    with torch.no_grad():
        layer.tau.copy_(torch.linspace(1.1, slowest, 8))
    assert_matches_twice(layer, naive_leaky)


def test_time_constants_below_one_count_as_one():
    layer, x = made(LAYERS["leaky tanh"]), sequence()
    with torch.no_grad():
        layer.tau.fill_(0.5)
        below = layer(x)[0]
        layer.tau.fill_(1)
    assert torch.equal(below, layer(x)[0])


@pytest.mark.parametrize("name", ["slstm", "slstm of one head"])
def test_slstm_equals_its_equations_without_stabiliser(name):
    assert_matches_twice(made(LAYERS[name]), naive_slstm)


def test_slstm_from_any_state():
    layer, state = made(LAYERS["slstm"]), torch.stack([*sequence(seed=3, time=4).unbind(1)], 1)
    state[:, 2] = state[:, 2].abs() + 0.5  # the normaliser is a sum of positive numbers
    assert_matches(layer, naive_slstm, sequence(), state)


def test_slstm_does_not_overflow_where_its_gates_exponentials_do():
    layer = made(LAYERS["slstm"])
    with torch.no_grad():
        layer.input.bias[:8] += 2000
    y, state = layer(sequence())
    assert y.isfinite().all()
    assert state.isfinite().all()
    expected = 2000 + torch.zeros(2, 8, dtype=torch.float64)
    torch.testing.assert_close(state[:, 3], expected, rtol=0, atol=20)


@pytest.mark.parametrize(
    ("name", "states", "parameters"),
    [
        ("leaky tanh", [(2, 8)], 2 * 8**2 + 2 * 8),
        ("lstm", [(2, 2, 8)], 8 * 8**2 + 4 * 8),
        ("gru", [(2, 8)], 6 * 8**2 + 4 * 8),
        ("slstm", [(2, 4, 8)], 4 * 8**2 + 4 * 8**2 // 2 + 4 * 8 + 8 // 2),
        ("slstm of one head", [(2, 4, 8)], 8 * 8**2 + 4 * 8 + 8),
    ],
)
def test_has_the_documented_state_and_size(name, states, parameters):
    layer = made(LAYERS[name])
    assert_state(layer, *states)
    assert count(layer) == parameters


def test_the_last_hidden_vector_is_the_output():
    for name, place in (("leaky tanh", ...), ("gru", ...), ("lstm", 0)):
        y, state = made(LAYERS[name])(sequence())
        last = state if place is ... else state[:, place]
        torch.testing.assert_close(y[:, -1], last, rtol=0, atol=1e-14)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", LAYERS)
def test_is_as_every_layer_is(name, check):
    if "relu" not in name or check is not stays_finite_at_extremes:  # it may grow without bound
        check(LAYERS[name])


def test_bad_arguments_are_named():
    text = "heads=3 do not divide the width 8; choose a divisor of it"
    with pytest.raises(ValueError, match=text):
        SLSTM(8, 3)
    with pytest.raises(
        ValueError, match="activation='sine'; expected one of tanh, relu, leaky_relu"
    ):
        LeakyRNN(8, "sine")
    with pytest.raises(ValueError, match="activates='output'; expected input or sum"):
        LeakyRNN(8, activates="output")
    with pytest.raises(ValueError, match=r"GRU: the state has shape \(3, 7\); expected \(2, 8\)"):
        GRU(8)(torch.zeros(2, 1, 8), torch.zeros(3, 7))
