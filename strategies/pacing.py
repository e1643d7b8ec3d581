"""How many samples each epoch of a curriculum draws: pacing functions, in shares of the data."""

import math
from collections.abc import Callable, Iterator
from itertools import count, cycle


def shares(first: float, last: float, ratio: float) -> list[float]:
    """`first`, each next one `ratio` times as large, and `last` in place of the first beyond it."""
    steps = math.ceil(math.log(last / first) / math.log(ratio) - 1e-9)
    return [*(first * ratio**k for k in range(steps)), last]


def epoch_sizes(epochs: Iterator[float], budget: int, samples: int) -> list[int]:
    """Samples of each epoch, floor(share * samples) but at least 1, until the budget is spent.

    `budget` is in passes over the data; the last epoch has what is left of it.
    """
    sizes, left = [], budget * samples
    while left:
        sizes.append(min(max(1, math.floor(next(epochs) * samples + 1e-9)), left))
        left -= sizes[-1]
    return sizes


def cycle_sizes(start: float, end: float, alpha: float, budget: int, samples: int) -> list[int]:
    """Samples of each epoch: from `start` to `end` and back again, in ratios of `alpha`."""
    up, down = shares(start, end, 1 / alpha), shares(end, start, alpha)
    return epoch_sizes(cycle(up[:-1] + down[:-1] or [end]), budget, samples)


def ramp_sizes(first: float, last: float, ratio: float, budget: int, samples: int) -> list[int]:
    """Samples of each epoch: from `first` to `last` once, with as many epochs of each share."""
    ramp = shares(first, last, ratio)
    each = budget / sum(ramp)
    epochs = (ramp[min(int(k / each), len(ramp) - 1)] for k in count())
    return epoch_sizes(epochs, budget, samples)


def increasing_sizes(start: float, end: float, alpha: float, *budget: int) -> list[int]:
    return ramp_sizes(start, end, 1 / alpha, *budget)


def decreasing_sizes(start: float, end: float, alpha: float, *budget: int) -> list[int]:
    return ramp_sizes(end, start, alpha, *budget)


CURRICULA: dict[str, Callable[..., list[int]]] = {
    "cyclical": cycle_sizes,
    "increasing": increasing_sizes,
    "decreasing": decreasing_sizes,
    "self_paced": increasing_sizes,
}
