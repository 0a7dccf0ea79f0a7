"""Contrasts of events: time to a threshold and divergence."""

from __future__ import annotations

from stability.contrasts.registry import contrast
from stability.stats import Comparison, divergence_difference, time_ratio
from stability.stats.comparison import Array
from stability.stats.wording import Names

SOON = {
    "lower": "reaches {threshold} sooner",
    "higher": "reaches {threshold} later",
    "equal": "reaches {threshold} as soon",
}
OFTEN = {"lower": "diverges less often", "higher": "diverges more often", "equal": "diverges as often"}


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
    """
    return time_ratio(a, b, budget=budget, confidence=confidence, names=names, measure=measure)


@contrast(needs=(), reduction="none", on="diverged", ratio=False, says=OFTEN)
def divergence(a: Array, b: Array, *, confidence: float = 0.95, names: Names = ("a", "b")) -> Comparison:
    """Return the difference of the shares of runs that diverged; *a* and *b* are booleans (or 0 and 1)."""
    return divergence_difference(a, b, confidence=confidence, names=names)
