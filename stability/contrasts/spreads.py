"""The contrast of standard deviations across seeds."""

from __future__ import annotations

from stability.contrasts.registry import contrast
from stability.stats import Comparison, spread_ratio
from stability.stats.comparison import Array
from stability.stats.wording import Names

VARYING = {
    "lower": "varies less from seed to seed",
    "higher": "varies more from seed to seed",
    "equal": "varies as much from seed to seed",
}


@contrast(needs=(), reduction="tail_mean", on="transform", ratio=True, says=VARYING)
def spread(
    a: Array, b: Array, *, confidence: float = 0.95, names: Names = ("a", "b"), measure: str = "value"
) -> Comparison:
    """Return the ratio of standard deviations across seeds, its logarithm averaged over levels and cells."""
    return spread_ratio(a, b, confidence=confidence, names=names, measure=measure)
