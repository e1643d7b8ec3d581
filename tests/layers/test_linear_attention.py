"""Linear attention with decay against loops over the papers' equations."""

import pytest
import torch
from torch import Tensor

from clplat.layers.layer import State
from clplat.layers.linear_attention import GLA, MLSTM, RetNet
from tests.layers import naive
from tests.layers.compare import (
    CHECKS,
    assert_matches,
    assert_matches_twice,
    assert_state,
    count,
    leaves,
    made,
    sequence,
)

LAYERS = {
    "retnet": lambda: RetNet(12, 2),
    "retnet of odd heads": lambda: RetNet(12, 4),
    "gla": lambda: GLA(12, 2),
    "mlstm": lambda: MLSTM(12, 2),
    "mlstm with sigmoid gates": lambda: MLSTM(12, 2, "sigmoid"),
    "mlstm of one head": lambda: MLSTM(12, 1),
}


def projected(layer, x_t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v (B, heads, P) of a token."""
    count = layer.projections.heads
    q, k, v = naive.linear(layer.projections.linear, x_t).chunk(3, 1)
    q, k, v = (naive.heads(part, count) for part in (q, k, v))
    return q, k / k.shape[-1] ** 0.5, v


def gated(layer, y: Tensor, x_t: Tensor) -> Tensor:
    out = layer.output
    normed = naive.rms_norm(out.norm, y).flatten(1)
    return naive.linear(out.output, normed * naive.silu(naive.linear(out.gate, x_t)))


def outer(k: Tensor, v: Tensor) -> Tensor:
    return k[..., :, None] * v[..., None, :]


def read(S: Tensor, q: Tensor) -> Tensor:
    """S^T q"""
    return (S * q[..., None]).sum(-2)


def nothing(layer, x: Tensor) -> Tensor:
    count = layer.projections.heads
    return x.new_zeros(len(x), count, layer.width // count, layer.width // count)


def naive_retnet(layer, x: Tensor, state: State) -> tuple[Tensor, State]:
    if state is None:
        state = nothing(layer, x), torch.zeros(len(x), dtype=torch.int64)
    S, taken = state
    gamma = torch.tensor([1 - 2.0 ** (-5 - h) for h in range(layer.heads)], dtype=torch.float64)
    outputs = []
    for x_t in x.unbind(1):
        q, k, v = projected(layer, x_t)
        q, k = (
            torch.stack([naive.rotated(row, int(t)) for row, t in zip(p, taken, strict=True)])
            for p in (q, k)
        )
        S = gamma[:, None, None] * S + outer(k, v)
        outputs.append(gated(layer, read(S, q), x_t))
        taken = taken + 1
    return torch.stack(outputs, 1), (S, taken)


def naive_gla(layer, x: Tensor, S: State) -> tuple[Tensor, State]:
    S = nothing(layer, x) if S is None else S
    outputs = []
    for x_t in x.unbind(1):
        q, k, v = projected(layer, x_t)
        a = naive.sigmoid(naive.linear(layer.decay, x_t)) ** (1 / 16)
        S = a[..., None, None] * S + outer(k, v)
        outputs.append(gated(layer, read(S, q), x_t))
    return torch.stack(outputs, 1), S


def naive_sigmoid_mlstm(layer, x: Tensor, C: State) -> tuple[Tensor, State]:
    C = nothing(layer, x) if C is None else C
    outputs = []
    for x_t in x.unbind(1):
        q, k, v = projected(layer, x_t)
        i, f = (
            naive.sigmoid(naive.linear(gate, x_t)) for gate in (layer.input_gate, layer.forget_gate)
        )
        C = f[..., None, None] * C + i[..., None, None] * outer(k, v)
        outputs.append(gated(layer, read(C, q), x_t))
    return torch.stack(outputs, 1), C


def naive_mlstm(layer, x: Tensor, state: State) -> tuple[Tensor, State]:
    """Without the stabiliser: C and n hold exp(m) times what the layer's state holds."""
    if state is None:
        C = nothing(layer, x)
        state = C, C[..., 0], C[..., 0, 0] - 1e30
    C, n, m = state
    m = m.detach()
    C, n = C * m.exp()[..., None, None], n * m.exp()[..., None]
    outputs = []
    for x_t in x.unbind(1):
        q, k, v = projected(layer, x_t)
        i = naive.linear(layer.input_gate, x_t)
        f = naive.sigmoid(naive.linear(layer.forget_gate, x_t))
        C = f[..., None, None] * C + i.exp()[..., None, None] * outer(k, v)
        n = f[..., None] * n + i.exp()[..., None] * k
        scale = (n * q).sum(-1).abs().clamp(min=1)
        outputs.append(gated(layer, read(C, q) / scale[..., None], x_t))
        m = torch.maximum(f.log() + m, i).detach()
    shrink = (-m).exp()
    return torch.stack(outputs, 1), (C * shrink[..., None, None], n * shrink[..., None], m)


EQUATIONS = {
    "retnet": naive_retnet,
    "retnet of odd heads": naive_retnet,
    "gla": naive_gla,
    "mlstm": naive_mlstm,
    "mlstm with sigmoid gates": naive_sigmoid_mlstm,
    "mlstm of one head": naive_mlstm,
}


@pytest.mark.parametrize("time", [1, 6])
@pytest.mark.parametrize("name", LAYERS)
def test_equals_a_loop_over_the_equations(name, time):
    assert_matches_twice(made(LAYERS[name]), EQUATIONS[name], time)


@pytest.mark.parametrize("input_gate", [-3.0, 4.0])
def test_mlstm_with_its_normaliser_below_and_above_one(input_gate):
    layer = made(LAYERS["mlstm"])
    with torch.no_grad():
        layer.input_gate.bias.fill_(input_gate)
    assert_matches_twice(layer, naive_mlstm)


@pytest.mark.parametrize("name", ["retnet", "gla", "mlstm with sigmoid gates", "mlstm"])
def test_from_any_state(name):
    layer, generator = made(LAYERS[name]), torch.Generator().manual_seed(1)
    S = torch.randn(2, 2, 6, 6, dtype=torch.float64, generator=generator)
    state = {
        "retnet": (S, torch.tensor([0, 1000])),
        "mlstm": (S, S[..., 0], torch.tensor([[0.3, -2.0], [1.5, 0.0]], dtype=torch.float64)),
    }.get(name, S)
    assert_matches(layer, EQUATIONS[name], sequence(12), state)


MATRIX = (2, 2, 6, 6)


@pytest.mark.parametrize(
    ("name", "states", "parameters"),
    [
        ("retnet", [MATRIX, (2,)], 5 * 12**2 + 6),
        ("gla", [MATRIX], 5 * 12**2 + 13 * 2 + 6),
        ("mlstm", [MATRIX, (2, 2, 6), (2, 2)], 5 * 12**2 + 2 * 13 * 2 + 6),
        ("mlstm with sigmoid gates", [MATRIX], 5 * 12**2 + 2 * 13 * 2 + 6),
    ],
)
def test_has_the_documented_state_and_size(name, states, parameters):
    layer = made(LAYERS[name])
    assert_state(layer, *states)
    assert count(layer) == parameters  # the last term is the norm's


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", LAYERS)
def test_is_as_every_layer_is(name, check):
    check(LAYERS[name])


def test_mlstm_does_not_overflow_where_its_gates_exponentials_do():
    layer = made(LAYERS["mlstm"])
    x = sequence(12)
    with torch.no_grad():
        for bias in (200.0, 2000.0):  # the normaliser cancels so large a factor
            layer.input_gate.bias.fill_(bias)
            y, state = layer(x)
            assert all(part.isfinite().all() for part in leaves(state))
            if bias == 200.0:
                expected = y
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)


def test_retentions_decay_is_the_papers():
    layer = made(LAYERS["retnet of odd heads"])
    with torch.no_grad():
        layer.projections.linear.weight.zero_()
    state = torch.ones(2, 4, 3, 3, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    _, (S, taken) = layer(sequence(12, time=2), state)
    expected = torch.tensor([31 / 32, 63 / 64, 127 / 128, 255 / 256], dtype=torch.float64) ** 2
    torch.testing.assert_close(S, expected[:, None, None].expand(2, 4, 3, 3))
    assert taken.tolist() == [2, 2]


@pytest.mark.parametrize("kind", [RetNet, GLA, MLSTM])
def test_bad_arguments_are_named(kind):
    text = "heads=5 do not divide the width 12; choose a divisor of it"
    with pytest.raises(ValueError, match=text):
        kind(12, 5)
    with pytest.raises(ValueError, match="heads=0 do not divide the width 12"):
        kind(12, 0)
    with pytest.raises(ValueError, match="gate='relu'; expected exponential or sigmoid"):
        MLSTM(12, gate="relu")
