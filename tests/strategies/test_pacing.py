"""Sizes of a curriculum's epochs against the paper's loop, in exact fractions."""

from fractions import Fraction
from math import floor

import pytest

from strategies.pacing import CURRICULA, cycle_sizes, decreasing_sizes, increasing_sizes


def naive_cycle(start, end, alpha, budget, samples):
    """The paper's rule, from one share to the next."""
    start, end, alpha = (Fraction(str(value)) for value in (start, end, alpha))
    share, rising, sizes = start, True, []
    while sum(sizes) < budget * samples:
        size = max(1, floor(share * samples))
        sizes.append(min(size, budget * samples - sum(sizes)))
        rising = share == start or (rising and share < end)
        share = min(share / alpha, end) if rising else max(share * alpha, start)
    return sizes


@pytest.mark.parametrize("samples", [1, 2, 3, 37, 1000])
@pytest.mark.parametrize("budget", [1, 10, 31])
@pytest.mark.parametrize(
    ("start", "end", "alpha"),
    [
        (0.25, 1, 0.5),
        (0.1, 1, 0.5),
        (0.3, 0.9, 0.7),
        (0.2, 0.8, 0.1),
        (0.2, 1, 0.99),
        (0.05, 0.4, 0.5),
        (0.3, 0.3, 0.5),
        (1, 1, 0.5),
    ],
)
def test_a_cycle_is_the_papers(start, end, alpha, budget, samples):
    sizes = cycle_sizes(start, end, alpha, budget, samples)
    assert sizes == naive_cycle(start, end, alpha, budget, samples)
    assert sum(sizes) == budget * samples


def test_the_last_epoch_is_cut_to_what_is_left_of_the_budget():
    assert cycle_sizes(0.25, 1, 0.5, 3, 100) == [25, 50, 100, 50, 25, 50]
    assert cycle_sizes(0.25, 1, 0.5, 1, 100) == [25, 50, 25]
    assert cycle_sizes(0.25, 1, 0.5, 2, 37) == [9, 18, 37, 10]


def test_a_share_that_rounds_badly_loses_no_sample():
    assert cycle_sizes(0.29, 0.29, 0.5, 1, 100)[0] == 29  # 0.29 * 100 < 29 in floats


def test_a_ramp_has_as_many_epochs_of_each_share():
    assert increasing_sizes(0.25, 1, 0.5, 7, 100) == [25] * 4 + [50] * 4 + [100] * 4
    assert decreasing_sizes(0.25, 1, 0.5, 7, 100) == [100] * 4 + [50] * 4 + [25] * 4
    assert increasing_sizes(0.3, 1, 0.5, 19, 10) == [3] * 10 + [6] * 10 + [10] * 10


def test_what_does_not_divide_evenly_is_spent_on_the_last_share():
    assert increasing_sizes(0.25, 1, 0.5, 10, 100) == [25] * 6 + [50] * 6 + [100] * 5 + [50]
    assert decreasing_sizes(0.5, 1, 0.5, 1, 11) == [11]
    assert decreasing_sizes(0.5, 1, 0.5, 2, 11) == [11, 11]
    assert decreasing_sizes(0.5, 1, 0.5, 4, 11) == [11, 11, 11, 5, 5, 1]


@pytest.mark.parametrize("samples", [1, 5, 37])
@pytest.mark.parametrize("curriculum", CURRICULA)
def test_every_curriculum_spends_the_budget_and_no_more(curriculum, samples):
    for start, end, alpha in [(0.25, 1, 0.5), (0.01, 0.7, 0.3), (0.4, 0.4, 0.5)]:
        sizes = CURRICULA[curriculum](start, end, alpha, 9, samples)
        assert sum(sizes) == 9 * samples
        assert min(sizes) >= 1
        assert max(sizes) <= max(1, floor(end * samples))
