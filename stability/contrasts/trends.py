"""Does one arm change more, or faster, along an axis of the grid?"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from stability.contrasts import contrast
from stability.registry import InputError
from stability.stats import Comparison, paired_difference, slope_difference
from stability.stats.comparison import Array
from stability.stats.wording import Names


@contrast(needs=("over",), reduction="late", on="scale", ratio=False, mixed="slope")
def slope(
    a: Array,
    b: Array,
    *,
    levels: ArrayLike,
    confidence: float = 0.95,
    names: Names = ("a", "b"),
    measure: str = "value",
) -> Comparison:
    """Return the difference of least-squares slopes over the levels, in units of the scale per unit of level.

    Each seed gives one slope an arm, the mean over its cells. For a measure that falls, "higher" means
    that it falls more slowly.
    """
    return slope_difference(a, b, levels=levels, confidence=confidence, names=names, measure=measure)


@contrast(needs=("over",), reduction="late", on="scale", ratio=False, mixed="change")
def interaction(
    a: Array,
    b: Array,
    *,
    levels: ArrayLike,
    confidence: float = 0.95,
    log: bool = False,
    names: Names = ("a", "b"),
    measure: str = "value",
) -> Comparison:
    """Return how much more a rises than b from the lowest level to the highest: a difference of differences.

    Per seed (a_high - a_low) - (b_high - b_low), the mean over cells; the levels between are not used, so
    nothing is assumed of the shape in between. On a logarithmic scale (*log*) it is a ratio of ratios.
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
    change = f"change of {measure} from the lowest to the highest level"
    return paired_difference(*changes, confidence=confidence, log=log, names=names, measure=change)


def _change(arm: ArrayLike, low: int, high: int) -> Array:
    values = np.asarray(arm, dtype=np.float64)
    values = np.where(np.isfinite(values), values, np.nan)
    return np.asarray(values[:, high] - values[:, low])
