"""Contrasts of levels: difference and ratio."""

from __future__ import annotations

from stability.contrasts.registry import contrast
from stability.stats import Comparison, log_ratio, paired_difference
from stability.stats.comparison import Array
from stability.stats.wording import Names

LEVELS = {"lower": "is lower", "higher": "is higher", "equal": "is the same"}


@contrast(needs=(), reduction="tail_mean", on="transform", ratio=False, mixed="level", says=LEVELS)
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
    """
    return paired_difference(a, b, confidence=confidence, log=log, names=names, measure=measure)


@contrast(needs=(), reduction="tail_mean", on="raw", ratio=True, mixed="level", says=LEVELS)
def ratio(
    a: Array, b: Array, *, confidence: float = 0.95, names: Names = ("a", "b"), measure: str = "value"
) -> Comparison:
    """Return the ratio of levels of a positive quantity: mean log ratios over a seed's cells, then paired."""
    return log_ratio(a, b, confidence=confidence, names=names, measure=measure)
