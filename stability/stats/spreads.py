"""The ratio of two arms' standard deviations across seeds, pooled over cells."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import stdtr, stdtrit

from stability.stats import wording
from stability.stats.comparison import (
    ROUNDING,
    SMALLEST,
    Account,
    Array,
    Comparison,
    Estimate,
    Interval,
    build_comparison,
    check_confidence,
    estimate_mean,
    paired_values,
    untestable,
)
from stability.stats.wording import Names

FEWEST_PAIRS = 4
# Interval bounds are searched up to this log ratio on either side of the estimate.
FARTHEST = 20.0


def spread_ratio(
    a: ArrayLike,
    b: ArrayLike,
    *,
    confidence: float = 0.95,
    names: Names = ("a", "b"),
    measure: str = "value",
) -> Comparison:
    """Return the ratio of standard deviations across seeds, SD(a) / SD(b), for arms that are paired by seed.

    With several cells: the mean over cells of log(SD(a) / SD(b)), its error by a jackknife that leaves out
    one seed in all cells at once. With one cell: the Pitman-Morgan test (equal variances make a + b and
    a - b uncorrelated) with HC4 errors, inverted to an interval over the ratio; Wilcox (2015), "Comparing
    the variances of two dependent variables", J. Stat. Distrib. Appl. 2:7.

    At least 4 pairs are needed. A cell that is constant in both arms carries no information; it is left out,
    and the sentence says so. A cell that is constant in one arm (or except for one seed) has no log ratio;
    the outcome is then "no-spread".

    Args:
        a: Values of the first arm, (seeds,) or (seeds, cells...).
        b: Values of the second arm, same shape.
        confidence: 1 - alpha.
        names: Names of the two arms in the sentence.
        measure: Name of the measure in the sentence.
    """
    check_confidence(confidence)
    left, right = paired_values(a, b)
    used = np.isfinite(left + right).all(axis=1)
    left, right, left_out = left[used], right[used], int((~used).sum())
    n, cells = left.shape
    account = _account(names, measure, cells)
    if n < FEWEST_PAIRS:
        usable = f"{n} usable pair{'s' if n != 1 else ''}"
        problem = f"{usable}, and a ratio of spreads needs at least {FEWEST_PAIRS}"
        return untestable("too-few-pairs", problem, account, confidence, n=n, left_out=left_out)
    flat_a, flat_b = (np.array([_flat(column) for column in arm.T]) for arm in (left, right))
    flat = flat_a & flat_b
    if flat.all() or (flat_a ^ flat_b).any():
        constant_arms = [name for name, side in zip(names, (flat_a, flat_b), strict=True) if (side & ~flat).any()]
        problem = (
            f"{measure} does not vary across seeds for {' and '.join(constant_arms or names)}, or for one seed alone"
        )
        return untestable("no-spread", problem, account, confidence, n=n, left_out=left_out)
    note = f"; {int(flat.sum())} of {cells} cells do not vary in either arm and are left out" if flat.any() else ""
    left, right = left[:, ~flat], right[:, ~flat]
    pseudo = _jackknife(left, right)
    # The pseudo-values amplify rounding errors by n times the distance of the values from 0 in SDs.
    distance = max(float((np.abs(arm).max(axis=0) / np.std(arm, axis=0)).max()) for arm in (left, right))
    estimate = estimate_mean(pseudo, confidence, resolution=n * max(1.0, distance))
    if left.shape[1] == 1 and estimate.outcome == "tested":
        estimate = _pitman_morgan(left[:, 0], right[:, 0], confidence, estimate.sd)
    return build_comparison(estimate, _account(names, measure, left.shape[1]), pseudo, confidence, left_out, note)


def _account(names: Names, measure: str, cells: int) -> Account:
    method, assumptions = "Pitman-Morgan test with HC4 errors", "seeds are independent"
    if cells > 1:
        method = f"jackknife over seeds of the mean log SD ratio of {cells} cells"
        assumptions += "; the ratio is much the same in all cells"
    return Account(method, assumptions, "SD ratio", wording.spread_clause(names, measure), ratio=True)


def _flat(values: Array) -> bool:
    """Return whether a cell is constant, or would be without one seed (its spread then depends on that seed alone)."""
    values = np.sort(values)
    closest = min(values[-2] - values[0], values[-1] - values[1])
    return bool(closest <= max(ROUNDING * np.abs(values).max(), SMALLEST))


def _log_spreads(left: Array, right: Array) -> float:
    return float(np.mean(np.log(np.std(left, axis=0, ddof=1)) - np.log(np.std(right, axis=0, ddof=1))))


def _jackknife(left: Array, right: Array) -> Array:
    """Return the pseudo-values n theta - (n - 1) theta_without_i, shifted so that their mean is theta."""
    n = len(left)
    full = _log_spreads(left, right)
    without = np.array([_log_spreads(np.delete(left, i, axis=0), np.delete(right, i, axis=0)) for i in range(n)])
    return np.asarray(full + (n - 1) * (without.mean() - without))


def _pitman_morgan(a: Array, b: Array, confidence: float, sd: float) -> Estimate:
    spread_a, spread_b = float(np.std(a, ddof=1)), float(np.std(b, ddof=1))
    center, df = math.log(spread_a / spread_b), len(a) - 2
    u, v = (a - a.mean()) / spread_a, (b - b.mean()) / spread_b
    alpha = 1 - confidence
    wide, narrow = _inverted(u, v, [float(stdtrit(df, 1 - tail)) for tail in (alpha / 2, alpha)])
    statistic = float(_hc4_statistic(u, v, np.array([-center]))[0])
    return Estimate(
        center=center,
        interval=(center + wide[0], center + wide[1]),
        equivalence_interval=(center + narrow[0], center + narrow[1]),
        p_value=2 * float(stdtr(df, -abs(statistic))),
        sd=sd,
    )


def _inverted(u: Array, v: Array, criticals: Sequence[float]) -> list[Interval]:
    """Return for each critical value the hull of the log ratios, about the estimate, that the test does not reject."""
    # Dense near the estimate, where the bounds usually are; sparse far out; exactly 0 in the middle.
    grid = FARTHEST * np.linspace(-1, 1, 401) ** 3
    statistics = np.abs(_hc4_statistic(u, v, grid))
    return [_hull(u, v, grid, statistics, critical) for critical in criticals]


def _hull(u: Array, v: Array, grid: Array, statistics: Array, critical: float) -> Interval:
    accepted = np.flatnonzero(statistics <= critical)
    first, last = int(accepted[0]), int(accepted[-1])

    def excess(log_ratio: float) -> float:
        return abs(float(_hc4_statistic(u, v, np.array([log_ratio]))[0])) - critical

    low = -math.inf if first == 0 else float(brentq(excess, grid[first - 1], grid[first]))
    high = math.inf if last == len(grid) - 1 else float(brentq(excess, grid[last], grid[last + 1]))
    return low, high


def _hc4_statistic(u: Array, v: Array, log_ratios: Array) -> Array:
    """Return, for each log ratio r, the t statistic of regressing D on S, D and S = u e^(-r/2) -+ v e^(r/2).

    HC4 divides each squared residual by (1 - h)^min(4, n h / 2); Cribari-Neto (2004), Comput. Stat. Data
    Anal. 45:215.
    """
    half = np.exp(log_ratios[:, None] / 2)
    total, gap = u / half + v * half, u / half - v * half
    square = (total**2).sum(axis=1, keepdims=True)
    slope = (total * gap).sum(axis=1, keepdims=True) / square
    leverage = 1 / u.size + total**2 / square
    # A leverage of 1 has a residual of 0; the bound makes the error large there instead of 0 / 0.
    slack = np.maximum(1 - leverage, 1e-12)
    weights = slack ** -np.minimum(4.0, u.size * leverage / 2)
    variance = (total**2 * (gap - slope * total) ** 2 * weights).sum(axis=1) / square[:, 0] ** 2
    return np.asarray(slope[:, 0] / np.sqrt(np.maximum(variance, 1e-300)))
