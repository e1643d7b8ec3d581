"""How long units remember: autocorrelations of their activity, and exponentials fitted to them."""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import curve_fit
from torch import Tensor

from clplat.backbones.recurrent import Recurrent

SHORTEST = 0.1  # steps; the fitted time constant of activity that has no memory
LONGEST = 10  # times the largest lag: slower than that, a decay cannot be told from none
WARM_UP = 100  # steps before the recording, to forget where the state began
PIECE = 1000  # steps held at a time

Shape = Callable[..., NDArray]  # (lags, parameters)
Bounds = tuple[list[float], list[float]]  # least and largest of each parameter
Fit = tuple[float, NDArray]  # mean square of the residuals, infinite if there is none; parameters


class Autocorrelation:
    """Autocorrelation of activity that comes in pieces, in memory that does not grow with time."""

    def __init__(self, lags: int):
        self.lags = lags
        self._time = 0

    def add(self, activity: Tensor) -> None:
        """The next piece (trials, time, units), of any length."""
        x = activity.double()
        if not self._time:
            self._origin = x[:, :1]  # from here, so that large means do not cost digits
            self._first = self._last = x[:, :0]
            self._products = [torch.zeros_like(x[:, 0]) for _ in range(self.lags + 1)]
            self._sum = torch.zeros_like(x[:, 0])
        x = x - self._origin
        known, self._time = self._last.shape[1], self._time + x.shape[1]
        self._sum += x.sum(1)
        joined = torch.cat([self._last, x], 1)
        for lag, product in enumerate(self._products[: joined.shape[1]]):
            begin = max(known, lag)
            product += (joined[:, begin:] * joined[:, begin - lag : joined.shape[1] - lag]).sum(1)
        self._first = torch.cat([self._first, x], 1)[:, : self.lags]
        self._last = joined[:, max(0, joined.shape[1] - self.lags) :]

    def mean(self) -> Tensor:
        """(lags + 1, units): normalised by the variance, then the mean over trials.

        NaN for a unit that is constant, or not finite, in a trial. ValueError where the activity
        is not longer than the lags.
        """
        if self._time <= self.lags:
            raise ValueError(f"activity of {self._time} steps; expected more than {self.lags} lags")
        mean = self._sum / self._time
        covariances = []
        for lag, product in enumerate(self._products):
            earlier = self._sum - self._last[:, self._last.shape[1] - lag :].sum(1)
            later = self._sum - self._first[:, :lag].sum(1)
            pairs = self._time - lag
            covariances.append((product - mean * (earlier + later)) / pairs + mean.square())
        stacked = torch.stack(covariances)  # (lags + 1, trials, units)
        return (stacked / stacked[0]).mean(1)


def autocorrelation(activity: Tensor, lags: int) -> Tensor:
    """Of activity (trials, time, units), for lags 0..lags: (lags + 1, units), the mean over trials.

    A trial's is sum_t (x_t - m)(x_{t+lag} - m) / (time - lag), m its mean, over that at lag 0.
    """
    whole = Autocorrelation(lags)
    whole.add(activity)
    return whole.mean()


def _one(lag: NDArray, decay: float) -> NDArray:
    return decay**lag


def _two(lag: NDArray, weight: float, decay: float, other: float) -> NDArray:
    return weight * decay**lag + (1 - weight) * other**lag


def _fit(curve: NDArray, shape: Shape, start: list[float], bounds: Bounds) -> Fit:
    lag = np.arange(len(curve))
    begin = np.clip(start, *bounds)
    try:
        found, _ = curve_fit(shape, lag, curve, begin, bounds=bounds, maxfev=1000)
    except RuntimeError:  # it has not converged
        return np.inf, begin
    # At lag 0 curve and fit are both 1, so it says nothing.
    return float(np.mean((shape(lag, *found) - curve)[1:] ** 2)), found


def exponential_fits(autocorrelation: Tensor, error: float = 1e-5) -> tuple[Tensor, Tensor]:
    """The slow time constant of each unit, in steps, and by how many exponentials it was fitted.

    Least squares of exp(-lag / tau), and of two such with weights w and 1 - w, w in 0..1, to an
    autocorrelation (lags + 1, units) (Khajehabdollahi et al. 2024); Akaike's criterion chooses,
    and of two the larger tau is returned. Weights sum to 1, as an autocorrelation is 1 at lag 0,
    and are positive, as they are variances of independent parts; a part without memory has a tau
    next to the least, 0.1. The largest is 10 times the largest lag. A fit whose residuals have a
    root mean square up to `error` is as good as any (our reading): errors of sampling hang together
    from lag to lag, as the criterion does not expect, and a second exponential would fit them.
    Returns (units,) twice; NaN and 0 where the autocorrelation is not finite.
    """
    curves = autocorrelation.T.double().cpu().numpy()
    constants, numbers = np.full(len(curves), np.nan), np.zeros(len(curves), dtype=np.int64)
    for unit in np.flatnonzero(np.isfinite(curves).all(1)):
        constants[unit], numbers[unit] = _slow_time_constant(curves[unit], error)
    return torch.from_numpy(constants), torch.from_numpy(numbers)


def _slow_time_constant(curve: NDArray, error: float) -> tuple[float, int]:
    lags, guess = len(curve) - 1, float(np.clip(curve[1], 0.05, 0.95))
    least, most = math.exp(-1 / SHORTEST), math.exp(-1 / (LONGEST * lags))
    one = _fit(curve, _one, [guess], ([least], [most]))
    bounds = [0.0, least, least], [1.0, most, most]
    starts = [0.5, guess**0.3, guess**2], [0.1, 0.9, 0.1]
    two = min((_fit(curve, _two, start, bounds) for start in starts), key=lambda fit: fit[0])
    criteria = [
        lags * math.log(max(mean_square, error**2)) + 2 * len(parameters)
        for mean_square, parameters in (one, two)
    ]
    if min(criteria) == math.inf:
        return math.nan, 0
    slowest, number = (one[1][0], 1) if criteria[0] <= criteria[1] else (max(two[1][1:]), 2)
    return -1 / math.log(slowest), number


@torch.no_grad()
def network_time_constants(
    encoder: Recurrent,
    generator: torch.Generator,
    steps: int = 10000,
    trials: int = 10,
    lags: int = 30,
) -> Tensor:
    """Each unit's time constant (units,) in the network, in steps (Khajehabdollahi et al. 2024).

    The network is driven by fair random bits in so many trials at once; exponentials are fitted to
    the autocorrelation of the layer's outputs, which are the units' activity for LeakyRNN, GRU and
    LSTM. The paper takes 100000 steps; a tenth, the default, has three times the error. Memory
    is that of 1000 steps. NaN for units that are constant, or of a network that diverges.
    """
    device, channels = next(encoder.parameters()).device, encoder.channels
    total, state = Autocorrelation(lags), None
    lengths = [WARM_UP] + [min(PIECE, steps - begin) for begin in range(0, steps, PIECE)]
    for piece, length in enumerate(lengths):
        bits = torch.randint(2, (trials, length, channels), generator=generator).float()
        y, state = encoder.layer(encoder.input(bits.to(device)), state)
        if piece:
            total.add(y)
    # Of white noise, each value has a standard error of 1 / sqrt(steps trials).
    return exponential_fits(total.mean(), error=2 / math.sqrt(steps * trials))[0]
