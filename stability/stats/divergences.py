"""Difference of divergence rates: paired binary outcomes, in one cell or several cells per seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import bdtr, betaincinv, ndtri

from stability.registry import InputError
from stability.stats.comparison import (
    Account,
    Array,
    Comparison,
    Estimate,
    Interval,
    build_comparison,
    check_confidence,
    paired_values,
    student_estimate,
    untestable,
)
from stability.stats.wording import Clause, Names


def divergence_difference(
    a: ArrayLike,
    b: ArrayLike,
    *,
    confidence: float = 0.95,
    names: Names = ("a", "b"),
    measure: str = "diverged",
) -> Comparison:
    """Return the difference a - b of the shares of diverged runs, for arms paired by seed.

    One cell: McNemar's exact test; the interval is the hull of Tango's score interval (1998, Stat. Med.
    17:891) and the exact conditional one (the Clopper-Pearson interval of the share of discordant pairs,
    times the rate of discordance), so that interval and exact test never disagree.

    Several cells: each seed gives its share of diverged cells, and a t interval is computed over the seeds'
    differences. Their standard deviation includes two pseudo-seeds of opposite sign. Their size is a typical
    difference, but at least one cell, so that outcomes that hardly vary do not appear certain; Bonett and
    Price (2012), J. Educ. Behav. Stat. 37:479, add the same two observations to a single cell.

    If no run of either arm diverged, nothing is tested: the interval would follow from the pseudo-seeds and the number
    of cells alone, so that adding cells in which nothing can happen would make any two arms equivalent.

    Args:
        a: Whether each run of the first arm diverged: booleans (or 0, 1 and NaN for unknown), (seeds,) or
            (seeds, cells...).
        b: The same for the second arm.
        confidence: 1 - alpha.
        names: Names of the two arms in the sentence.
        measure: Verb of the sentence, in the past tense.
    """
    check_confidence(confidence)
    left, right = paired_values(a, b)
    finite_values = [side[np.isfinite(side)] for side in (left, right)]
    if not all(np.isin(values, (0.0, 1.0)).all() for values in finite_values):
        raise InputError("outcomes that are not yes or no; allowed: booleans, or 0, 1 and NaN")
    used = np.isfinite(left + right).all(axis=1)
    left_out = int((~used).sum())
    left, right = left[used], right[used]
    n, cells = left.shape
    clause = _clause(names, measure, int(left.sum()), int(right.sum()), left.size)
    method = "exact McNemar test" if cells == 1 else f"paired t over seeds' shares of {cells} cells"
    account = Account(method, "seeds are independent", "difference of shares", clause, ratio=False)
    per_seed = left.mean(axis=1) - right.mean(axis=1) if n else np.empty(0)
    if n < 2:
        problem = f"{n} usable pair{'s' if n != 1 else ''}, and a test needs at least 2"
        return untestable("too-few-pairs", problem, account, confidence, per_seed=per_seed, left_out=left_out)
    if not (left.any() or right.any()):
        problem = nothing_happened(names, measure, 2 * left.size)
        return untestable("nothing-happened", problem, account, confidence, per_seed=per_seed, left_out=left_out)
    t_estimate = _shares(per_seed, cells, confidence)
    estimate = _mcnemar(left[:, 0], right[:, 0], confidence, t_estimate.sd) if cells == 1 else t_estimate
    return build_comparison(estimate, account, per_seed, confidence, left_out)


def nothing_happened(names: Names, event: str, runs: int) -> str:
    """Return in words that none of the *runs* of both arms had an event, so that its rates cannot be compared.

    >>> nothing_happened(("siglip", "clip"), "diverged", 20)
    'nothing happened: neither siglip nor clip diverged in any of their 20 runs'
    """
    return f"nothing happened: neither {names[0]} nor {names[1]} {event} in any of their {runs} runs"


def _clause(names: Names, measure: str, count_a: int, count_b: int, runs: int) -> Clause:
    return lambda _: f"{names[0]} {measure} in {count_a} of {runs} runs and {names[1]} in {count_b} of {runs}"


def _shares(per_seed: Array, cells: int, confidence: float) -> Estimate:
    n = len(per_seed)
    typical = max(1 / cells, float(np.sqrt(np.mean(per_seed**2))))
    center, sd = float(per_seed.mean()), float(np.std([*per_seed, typical, -typical], ddof=1))
    estimate = student_estimate(center, sd / math.sqrt(n), sd, n - 1, confidence)
    (low, high), (narrow_low, narrow_high) = estimate.interval, estimate.equivalence_interval
    interval, equivalence_interval = (max(-1.0, low), min(1.0, high)), (max(-1.0, narrow_low), min(1.0, narrow_high))
    return replace(estimate, interval=interval, equivalence_interval=equivalence_interval)


def _mcnemar(a: Array, b: Array, confidence: float, sd: float) -> Estimate:
    n, alpha = len(a), 1 - confidence
    only_a, only_b = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    tail = float(bdtr(min(only_a, only_b), only_a + only_b, 0.5))

    def hull(one_sided: float) -> Interval:
        score, exact = _tango(only_a, only_b, n, one_sided), _conditional(only_a, only_b, n, one_sided)
        return min(score[0], exact[0]), max(score[1], exact[1])

    return Estimate((only_a - only_b) / n, hull(alpha / 2), hull(alpha), min(1.0, 2 * tail), sd)


def _conditional(only_a: int, only_b: int, n: int, one_sided: float) -> Interval:
    """Return (2 theta - 1) m / n at the Clopper-Pearson bounds of theta, a's share of m discordant pairs."""
    discordant = only_a + only_b
    low = 0.0 if only_a == 0 else float(betaincinv(only_a, only_b + 1, one_sided))
    high = 1.0 if only_b == 0 else float(betaincinv(only_a + 1, only_b, 1 - one_sided))
    return (2 * low - 1) * discordant / n, (2 * high - 1) * discordant / n


def _tango(only_a: int, only_b: int, n: int, one_sided: float) -> Interval:
    """Return Tango's score interval: the differences whose restricted score statistic lies within +-z."""
    z, estimate = -float(ndtri(one_sided)), (only_a - only_b) / n

    def beyond(bound: float) -> Callable[[float], float]:
        return lambda difference: _score(only_a, only_b, n, difference) - bound

    # The statistic falls from +infinity at -1 to -infinity at 1; at -1 and at 1 it is 0 / 0.
    edge = 1 - 1e-12
    low = -1.0 if estimate <= -edge else float(brentq(beyond(z), -edge, estimate))
    high = 1.0 if estimate >= edge else float(brentq(beyond(-z), estimate, edge))
    return low, high


def _score(only_a: int, only_b: int, n: int, difference: float) -> float:
    """Return (b - c - n d) / sqrt(n (2 q + d (1 - d))), q the maximum likelihood share of b-only pairs given d."""
    linear = (2 * n - only_a + only_b) * difference - only_a - only_b
    constant = -only_b * difference * (1 - difference)
    q = (math.sqrt(max(0.0, linear**2 - 8 * n * constant)) - linear) / (4 * n)
    variance = n * (2 * q + difference * (1 - difference))
    gap = only_a - only_b - n * difference
    return gap / math.sqrt(max(variance, 1e-300)) if gap else 0.0
