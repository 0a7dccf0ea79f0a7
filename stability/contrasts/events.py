"""Contrasts of what happened to runs: divergence, collapse, and the learning rate from which on runs collapse.

They do not read the claim's measure, which is the loss by convention.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from stability import stats
from stability.contrasts.registry import contrast
from stability.stats import Comparison
from stability.stats.comparison import Array
from stability.stats.wording import Names

OFTEN = {"lower": "diverges less often", "higher": "diverges more often", "equal": "diverges as often"}
COLLAPSING = {"lower": "collapses less often", "higher": "collapses more often", "equal": "collapses as often"}
FROM_RATE = {
    "lower": "collapses from a lower {axis} on",
    "higher": "collapses from a higher {axis} on",
    "equal": "collapses from the same {axis} on",
}


@contrast(reduction="none", on="diverged", says=OFTEN)
def divergence(a: Array, b: Array, *, confidence: float = 0.95, names: Names = ("a", "b")) -> Comparison:
    """Return the difference of the shares of runs that diverged; *a* and *b* are booleans (or 0 and 1).

    Runs that end just below chance are missed: prefer `collapse`, or `critical_rate` over a grid of rates.

    Args:
        a: whether each run of the first arm diverged, (seeds, levels, cells).
        b: values of the second arm, same shape.
        confidence: 1 - alpha of the interval.
        names: the two arms in the sentence.
    """
    return stats.divergence_difference(a, b, confidence=confidence, names=names)


@contrast(reduction="none", on="collapsed", says=COLLAPSING)
def collapse(a: Array, b: Array, *, confidence: float = 0.95, names: Names = ("a", "b")) -> Comparison:
    """Return the difference of the shares of runs that collapsed; *a* and *b* are booleans (or 0 and 1).

    Args:
        a: whether each run of the first arm collapsed, (seeds, levels, cells).
        b: values of the second arm, same shape.
        confidence: 1 - alpha of the interval.
        names: the two arms in the sentence.
    """
    return stats.divergence_difference(a, b, confidence=confidence, names=names, measure="collapsed")


@contrast(needs=("axis",), axes=("lr",), least_levels=3, reduction="none", on="collapsed", ratio=True, says=FROM_RATE)
def critical_rate(
    a: Array, b: Array, *, levels: ArrayLike, confidence: float = 0.95, names: Names = ("a", "b")
) -> Comparison:
    """Return the ratio of the learning rates from which on runs collapse: one per seed and cell, on a grid of rates.

    Args:
        a: whether each run of the first arm collapsed, (seeds, levels, cells).
        b: values of the second arm, same shape.
        levels: base-2 logarithms of the rates, (levels,).
        confidence: 1 - alpha of the interval.
        names: the two arms in the sentence.
    """
    rates = np.exp2(np.asarray(levels, dtype=np.float64))
    return stats.critical_rate_ratio(a, b, rates=rates, confidence=confidence, names=names)
