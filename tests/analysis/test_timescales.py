"""Autocorrelations by naive loops and of known processes; fits of known exponentials."""

import math

import numpy as np
import pytest
import torch

from clplat.analysis import timescales
from clplat.analysis.timescales import (
    Autocorrelation,
    autocorrelation,
    exponential_fits,
    network_time_constants,
)
from clplat.backbones.recurrent import Recurrent
from clplat.layers.recurrent import GRU, LSTM, LeakyRNN

LAG = torch.arange(31, dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator(seed))


def naive(activity: torch.Tensor, lags: int) -> torch.Tensor:
    trials, time, units = activity.shape
    found = torch.zeros(lags + 1, units, dtype=torch.float64)
    for trial in activity.tolist():
        for unit in range(units):
            x = [row[unit] for row in trial]
            mean = sum(x) / time
            curve = []
            for lag in range(lags + 1):
                products = [(x[t] - mean) * (x[t + lag] - mean) for t in range(time - lag)]
                curve.append(sum(products) / len(products))
            for lag in range(lags + 1):
                found[lag, unit] += curve[lag] / curve[0] / trials
    return found


def exponential(tau: float) -> torch.Tensor:
    return torch.exp(-LAG / tau)


def mixture(weight: float, slow: float, fast: float) -> torch.Tensor:
    return weight * exponential(slow) + (1 - weight) * exponential(fast)


# --- autocorrelation -------------------------------------------------------------------------


@pytest.mark.parametrize(("trials", "time", "units", "lags"), [(3, 37, 5, 7), (1, 9, 1, 8)])
def test_autocorrelation_equals_a_loop_over_pairs_of_steps(trials, time, units, lags):
    activity = normal(trials, time, units).cumsum(1)
    found = autocorrelation(activity, lags)
    assert found.shape == (lags + 1, units)
    torch.testing.assert_close(found, naive(activity, lags))


@pytest.mark.parametrize("pieces", [[1] * 41, [3, 2, 1, 35], [40, 1]])
def test_pieces_of_any_length_make_the_same_autocorrelation(pieces):
    activity, whole = normal(2, 41, 3).cumsum(1), Autocorrelation(6)
    for piece in activity.split(pieces, 1):
        whole.add(piece)
    torch.testing.assert_close(whole.mean(), naive(activity, 6))


def test_a_large_mean_costs_no_digits():
    activity = normal(2, 200, 3)
    shifted = autocorrelation(activity + 1e7, 5)
    torch.testing.assert_close(shifted, naive(activity, 5), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rho", [0.9, 0.5, -0.7])
def test_of_a_first_order_process_it_is_a_power_of_its_coefficient(rho):
    noise, x = normal(10000, 20), [torch.zeros(20, dtype=torch.float64)]
    for step in noise:
        x.append(rho * x[-1] + step)
    found = autocorrelation(torch.stack(x, 1)[:, :, None], 8)[:, 0]
    torch.testing.assert_close(found, rho ** LAG[:9], rtol=0, atol=0.03)


def test_units_that_are_constant_or_not_finite_have_none():
    activity = normal(2, 50, 3)
    activity[1, :, 0], activity[0, 7, 2] = 0.1, math.inf
    found = autocorrelation(activity, 4)
    assert found.isnan().all(0).tolist() == [True, False, True]
    torch.testing.assert_close(found[:, 1], naive(activity[:, :, 1:2], 4)[:, 0])


def test_activity_that_is_not_longer_than_the_lags_is_refused():
    with pytest.raises(ValueError, match="activity of 5 steps; expected more than 5 lags"):
        autocorrelation(normal(1, 5, 1), 5)


# --- fits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.4, 1.0, 7.3, 60.0])
def test_one_exponential_is_found_and_is_enough(tau):
    constants, numbers = exponential_fits(exponential(tau)[:, None])
    assert numbers.tolist() == [1]
    assert float(constants) == pytest.approx(tau, rel=1e-3)


@pytest.mark.parametrize(
    ("weight", "slow", "fast"), [(0.5, 12.0, 1.5), (0.2, 25.0, 0.5), (0.8, 6.0, 1.0), (0.1, 9, 3)]
)
def test_of_two_exponentials_the_slow_one_is_returned(weight, slow, fast):
    constants, numbers = exponential_fits(mixture(weight, slow, fast)[:, None])
    assert numbers.tolist() == [2]
    assert float(constants) == pytest.approx(slow, rel=0.02)


def test_a_slow_part_beside_white_noise_is_found():
    curve = 0.3 * exponential(8.0)
    curve[0] = 1
    constants, numbers = exponential_fits(curve[:, None])
    assert numbers.tolist() == [2]
    assert float(constants) == pytest.approx(8.0, rel=0.02)


@pytest.mark.parametrize(
    ("curve", "number", "slow"),
    [(exponential(5.0), 1, 5.0), (mixture(0.4, 15.0, 1.0), 2, 15.0)],
    ids=["one", "two"],
)
def test_noise_changes_neither_the_choice_nor_the_value_by_much(curve, number, slow):
    noisy = curve[:, None] + 0.01 * normal(31, 40)
    noisy[0] = 1
    constants, numbers = exponential_fits(noisy, error=0.02)
    assert float((numbers == number).double().mean()) >= 0.95
    assert float(constants.median()) == pytest.approx(slow, rel=0.05)
    # Akaike's criterion alone takes two for one in about one case of seven, 2 log-likelihoods
    # being chi-squared with two degrees of freedom: exp(-2).
    alone = exponential_fits(noisy)[1]
    assert float((alone == number).double().mean()) >= 0.75


def test_a_fit_is_the_least_of_squares_over_a_grid():
    noisy = exponential(4.0)[:, None] + 0.05 * normal(31, 6)
    noisy[0] = 1
    constants, numbers = exponential_fits(noisy, error=1.0)
    assert (numbers == 1).all()
    taus = torch.arange(2.0, 8.0, 0.005, dtype=torch.float64)
    errors = (torch.exp(-LAG[:, None, None] / taus) - noisy[:, :, None]).square().sum(0)
    torch.testing.assert_close(constants, taus[errors.argmin(1)], rtol=0, atol=0.006)


def test_the_choice_is_akaikes_over_a_grid():
    """Of curves between one exponential and two, both fitted by brute force."""
    weights = torch.linspace(0, 0.1, 16, dtype=torch.float64)
    curves = torch.stack([mixture(float(w), 12.0, 2.0) for w in weights], 1)
    curves[1:] += 0.02 * normal(30, 16)
    fine, coarse = (
        torch.exp(-LAG[1:, None] / torch.logspace(-1, math.log10(300), size).double())
        for size in (5000, 200)
    )
    slow, fast = coarse.repeat_interleave(200, 1), coarse.repeat(1, 200)
    gap = slow - fast
    expected = []
    for curve in curves.T[:, 1:, None]:
        one = (fine - curve).square().mean(0).min()
        weight = (gap * (curve - fast)).sum(0) / gap.square().sum(0).clamp(min=1e-12)
        two = (fast + weight.clamp(0, 1) * gap - curve).square().mean(0).min()
        expected.append(1 if 30 * one.log() + 2 <= 30 * two.log() + 6 else 2)
    assert 4 <= expected.count(1) <= 12
    assert exponential_fits(curves)[1].tolist() == expected


def test_a_small_offset_is_no_second_exponential_where_it_is_an_error_of_sampling():
    curve = exponential(0.8)[:, None] + 0.004
    curve[0] = 1
    constants, numbers = exponential_fits(curve)
    assert (int(numbers), float(constants) > 50) == (2, True)
    constants, numbers = exponential_fits(curve, error=0.01)
    assert int(numbers) == 1
    assert float(constants) == pytest.approx(0.8, rel=0.05)


def test_activity_without_memory_has_next_to_no_time_constant_and_endless_memory_the_largest():
    curve = torch.zeros(31, 2, dtype=torch.float64)
    curve[0], curve[:, 1] = 1, 1
    constants, _ = exponential_fits(curve)
    assert 0.1 <= float(constants[0]) < 0.3
    assert float(constants[1]) == pytest.approx(300, rel=0.01)


def test_fewer_lags_have_smaller_bounds():
    constants, _ = exponential_fits(torch.ones(4, 1))
    assert float(constants) == pytest.approx(30.0, rel=0.01)


def test_curves_that_are_not_finite_have_no_fit():
    curves = torch.stack([exponential(2.0), torch.full((31,), math.nan).double()], 1)
    constants, numbers = exponential_fits(curves)
    assert numbers.tolist() == [1, 0]
    assert np.isnan(constants.numpy()).tolist() == [False, True]


# --- of a network ----------------------------------------------------------------------------

TAUS = [1.0, 1.5, 3.0, 8.0]


def filters(layer) -> Recurrent:
    """A network whose units do not hear one another: each filters the same bits."""
    encoder = Recurrent((10, 1), lambda _: layer, width=4)
    with torch.no_grad():
        layer.recurrent.zero_()
        layer.input.weight.zero_()
        layer.input.bias.zero_()
    return encoder


def leaky(**settings) -> Recurrent:
    layer = LeakyRNN(4, **settings)
    encoder = filters(layer)
    with torch.no_grad():
        layer.input.weight.fill_(1.0)
        layer.tau.copy_(torch.tensor(TAUS))
    return encoder


def gated() -> Recurrent:
    layer = GRU(4)
    encoder = filters(layer)
    with torch.no_grad():  # z is 1 - 1 / tau, and n is tanh of the bit
        layer.input.weight[8:] = 1.0
        layer.input.bias[4:8] = torch.logit(1 - 1 / torch.tensor(TAUS), eps=1e-6)
    return encoder


@pytest.mark.parametrize(
    "encoder",
    [leaky(), leaky(activation="leaky_relu", activates="sum"), gated()],
    ids=["input", "sum", "gru"],
)
def test_a_leaky_unit_alone_forgets_as_its_tau_says(encoder):
    found = network_time_constants(encoder, generator(), steps=4000)
    assert float(found[0]) < 0.3
    expected = [-1 / math.log(1 - 1 / tau) for tau in TAUS[1:]]
    assert found[1:].tolist() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("layer", [LeakyRNN, GRU, LSTM])
def test_the_state_is_carried_from_piece_to_piece(layer, monkeypatch):
    torch.manual_seed(0)
    encoder = Recurrent((10, 2), layer, width=5)
    monkeypatch.setattr(timescales, "exponential_fits", lambda curves, error: (curves, None))
    whole = network_time_constants(encoder, generator(), steps=400, trials=1, lags=9)
    monkeypatch.setattr(timescales, "PIECE", 7)
    pieces = network_time_constants(encoder, generator(), steps=400, trials=1, lags=9)
    assert whole.isfinite().all()
    torch.testing.assert_close(whole, pieces, rtol=0, atol=1e-5)


def test_a_network_that_diverges_has_no_time_constants():
    encoder = leaky(activation="leaky_relu", activates="sum")
    with torch.no_grad():
        encoder.layer.recurrent.copy_(3 * torch.eye(4))  # type: ignore[attr-defined]
    assert network_time_constants(encoder, generator(), steps=600).isnan().all()
