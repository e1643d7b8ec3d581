"""State spaces against loops that discretise dense matrices; HiPPO against its closed form."""

import math

import pytest
import torch
from torch import Tensor

from clplat.layers.ssm import LRU, LSSL, S4D, bilinear, hippo_legs
from tests.layers.compare import (
    CHECKS,
    assert_matches,
    assert_matches_twice,
    assert_state,
    count,
    made,
    sequence,
)

LAYERS = {
    "lru": lambda: LRU(5, 6),
    "lru that does not turn": lambda: LRU(5, 6, max_phase=0),
    "s4d": lambda: S4D(5, 6),
    "lssl": lambda: LSSL(5, 4),
}


def naive_lru(layer, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
    phase = torch.zeros_like(layer.nu) if layer.phase is None else layer.phase.exp()
    eigenvalue = torch.exp(-layer.nu.exp() + 1j * phase)
    B = layer.gamma.exp()[:, None] * torch.complex(*layer.input)
    C = torch.complex(*layer.output)
    h = torch.zeros(len(x), len(B), dtype=B.dtype) if h is None else h
    outputs = []
    for x_t in x.unbind(1):
        h = eigenvalue * h + x_t.to(B) @ B.T
        outputs.append((h @ C.T).real + layer.skip * x_t)
    return torch.stack(outputs, 1), h


def zero_order_hold(A: Tensor, B: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    """Of a dense matrix: exp(dt A) and A^-1 (exp(dt A) - 1) B."""
    transition = torch.linalg.matrix_exp(dt * A)
    return transition, torch.linalg.solve(A, (transition - torch.eye(len(A))) @ B)


def trapezoid(A: Tensor, B: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    one = torch.eye(len(A), dtype=A.dtype)
    inverse = torch.linalg.inv(one - dt / 2 * A)
    return inverse @ (one + dt / 2 * A), inverse @ B * dt


def naive_dense(layer, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Channel by channel, h_t = A' h_{t-1} + B' x_t with dense A'."""
    outputs, finals = [], []
    for channel in range(layer.width):
        dt = layer.log_dt[channel].exp()
        if isinstance(layer, S4D):
            a = torch.complex(-layer.log_decay[channel].exp(), layer.frequency[channel])
            transition, control = zero_order_hold(torch.diag(a), torch.ones(len(a)).to(a), dt)
            output = 2 * torch.complex(*layer.output[:, channel])
        else:
            transition, control = trapezoid(layer.transition, layer.control, dt)
            output = layer.output[channel]
        h = torch.zeros(len(x), len(control)).to(control) if state is None else state[:, channel]
        y = []
        for x_t in x[..., channel].unbind(1):
            h = h @ transition.T + x_t[:, None] * control
            y.append((h * output).sum(-1).real + layer.skip[channel] * x_t)
        outputs.append(torch.stack(y, 1))
        finals.append(h)
    return torch.stack(outputs, 2), torch.stack(finals, 1)


@pytest.mark.parametrize("time", [1, 7])
@pytest.mark.parametrize("name", LAYERS)
def test_equals_a_loop_over_the_equations(name, time):
    equations = naive_lru if name.startswith("lru") else naive_dense
    assert_matches_twice(made(LAYERS[name]), equations, time)


@pytest.mark.parametrize(
    ("name", "shape"), [("lru", (2, 6)), ("s4d", (2, 5, 3)), ("lssl", (2, 5, 4))]
)
def test_from_any_state(name, shape):
    generator = torch.Generator().manual_seed(1)
    dtype = torch.float64 if name == "lssl" else torch.complex128
    state = torch.randn(shape, dtype=dtype, generator=generator)
    equations = naive_lru if name == "lru" else naive_dense
    assert_matches(made(LAYERS[name]), equations, sequence(5), state)


@pytest.mark.parametrize(
    ("name", "shape", "parameters"),
    [
        ("lru", (2, 6), 4 * 5 * 6 + 3 * 6 + 5),
        ("lru that does not turn", (2, 6), 4 * 5 * 6 + 2 * 6 + 5),
        ("s4d", (2, 5, 3), 2 * 5 * 6 + 2 * 5),
        ("lssl", (2, 5, 4), 5 * (4 + 2)),
    ],
)
def test_has_the_documented_state_and_size(name, shape, parameters):
    layer = made(LAYERS[name])
    assert_state(layer, shape)
    assert layer(sequence(5))[1].is_complex() == (name != "lssl")
    assert count(layer) == parameters


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", LAYERS)
def test_is_as_every_layer_is(name, check):
    check(LAYERS[name])


# --- at first ----------------------------------------------------------------------------------


@pytest.mark.parametrize("radii", [(0.4, 0.99), (0.0, 0.5)])
def test_lrus_eigenvalues_fill_their_ring(radii):
    torch.manual_seed(0)
    layer = LRU(2, 2000, radii, max_phase=math.pi / 2).double()
    radius, angle = (-layer.nu.exp()).exp(), layer.phase.exp()
    low, high = radii
    assert low - 1e-4 <= radius.min() < radius.max() <= high + 1e-6
    # uniform by area: half of them lie outside the circle that halves it
    middle = math.sqrt((low**2 + high**2) / 2)
    assert abs((radius > middle).double().mean().item() - 0.5) < 0.05
    assert 0 <= angle.min() < 0.02
    assert math.pi / 2 - 0.02 < angle.max() <= math.pi / 2 + 1e-6
    torch.testing.assert_close(layer.gamma.exp(), (1 - radius**2).sqrt(), rtol=1e-4, atol=1e-6)


def test_s4d_begins_with_the_lin_spectrum_and_step_sizes_in_range():
    torch.manual_seed(0)
    layer = S4D(200, 6).double()
    a = torch.complex(-layer.log_decay.exp(), layer.frequency)
    expected = torch.tensor([-0.5 + 1j * math.pi * n for n in range(3)], dtype=torch.complex128)
    torch.testing.assert_close(a, expected.expand(200, 3), rtol=1e-6, atol=1e-6)
    for layer in (layer, LSSL(200, 4)):
        dt = layer.log_dt.exp()
        assert 0.001 * 0.999 <= dt.min() < 0.0015
        assert 0.07 < dt.max() <= 0.1 * 1.001


def published_legs(size: int) -> tuple[Tensor, Tensor]:
    """HiPPO-LegS entry by entry (Gu et al. 2020, theorem 2), for x' = A x + B u."""
    A, B = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    for n in range(size):
        B[n] = math.sqrt(2 * n + 1)
        for k in range(size):
            if n > k:
                A[n, k] = -math.sqrt(2 * n + 1) * math.sqrt(2 * k + 1)
            elif n == k:
                A[n, k] = -(n + 1)
    return A, B


@pytest.mark.parametrize("size", [1, 2, 16])
def test_hippo_is_the_published_closed_form(size):
    A, B = published_legs(size)
    transition, control = hippo_legs(size)
    torch.testing.assert_close(transition.double(), A, rtol=1e-6, atol=0)
    torch.testing.assert_close(control.double(), B, rtol=1e-6, atol=0)
    layer = LSSL(3, size)
    assert torch.equal(layer.transition, transition)
    assert torch.equal(layer.control, control)
    assert "transition" not in dict(layer.named_parameters())


def test_bilinear_is_that_function_of_the_matrix():
    """By the eigenvalues a, which are apart: (1 + dt a / 2) / (1 - dt a / 2)."""
    A, B = published_legs(4)
    dt = torch.tensor([0.003, 0.1, 1.0], dtype=torch.float64)
    transition, control = bilinear(A, B, dt)
    values, vectors = torch.linalg.eig(A)
    for k in range(3):
        mapped = (1 + dt[k] * values / 2) / (1 - dt[k] * values / 2)
        expected = (vectors * mapped @ torch.linalg.inv(vectors)).real
        torch.testing.assert_close(transition[k], expected, rtol=1e-10, atol=1e-10)
        # and of B what zero-order hold would have, with this function for exp(dt A)
        held = torch.linalg.solve(A, (expected - torch.eye(4)) @ B)
        torch.testing.assert_close(control[k], held, rtol=1e-10, atol=1e-10)


def test_bilinear_nears_the_exponential_by_the_third_order():
    A, B = published_legs(4)
    dt = torch.tensor([0.01, 0.005], dtype=torch.float64)
    exact = torch.linalg.matrix_exp(dt[:, None, None] * A)
    error = (bilinear(A, B, dt)[0] - exact).flatten(1).norm(dim=1)
    assert 7 < (error[0] / error[1]).item() < 9  # half the step: an eighth of the error


def test_s4d_from_both_sides_of_a_long_sequence():
    """By Fourier transform in one go, or token by token."""
    layer, x = made(LAYERS["s4d"]), sequence(5, 50)
    state, outputs = None, []
    for token in x.unbind(1):
        y, state = layer.step(token, state)
        outputs.append(y)
    whole, final = layer(x)
    torch.testing.assert_close(torch.stack(outputs, 1), whole, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state, final, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("radii", [(0.5, 0.5), (-0.1, 0.5), (0.5, 1.0)])
def test_lru_refuses_what_is_no_ring(radii):
    with pytest.raises(ValueError, match=r"LRU: radii=.*; expected 0 <= low < high < 1") as error:
        LRU(5, 6, radii)
    assert str(radii) in str(error.value)


@pytest.mark.parametrize("state", [0, 3])
def test_s4d_refuses_an_odd_state(state):
    with pytest.raises(ValueError, match=f"S4D: state={state}; expected an even number, of conj"):
        S4D(5, state)
