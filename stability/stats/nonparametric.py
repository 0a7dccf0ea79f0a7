"""Intervals that assume symmetry about the effect but no distribution: by sign flips and by ranks."""

from __future__ import annotations

import numpy as np

from stability.stats.comparison import UNBOUNDED, Array, Estimate, Interval, check_confidence
from stability.stats.paired import sign_flip

SUBSETS = 9999
"""Number of random subsets for the sign-flip interval if enumerating all of them is too expensive."""

MOST_ENUMERATED = 13


def sign_flip_estimate(per_seed: Array, confidence: float, *, seed: int = 0) -> Estimate:
    """Return the mean of the differences with the interval that inverts its sign-flip test.

    The sorted means of the 2^n - 1 subsets of n differences cut the line into 2^n pieces. Each piece contains the
    center of symmetry with probability 2^-n: Hartigan (1969), JASA 64:1303. Above n = 13, `SUBSETS` random subsets are
    used. The interval is unbounded if even the outermost means give less than *confidence* (n < 6 at 95%).

    >>> sign_flip_estimate(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), 0.95).interval
    (1.0, 6.0)
    """
    check_confidence(confidence)
    means = np.sort(_subset_means(per_seed, seed))
    wide, narrow = (_outer(means, len(means) + 1, alpha) for alpha in _tails(confidence))
    sd = float(np.std(per_seed, ddof=1))
    return Estimate(float(np.mean(per_seed)), wide, narrow, sign_flip(per_seed, seed=seed), sd)


def rank_estimate(per_seed: Array, confidence: float) -> Estimate:
    """Return the Hodges-Lehmann estimate with the interval and p-value of Wilcoxon's signed-rank test, both exact.

    The estimate is the median of the n (n + 1) / 2 averages of two differences (or of one with itself). The interval
    lies between two of these averages: Hollander, Wolfe and Chicken (2014), Nonparametric Statistical Methods, 3.1 to
    3.3. The p-value is at most alpha exactly if the interval excludes 0; averages equal to 0 count for both sides.

    >>> result = rank_estimate(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), 0.95)
    >>> result.center, result.interval, result.p_value
    (3.5, (1.0, 6.0), 0.03125)
    """
    check_confidence(confidence)
    n = len(per_seed)
    rows, columns = np.triu_indices(n)
    averages = np.sort((per_seed[rows] + per_seed[columns]) / 2)
    below = np.cumsum(signed_rank_chances(n))
    least = len(averages) - max(int((averages > 0).sum()), int((averages < 0).sum()))
    wide, narrow = (_cut(averages, int(np.searchsorted(below, tail, side="right"))) for tail in _tails(confidence))
    sd = float(np.std(per_seed, ddof=1))
    return Estimate(float(np.median(averages)), wide, narrow, min(1.0, 2 * float(below[least])), sd)


def signed_rank_chances(n: int) -> Array:
    """Return the null probabilities of W = 0 ... n (n + 1) / 2, the sum of the ranks 1 to n with a positive sign.

    >>> signed_rank_chances(2).tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    chances = np.ones(1)
    for rank in range(1, n + 1):
        longer = np.zeros(len(chances) + rank)
        longer[: len(chances)] += chances / 2
        longer[rank:] += chances / 2
        chances = longer
    return chances


def _tails(confidence: float) -> tuple[float, float]:
    """Return the one-sided error of the interval, and of the equivalence interval at twice the error."""
    # Rounding could lift an attainable level an ulp above alpha and so lose it.
    alpha = (1 - confidence) * (1 + 1e-12)
    return alpha / 2, alpha


def _subset_means(values: Array, seed: int) -> Array:
    n = len(values)
    if n <= MOST_ENUMERATED:
        members = (np.arange(1, 2**n)[:, None] >> np.arange(n)) & 1
    else:
        members = np.random.default_rng(seed).integers(0, 2, (SUBSETS, n))
        members = members[members.any(axis=1)]
    return np.asarray(members @ values / members.sum(axis=1))


def _outer(ordered: Array, pieces: int, tail: float) -> Interval:
    return _cut(ordered, int(tail * pieces))


def _cut(ordered: Array, count: int) -> Interval:
    """Return the *count*-th value from either end; unbounded if *count* is 0."""
    return (float(ordered[count - 1]), float(ordered[-count])) if count else UNBOUNDED
