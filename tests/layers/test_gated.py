"""Gated linear recurrences against loops over the papers' equations."""

import pytest
import torch
from torch import Tensor

from clplat.layers.gated import HGRN, GateLoop, MinGRU, MinLSTM
from tests.layers import naive
from tests.layers.compare import (
    CHECKS,
    assert_matches,
    assert_matches_twice,
    assert_state,
    count,
    made,
    sequence,
)


def positive(x: Tensor) -> Tensor:
    """The g of minGRU and minLSTM."""
    return torch.where(x >= 0, x + 0.5, naive.sigmoid(x))


def start(x: Tensor, h: Tensor | None, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.zeros(len(x), x.shape[-1], dtype=dtype) if h is None else h


def naive_mingru(layer, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
    h, outputs = start(x, h), []
    for x_t in x.unbind(1):
        z = naive.sigmoid(naive.linear(layer.gate, x_t))
        h = (1 - z) * h + z * positive(naive.linear(layer.value, x_t))
        outputs.append(h)
    return torch.stack(outputs, 1), h


def naive_minlstm(layer, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
    h, outputs = start(x, h), []
    for x_t in x.unbind(1):
        f, i = (naive.sigmoid(naive.linear(gate, x_t)) for gate in (layer.forget, layer.gate))
        h = (f * h + i * positive(naive.linear(layer.value, x_t))) / (f + i)
        outputs.append(h)
    return torch.stack(outputs, 1), h


def naive_hgrn(layer, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
    h, outputs = start(x, h), []
    bound = naive.sigmoid(layer.bound)
    for x_t in x.unbind(1):
        a = bound + (1 - bound) * naive.sigmoid(naive.linear(layer.gate, x_t))
        h = a * h + (1 - a) * naive.silu(naive.linear(layer.value, x_t))
        gate = naive.silu(naive.linear(layer.output_gate, x_t))
        outputs.append(naive.linear(layer.output, naive.rms_norm(layer.norm, h) * gate))
    return torch.stack(outputs, 1), h


def naive_gateloop(layer, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
    h, outputs = start(x, h, torch.complex128), []
    for x_t in x.unbind(1):
        q, k, v = naive.linear(layer.query_key_value, x_t).reshape(len(x), 3, -1).unbind(1)
        magnitude, phase = naive.linear(layer.transition, x_t).reshape(len(x), 2, -1).unbind(1)
        h = naive.sigmoid(magnitude) * torch.exp(1j * phase) * h + k * v
        gate = naive.silu(naive.linear(layer.gate, x_t))
        outputs.append(naive.linear(layer.output, (q * h).real * gate))
    return torch.stack(outputs, 1), h


LAYERS = {
    "mingru": (MinGRU, naive_mingru, 2 * 8**2 + 2 * 8),
    "minlstm": (MinLSTM, naive_minlstm, 3 * 8**2 + 3 * 8),
    "hgrn": (HGRN, naive_hgrn, 4 * 8**2 + 4 * 8),
    "gateloop": (GateLoop, naive_gateloop, 7 * 8**2 + 2 * 8),
}


@pytest.mark.parametrize("time", [1, 6])
@pytest.mark.parametrize("name", LAYERS)
def test_equals_a_loop_over_the_equations(name, time):
    make, equations, _ = LAYERS[name]
    assert_matches_twice(made(lambda: make(8)), equations, time)


@pytest.mark.parametrize("name", LAYERS)
def test_from_any_state(name):
    make, equations, _ = LAYERS[name]
    state = sequence(seed=1)[:, 0]
    if name == "gateloop":
        state = torch.complex(state, sequence(seed=2)[:, 0])
    assert_matches(made(lambda: make(8)), equations, sequence(), state)


@pytest.mark.parametrize("name", LAYERS)
def test_has_the_documented_state_and_size(name):
    make, _, parameters = LAYERS[name]
    layer = made(lambda: make(8))
    assert_state(layer, (2, 8))
    assert layer(sequence())[1].is_complex() == (name == "gateloop")
    assert count(layer) == parameters


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", LAYERS)
def test_is_as_every_layer_is(name, check):
    check(lambda: LAYERS[name][0](8))


@pytest.mark.parametrize("kind", [MinGRU, MinLSTM])
def test_the_min_layers_average_positive_numbers(kind):
    y, _ = kind(8)(10 * sequence().float())
    assert (y > 0).all()


def test_minlstms_gates_sum_to_one():
    """Shut both gates alike, and what the state keeps does not change."""
    layer, x, state = made(lambda: MinLSTM(8)), sequence(), sequence(seed=1)[:, 0]
    with torch.no_grad():
        for gate in (layer.forget, layer.gate):
            gate.weight.zero_()
            gate.bias.fill_(-30.0)
    value = positive(naive.linear(layer.value, x[:, 0]))
    y, _ = layer.step(x[:, 0], state)
    torch.testing.assert_close(y, (state + value) / 2, rtol=1e-10, atol=1e-10)


def test_hgrn_never_forgets_faster_than_its_bound():
    layer = made(lambda: HGRN(8))
    with torch.no_grad():
        layer.gate.bias.fill_(-1e4)
        layer.value.weight.zero_()
    state = torch.ones(2, 8, dtype=torch.float64)
    _, after = layer(sequence(time=3), state)
    torch.testing.assert_close(after, layer.bound.sigmoid().expand(2, 8) ** 3)


def test_hgrns_bound_keeps_its_precision_beside_half():
    """0.9995 rounds to 1 in bfloat16, which would neither forget nor write."""
    layer = HGRN(8)
    with torch.no_grad():
        layer.bound.fill_(torch.logit(torch.tensor(0.9995)))
        layer.gate.bias.fill_(-1e4)
    _, exact = layer(sequence().float())
    for x, half in ((sequence().float(), layer), (sequence().bfloat16(), layer.bfloat16())):
        with torch.autocast("cpu", torch.bfloat16, enabled=x.dtype == torch.float32):
            _, state = half(x)
        torch.testing.assert_close(state, exact, rtol=0.05, atol=2e-5)
