"""Paired comparisons of one number per run, with a t interval over the seeds' differences."""

from __future__ import annotations

import dataclasses
import math
import warnings

import numpy as np
from numpy.typing import ArrayLike

from stability.registry import InputError
from stability.stats import wording
from stability.stats.comparison import (
    Account,
    Array,
    Comparison,
    check_confidence,
    compare_seeds,
    margin_region,
    paired_values,
    size_of,
    untestable,
)
from stability.stats.wording import Names

INDEPENDENT = "seeds are independent; the mean of their differences is near normal"


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    *,
    confidence: float = 0.95,
    log: bool = False,
    names: Names = ("a", "b"),
    measure: str = "value",
) -> Comparison:
    """Return the mean difference a - b over seeds with its paired t interval.

    Cells are averaged first, so n counts seeds.

    Args:
        a: Values of the first arm, (seeds,) or (seeds, cells...), aligned by seed with *b*.
        b: Values of the second arm, same shape.
        confidence: 1 - alpha.
        log: The values are logarithms; the effect is reported as the ratio exp(mean difference).
        names: Names of the two arms in the sentence.
        measure: Name of the measure in the sentence.

    >>> result = paired_difference([3, 5, 5, 5], [2, 3, 3, 2], names=("siglip", "clip"), measure="margin")
    >>> result.sentence
    "siglip's margin is 2 higher than clip's (difference 2, 95% CI 0.701 to 3.3, n = 4 seeds)."
    """
    left, right = paired_values(a, b)
    clause = wording.ratio_clause(names, measure) if log else wording.difference_clause(names, measure)
    quantity = "ratio" if log else "difference"
    account = Account("paired t over seeds", INDEPENDENT, quantity, clause, ratio=log)
    # A log is exact up to the rounding error of 1, however close to 0 it is.
    resolution = max(size_of(left, right), 1.0 if log else 0.0)
    return compare_seeds((left - right).mean(axis=1), account, confidence, resolution)


def log_ratio(
    a: ArrayLike,
    b: ArrayLike,
    *,
    confidence: float = 0.95,
    names: Names = ("a", "b"),
    measure: str = "value",
) -> Comparison:
    """Return the ratio a / b of a positive quantity: mean log ratio over seeds with its paired t interval.

    A value at or below 0 has no logarithm, and dropping its seed would bias the ratio, so the outcome is then
    "not-positive".

    Args:
        a: Values of the first arm, (seeds,) or (seeds, cells...), raw and positive.
        b: Values of the second arm, same shape.
        confidence: 1 - alpha.
        names: Names of the two arms in the sentence.
        measure: Name of the measure in the sentence.
    """
    left, right = paired_values(a, b)
    bad = int(np.any((left <= 0) | (right <= 0), axis=1).sum())
    if bad:
        check_confidence(confidence)
        account = Account(
            "paired t over seeds' log ratios", INDEPENDENT, "ratio", wording.ratio_clause(names, measure), True
        )
        problem = f"{bad} of {wording.seeds(len(left))} with a value at or below 0, which has no log ratio"
        return untestable("not-positive", problem, account, confidence, n=len(left) - bad)
    result = paired_difference(
        np.log(left), np.log(right), confidence=confidence, log=True, names=names, measure=measure
    )
    if result.outcome == "constant":
        return result
    return dataclasses.replace(result, method="paired t over seeds' log ratios")


def slope_difference(
    a: ArrayLike,
    b: ArrayLike,
    *,
    levels: ArrayLike,
    confidence: float = 0.95,
    names: Names = ("a", "b"),
    measure: str = "value",
    per: str = "",
) -> Comparison:
    """Return the difference of slopes over *levels*: a least-squares slope per seed, then paired t.

    The effect is in units of the measure per unit of level.

    Args:
        a: Values of the first arm, (seeds, levels) or (seeds, levels, cells...); cells are averaged.
        b: Values of the second arm, same shape.
        levels: Values of the axis, (levels,).
        confidence: 1 - alpha.
        names: Names of the two arms in the sentence.
        measure: Name of the measure in the sentence.
        per: Unit of level in the sentence.

    Raises:
        InputError: *levels* are not finite, do not match axis 1 or have fewer than two different values.
    """
    x = np.asarray(levels, dtype=np.float64)
    shape = np.shape(a)
    if x.ndim != 1 or len(shape) < 2 or shape[1] != len(x):
        raise InputError(f"levels of shape {x.shape} for arms of shape {shape}; allowed: one for each entry of axis 1")
    if not np.isfinite(x).all() or np.ptp(x) == 0:
        raise InputError(f"levels {x.tolist()}; allowed: finite numbers, at least two of them different")
    left, right = (_mean_over_cells(values, len(x)) for values in paired_values(a, b))
    centered = x - x.mean()
    weights = centered / (centered @ centered)
    account = Account(
        "paired t over seeds' slopes",
        INDEPENDENT + "; a straight line sums up each run",
        "difference of slopes",
        wording.difference_clause(*wording.of_each("slope of {}" + per, names, measure)),
        ratio=False,
    )
    resolution = size_of(left, right) * float(np.abs(weights).sum())
    return compare_seeds((left - right) @ weights, account, confidence, resolution)


def time_ratio(
    a: ArrayLike,
    b: ArrayLike,
    *,
    budget: float,
    confidence: float = 0.95,
    names: Names = ("a", "b"),
    measure: str = "the threshold",
) -> Comparison:
    """Return the ratio a / b of times to an event: paired t over seeds of log(min(T, budget)).

    Args:
        a: Positive times of the first arm, (seeds,) or (seeds, cells...). Infinity or a time above the budget means
            that the event did not happen; it counts as the budget, which biases the ratio toward 1. NaN is missing.
        b: Times of the second arm, same shape.
        budget: Largest observable time.
        confidence: 1 - alpha.
        names: Names of the two arms in the sentence.
        measure: Name of the event in the sentence.
    """
    check_confidence(confidence)
    if not (0 < budget < math.inf):
        raise InputError(f"budget {budget!r}; allowed: a finite number above 0")
    times = [np.asarray(values, dtype=np.float64) for values in (a, b)]
    left, right = paired_values(*(np.minimum(t, budget) for t in times))
    clause = wording.time_clause(names, measure)
    assumptions = INDEPENDENT + "; a run that never got there counts as one that took the whole budget"
    account = Account("paired t over seeds' log censored times", assumptions, "ratio of steps", clause, ratio=True)
    at_zero = int(np.any((left <= 0) | (right <= 0), axis=1).sum())
    if at_zero:
        problem = f"{at_zero} of {wording.seeds(len(left))} reached {measure} at time 0, before anything happened"
        return untestable("not-positive", problem, account, confidence, n=len(left) - at_zero)
    used = np.isfinite(left + right).all(axis=1)
    if used.any() and (left[used] >= budget).all() and (right[used] >= budget).all():
        limit = wording.number(budget)
        problem = f"neither {names[0]} nor {names[1]} reached {measure} within the budget of {limit}"
        return untestable("all-censored", problem, account, confidence, per_seed=np.zeros(int(used.sum())))
    per_seed = (np.log(left) - np.log(right)).mean(axis=1)
    result = compare_seeds(per_seed, account, confidence, max(1.0, abs(math.log(budget))))
    n_censored = [int((side[used] >= budget).sum()) for side in (left, right)]
    if not result.testable or not any(n_censored):
        return result
    runs = left[used].size
    censored = (
        f"; {names[0]} never got there in {n_censored[0]} of {runs} runs and {names[1]} in {n_censored[1]} of {runs}."
    )
    return dataclasses.replace(result, sentence=result.sentence.removesuffix(".") + censored)


def equivalence(
    a: ArrayLike,
    b: ArrayLike,
    *,
    margin: float,
    confidence: float = 0.95,
    log: bool = False,
    names: Names = ("a", "b"),
    measure: str = "value",
) -> Comparison:
    """Return the paired difference with the p-value of two one-sided tests (TOST): small if equivalent.

    The null hypothesis is a difference of at least *margin*: outside [-m, m], or with *log* (values are
    logarithms) a ratio outside [1 / (1 + m), 1 + m]. Arms are equivalent at alpha = 1 - confidence if
    `equivalence_interval` lies inside. Schuirmann (1987), J. Pharmacokinet. Biopharm. 15:657.

    Args:
        a: Values of the first arm, (seeds,) or (seeds, cells...).
        b: Values of the second arm, same shape.
        margin: Smallest effect that matters, above 0; a relative one with *log*.
        confidence: 1 - alpha.
        log: Whether the values are logarithms, so that the effect is a ratio.
        names: Names of the two arms in the sentence.
        measure: Name of the measure in the sentence.
    """
    low, high = margin_region(margin, ratio=log)
    result = paired_difference(a, b, confidence=confidence, log=log, names=names, measure=measure)
    if not result.testable:
        return result
    inside = low < result.effect < high
    if result.outcome == "constant":
        p_value = 2.0**-result.n if inside else 1.0
    else:
        bounds = (math.log(low), math.log(high)) if log else (low, high)
        p_value = _tost(np.array(result.per_seed), *bounds)
    return dataclasses.replace(result, p_value=p_value, method="two one-sided paired t tests (TOST)")


def sign_flip(per_seed: ArrayLike, *, resamples: int = 9999, seed: int = 0) -> float:
    """Return the two-sided p-value of the sign-flip test of the mean difference.

    *per_seed* are the differences, one per seed (`Comparison.per_seed`). Exact if 2^n <= *resamples* (n <= 13), else
    from random sign flips. The test assumes differences symmetric about 0 instead of a normal mean, and cannot reach
    .05 below n = 6. NaN with fewer than 2 differences.

    >>> sign_flip([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    0.03125
    """
    # scipy.stats takes half a second to import, and only this function needs it.
    from scipy.stats import permutation_test

    differences = np.asarray(per_seed, dtype=np.float64)
    differences = differences[np.isfinite(differences)]
    if len(differences) < 2:
        return math.nan
    result = permutation_test(
        (differences,),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def _mean_over_cells(values: Array, levels: int) -> Array:
    return np.asarray(values.reshape(len(values), levels, values.shape[1] // levels).mean(axis=2))


def _tost(per_seed: Array, low: float, high: float) -> float:
    # Importing statsmodels changes the warning filters of the whole process; this restores them.
    with warnings.catch_warnings():
        from statsmodels.stats.weightstats import DescrStatsW
    return float(DescrStatsW(per_seed).ttost_mean(low, high)[0])
