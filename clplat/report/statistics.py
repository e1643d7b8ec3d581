"""Means with intervals over seeds, and paired tests."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

LEVEL = 0.95


@dataclass(frozen=True)
class Summary:
    """Of values over seeds. A single one has no deviation and no interval."""

    n: int
    mean: float
    deviation: float | None = None  # of the sample
    half: float | None = None  # of the width of the 95 % interval of the mean


def summary(values: Sequence[float]) -> Summary | None:
    """Mean, sample deviation and Student's t interval of the mean; None of no values."""
    n = len(values)
    if n == 0:
        return None
    mean = float(np.mean(values))
    if n == 1:
        return Summary(1, mean)
    deviation = float(np.std(values, ddof=1))
    return Summary(n, mean, deviation, critical_t(n) * deviation / n**0.5)


def critical_t(n: int) -> float:
    """How many standard errors half a 95 % interval of n values has."""
    return float(stdtrit(n - 1, (1 + LEVEL) / 2))


@dataclass(frozen=True)
class Test:
    """A configuration against the baseline, on the seeds of both.

    `difference` is the mean of ours less theirs; `p` is two-sided, `corrected` by Holm for all
    that were tested; `reason` says why there is none.
    """

    pairs: int
    difference: float | None = None
    p: float | None = None
    corrected: float | None = None
    reason: str = ""


def paired_test(ours: Mapping[Hashable, float], baseline: Mapping[Hashable, float]) -> Test:
    """The paired t-test of two sets of values by seed."""
    common = [seed for seed in ours if seed in baseline]
    n = len(common)
    if n == 0:
        return Test(0, reason="no seed in common with the baseline")
    pairs = np.array([(ours[seed], baseline[seed]) for seed in common])
    differences = pairs[:, 0] - pairs[:, 1]
    mean = float(differences.mean())
    if n == 1:
        return Test(1, mean, reason="one pair alone tells nothing of the spread")
    # Where all differences are equal but for rounding, t has a zero below.
    if np.ptp(differences) <= 1e-12 * np.abs(pairs).max():
        return Test(n, mean, reason=f"the difference is the same in all {n} pairs: t is undefined")
    t = mean / (differences.std(ddof=1) / n**0.5)
    return Test(n, mean, p=float(2 * stdtr(n - 1, -abs(t))))


def holm(p: Sequence[float]) -> list[float]:
    """P-values, in their order, corrected for being several (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    stepped = np.asarray(p, dtype=float)[order] * np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return corrected.tolist()
