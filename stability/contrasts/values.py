"""Contrasts of one number per run: difference, ratio, spread and time to a threshold.

The names, options and defaults are those of the claims; the computations are those of `stability.stats`.
"""

from __future__ import annotations

from stability import stats
from stability.contrasts.registry import contrast
from stability.stats import Comparison
from stability.stats.comparison import Array
from stability.stats.wording import Names

LEVELS = {"lower": "is lower", "higher": "is higher", "equal": "is the same"}
VARYING = {
    "lower": "varies less from seed to seed",
    "higher": "varies more from seed to seed",
    "equal": "varies as much from seed to seed",
}
SOON = {
    "lower": "reaches {threshold} sooner",
    "higher": "reaches {threshold} later",
    "equal": "reaches {threshold} as soon",
}


@contrast(reduction="tail_mean", on="transform", mixed="level", says=LEVELS)
def difference(
    a: Array,
    b: Array,
    *,
    confidence: float = 0.95,
    log: bool = False,
    names: Names = ("a", "b"),
    measure: str = "value",
) -> Comparison:
    """Return the difference of levels on the measure's scale, averaged over all cells of a seed, then paired.

    On a logarithmic scale (*log*) it is shown as a ratio of levels.

    Args:
        a: values of the first arm, (seeds, levels, cells).
        b: values of the second arm, same shape.
        confidence: 1 - alpha of the interval.
        log: whether the values are logarithms.
        names: the two arms in the sentence.
        measure: the measure in the sentence.
    """
    return stats.paired_difference(a, b, confidence=confidence, log=log, names=names, measure=measure)


@contrast(reduction="tail_mean", on="raw", ratio=True, mixed="level", says=LEVELS)
def ratio(
    a: Array, b: Array, *, confidence: float = 0.95, names: Names = ("a", "b"), measure: str = "value"
) -> Comparison:
    """Return the ratio of levels of a positive quantity: mean log ratios over a seed's cells, then paired.

    Args:
        a: positive values of the first arm, (seeds, levels, cells).
        b: values of the second arm, same shape.
        confidence: 1 - alpha of the interval.
        names: the two arms in the sentence.
        measure: the measure in the sentence.
    """
    return stats.log_ratio(a, b, confidence=confidence, names=names, measure=measure)


@contrast(reduction="tail_mean", on="transform", ratio=True, says=VARYING)
def spread(
    a: Array, b: Array, *, confidence: float = 0.95, names: Names = ("a", "b"), measure: str = "value"
) -> Comparison:
    """Return the ratio of standard deviations across seeds, its logarithm averaged over levels and cells.

    Args:
        a: values of the first arm, (seeds, levels, cells).
        b: values of the second arm, same shape.
        confidence: 1 - alpha of the interval.
        names: the two arms in the sentence.
        measure: the measure in the sentence.
    """
    return stats.spread_ratio(a, b, confidence=confidence, names=names, measure=measure)


@contrast(needs=("threshold",), reduction="none", on="times", ratio=True, mixed="level", says=SOON)
def time_to_threshold(
    a: Array,
    b: Array,
    *,
    budget: float,
    confidence: float = 0.95,
    names: Names = ("a", "b"),
    measure: str = "the threshold",
) -> Comparison:
    """Return the ratio of steps until the threshold is crossed; a run that never crosses it took the budget.

    *a* and *b* are steps, infinity (or anything above *budget*) if the threshold was never crossed. The mean of their
    logarithms over all cells of a seed is compared.

    Args:
        a: steps of the first arm, (seeds, levels, cells).
        b: values of the second arm, same shape.
        budget: number of steps that a run had.
        confidence: 1 - alpha of the interval.
        names: the two arms in the sentence.
        measure: the threshold in the sentence.
    """
    return stats.time_ratio(a, b, budget=budget, confidence=confidence, names=names, measure=measure)
