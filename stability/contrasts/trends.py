"""Contrasts of change along an axis of the grid: slope, interaction and learning rate sensitivity."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from stability.contrasts.registry import contrast
from stability.registry import InputError
from stability.stats import Comparison, paired_difference, slope_difference
from stability.stats.comparison import Array
from stability.stats.wording import Names, of_each

SLOPES = {
    "lower": "has a lower slope over {axis}",
    "higher": "has a higher slope over {axis}",
    "equal": "has the same slope over {axis}",
}
CHANGES = {
    "lower": "rises less from the lowest {axis} to the highest",
    "higher": "rises more from the lowest {axis} to the highest",
    "equal": "rises as much from the lowest {axis} to the highest",
}
DEPENDENCE = {
    "lower": "depends less on {axis}",
    "higher": "depends more on {axis}",
    "equal": "depends as much on {axis}",
}


@contrast(needs=("axis",), reduction="tail_mean", on="transform", mixed="slope", says=SLOPES)
def slope(
    a: Array,
    b: Array,
    *,
    levels: ArrayLike,
    per: str = "",
    confidence: float = 0.95,
    names: Names = ("a", "b"),
    measure: str = "value",
) -> Comparison:
    """Return the difference of least-squares slopes over the levels, in units of the scale per unit of level.

    Each seed gives one slope per arm, the mean over its cells. For a decreasing measure, "higher" means that it
    decreases more slowly. Over batch size, number of pairs or learning rate the slope is per doubling: the
    least-squares slope over the base-2 logarithm.

    Args:
        a: values of the first arm, (seeds, levels, cells).
        b: values of the second arm, same shape.
        levels: values of the axis, (levels,).
        per: unit of the slope in the sentence.
        confidence: 1 - alpha of the interval.
        names: the two arms in the sentence.
        measure: the measure in the sentence.
    """
    return slope_difference(a, b, levels=levels, confidence=confidence, names=names, measure=measure, per=per)


@contrast(needs=("axis",), reduction="tail_mean", on="transform", mixed="change", says=CHANGES)
def interaction(
    a: Array,
    b: Array,
    *,
    levels: ArrayLike,
    confidence: float = 0.95,
    log: bool = False,
    axis: str = "level",
    names: Names = ("a", "b"),
    measure: str = "value",
) -> Comparison:
    """Return how much more a rises than b from the lowest level to the highest: a difference of differences.

    Per seed this is (a_high - a_low) - (b_high - b_low), averaged over cells. Levels in between are not used, so
    no shape is assumed. On a logarithmic scale (*log*) it is a ratio of ratios.

    Args:
        a: values of the first arm, (seeds, levels, cells).
        b: values of the second arm, same shape.
        levels: values of the axis, (levels,).
        confidence: 1 - alpha of the interval.
        log: whether the values are logarithms.
        axis: the axis in the sentence.
        names: the two arms in the sentence.
        measure: the measure in the sentence.
    """
    x = np.asarray(levels, dtype=np.float64)
    if x.ndim != 1 or not np.isfinite(x).all() or len(x) == 0 or np.ptp(x) == 0:
        raise InputError(f"levels {x.tolist()}; allowed: finite numbers, at least two of them different")
    if np.ndim(a) < 2 or np.shape(a)[1] != len(x) or np.shape(a) != np.shape(b):
        raise InputError(
            f"arms of shapes {np.shape(a)} and {np.shape(b)} for {len(x)} levels; "
            "allowed: equal shapes, one level for each entry of axis 1"
        )
    low, high = int(np.argmin(x)), int(np.argmax(x))
    changes = [_change(arm, low, high) for arm in (a, b)]
    quantity = "growth factor" if log else "change"
    names, words = of_each(f"{quantity} of {{}} from the lowest to the highest {axis}", names, measure)
    return paired_difference(*changes, confidence=confidence, log=log, names=names, measure=words)


@contrast(needs=("axis",), reduction="tail_mean", on="transform", says=DEPENDENCE)
def lr_sensitivity(
    a: Array,
    b: Array,
    *,
    better: str = "higher",
    confidence: float = 0.95,
    axis: str = "level",
    names: Names = ("a", "b"),
    measure: str = "value",
) -> Comparison:
    """Return the difference between arms of the mean gap to the best level: best level minus mean over levels.

    Per seed and cell it is the best level minus the mean over levels on the measure's scale, which is never negative;
    the means over cells are paired. Over the learning rate this is the sensitivity of Wortsman et al. (2023),
    arXiv:2309.14322, Sec. 2.3, E[min(loss, loss at start)] - min loss. Retrieval replaces the loss, since losses differ
    in scale, and a diverged run is at chance. The value depends on the levels, and is 0 for an arm that learns nothing
    at any level: center the levels on each arm's tuned rate (``grid.lr_multipliers``), and show the curves with it.

    Raises:
        InputError: The measure has no better direction.

    Args:
        a: values of the first arm, (seeds, levels, cells).
        b: values of the second arm, same shape.
        better: the better direction of the measure, higher or lower.
        confidence: 1 - alpha of the interval.
        axis: the axis in the sentence.
        names: the two arms in the sentence.
        measure: the measure in the sentence.
    """
    if better not in ("higher", "lower"):
        raise InputError(f"{measure}: has no better direction; allowed: a measure that has one")
    if np.ndim(a) < 2 or np.shape(a) != np.shape(b):
        raise InputError(
            f"arms of shapes {np.shape(a)} and {np.shape(b)}; allowed: equal shapes with an axis of levels"
        )
    gaps = [_gap_to_best(arm, 1.0 if better == "higher" else -1.0) for arm in (a, b)]
    names, words = of_each(f"gap of {{}} between the best {axis} and the mean of all", names, measure)
    return paired_difference(*gaps, confidence=confidence, names=names, measure=words)


def _gap_to_best(arm: ArrayLike, sign: float) -> Array:
    """Return best - mean over the levels (axis 1), NaN if a level has no value."""
    values = sign * np.asarray(arm, dtype=np.float64)
    values = np.where(np.isfinite(values), values, np.nan)
    return np.asarray(values.max(axis=1) - values.mean(axis=1))


def _change(arm: ArrayLike, low: int, high: int) -> Array:
    values = np.asarray(arm, dtype=np.float64)
    values = np.where(np.isfinite(values), values, np.nan)
    return np.asarray(values[:, high] - values[:, low])
