"""Intervals, paired tests and ranks, against SciPy, by hand, and against Demšar's own numbers."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from clplat.report.configurations import Configuration
from clplat.report.costs import pareto_front
from clplat.report.find import Run
from clplat.report.ranks import Ranks, critical_difference, rank, ranks_told
from clplat.report.statistics import critical_t, holm, paired_test, summary

VALUES = st.lists(st.floats(-100, 100), min_size=2, max_size=7)


@given(VALUES)
def test_the_interval_is_students(values):
    found = summary(values)
    assert found is not None
    assert found.half is not None
    deviation = np.std(values, ddof=1)
    assert found.deviation == pytest.approx(deviation, abs=1e-12)
    if deviation > 1e-9:
        low, high = stats.t.interval(
            0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values)
        )
        assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))


def test_one_value_has_no_interval_and_none_has_nothing():
    found = summary([0.5])
    assert found is not None
    assert (found.n, found.mean, found.deviation, found.half) == (1, 0.5, None, None)
    assert summary([]) is None
    assert critical_t(3) == pytest.approx(4.303, abs=1e-3)  # as printed in tables


def test_the_paired_test_is_scipys_on_the_seeds_of_both():
    ours = dict(enumerate((0.91, 0.84, 0.88, 0.93, 0.5)))
    theirs = {7: 0.1, 3: 0.85, 2: 0.86, 1: 0.8, 0: 0.9}
    found = paired_test(ours, theirs)
    expected = stats.ttest_rel([0.91, 0.84, 0.88, 0.93], [0.9, 0.8, 0.86, 0.85])
    assert found.pairs == 4
    assert found.difference == pytest.approx(np.mean([0.01, 0.04, 0.02, 0.08]))
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)


@pytest.mark.parametrize(
    ("ours", "theirs", "pairs", "difference", "reason"),
    [
        ({1: 0.5}, {2: 0.5}, 0, None, "no seed in common with the baseline"),
        ({1: 0.5}, {1: 0.4}, 1, 0.1, "one pair alone tells nothing of the spread"),
        (
            {1: 0.5, 2: 0.7, 3: 0.3},
            {1: 0.5, 2: 0.7, 3: 0.3},
            3,
            0.0,
            "the difference is the same in all 3 pairs: t is undefined",
        ),
        (
            {1: 0.3, 2: 0.7},
            {1: 0.2, 2: 0.6},  # 0.1 but for rounding
            2,
            0.1,
            "the difference is the same in all 2 pairs: t is undefined",
        ),
        (
            {1: 0.0, 2: 0.0},
            {1: 0.0, 2: 0.0},
            2,
            0.0,
            "the difference is the same in all 2 pairs: t is undefined",
        ),
    ],
)
def test_what_cannot_be_tested_says_why_and_warns_of_nothing(
    ours, theirs, pairs, difference, reason
):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = paired_test(ours, theirs)
    assert (found.pairs, found.p, found.corrected, found.reason) == (pairs, None, None, reason)
    assert found.difference == (None if difference is None else pytest.approx(difference))


def test_holms_correction_by_hand():
    # Sorted 0.005 0.01 0.03 0.04, times 4 3 2 1: 0.02 0.03 0.06 0.04, and never falling.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_corrects_upwards_no_more_than_bonferroni_and_keeps_the_order(p):
    corrected = holm(p)
    for a, b in zip(p, corrected, strict=True):
        assert a <= b <= min(1, a * len(p)) + 1e-12
    assert [corrected[k] for k in np.argsort(p, kind="stable")] == sorted(corrected)


def configurations(values: dict[str, dict[int, float]], scenario="s", key="accuracy"):
    """By name the value of each seed."""
    return [
        Configuration(
            name,
            scenario,
            name,
            tuple(
                Run(Path(name), {key: v, "seeds": {"seed": seed}}) for seed, v in by_seed.items()
            ),
        )
        for name, by_seed in values.items()
    ]


def test_the_critical_difference_is_the_one_of_demsars_paper():
    # Demšar 2006, section 3.2.2: four classifiers on 14 data sets, and q of table 5(a).
    assert critical_difference(4, 14) == pytest.approx(2.569 * np.sqrt(4 * 5 / (6 * 14)), abs=1e-3)
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=5e-3)
    assert critical_difference(10, 6) == pytest.approx(3.164 * np.sqrt(10 * 11 / 36), abs=1e-2)


def test_ranks_are_over_blocks_of_scenario_and_seed():
    table = {"a": [0.9, 0.8, 0.9], "b": [0.5, 0.8, 0.7], "c": [0.1, 0.2, 0.8]}
    first = configurations({name: dict(enumerate(v[:2])) for name, v in table.items()}, "s")
    second = configurations({name: {0: v[2]} for name, v in table.items()}, "t")
    found = rank([*first, *second], "accuracy")
    assert isinstance(found, Ranks)
    assert found.blocks == 3
    assert dict(zip(found.names, found.means, strict=True)) == pytest.approx(
        {"a": (1 + 1.5 + 1) / 3, "b": (2 + 1.5 + 3) / 3, "c": (3 + 3 + 2) / 3}
    )
    assert found.p == pytest.approx(stats.friedmanchisquare(*table.values()).pvalue)
    assert found.names[0] == "a"
    lower = rank(
        configurations({n: dict(enumerate(v)) for n, v in table.items()}, key="forgetting"),
        "forgetting",
    )
    assert isinstance(lower, Ranks)
    assert lower.names[0] == "c"


def test_those_without_common_blocks_are_left_out_and_named():
    some = {name: {0: 0.1 * k, 1: 0.2 * k} for k, name in enumerate("abc")}
    found = rank(configurations({**some, "d": {7: 0.5}}), "accuracy")
    assert isinstance(found, Ranks)
    assert (sorted(found.names), found.left_out, found.blocks) == (["a", "b", "c"], ["d"], 2)
    assert ranks_told(found, "accuracy").endswith("; not ranked, for want of common blocks: d")


@pytest.mark.parametrize("odd", [["joint"], ["joint", "stock"]])
def test_those_that_share_blocks_are_ranked_however_many_blocks_others_have(odd):
    some = {name: {s: 0.1 * k + s for s in range(5)} for k, name in enumerate(["f", "r", "e"])}
    others = {name: dict.fromkeys(range(10, 20), 0.5) for name in odd}
    found = rank(configurations({**others, **some}), "accuracy")
    assert isinstance(found, Ranks)
    assert (sorted(found.names), sorted(found.left_out)) == (["e", "f", "r"], odd)
    assert found.blocks == 5


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"a": {0: 1, 1: 2}, "b": {0: 1, 1: 3}}, "it takes at least three configurations that"),
        ({name: {0: k} for k, name in enumerate("abc")}, "share two blocks (scenario and seeds)"),
        ({name: {k: 1, k + 5: 2} for k, name in enumerate("abc")}, "at least three"),
        ({name: {0: 1, 1: 2} for name in "abc"}, "have the same accuracy in every block"),
        ({str(k): {0: k, 1: k} for k in range(31)}, "31 configurations; there is room for 30"),
    ],
)
def test_where_there_are_no_ranks_it_is_said_why(values, reason):
    found = rank(configurations(values), "accuracy")
    assert isinstance(found, str)
    assert reason in found
    assert ranks_told(found, "accuracy").startswith("no critical-difference diagram: ")


def test_bars_join_the_largest_sets_that_do_not_differ():
    def groups(means, critical):
        return Ranks(list("abcdef")[: len(means)], means, 5, 0.01, critical, []).groups()

    assert groups([1.0, 1.5, 3.0, 3.4], 0.6) == [(1.0, 1.5), (3.0, 3.4)]
    assert groups([1.0, 2.0, 3.0, 4.0], 2.0) == [(1.0, 3.0), (2.0, 4.0)]
    assert groups([1.0, 2.0, 3.0], 0.5) == []
    assert groups([1.0, 2.0, 3.0], 2.0) == [(1.0, 3.0)]


def test_the_pareto_front_has_what_nothing_beats():
    points = [(3.0, 1.0), (1.0, 3.0), (2.0, 2.0), (2.0, 4.0), (3.0, 3.0), (1.0, 3.0)]
    assert pareto_front(points) == [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)]
