"""What a claim does with a measure: one decorated function compares two arms over the same seeds.

A contrast is ``(a, b, *, <what it asks for>, <its options>) -> Comparison``, *a* and *b* float arrays of
shape (seeds, levels, cells): a run is already reduced over its steps, *levels* is the axis that the claim's
`axis` names (length 1 where it names none) and *cells* are all other cells of the grid. It may ask, by the
name of a keyword-only parameter, for any of `SUPPLIED`; its other keyword-only parameters are options that a
claim may set.

Traits say what the claim must give and how the arrays are made:

- ``needs``: the claim's keys without which the contrast has no meaning ("axis", "threshold");
- ``on``: "transform" (the measure's own scale: logs of positive quantities, chance-corrected logs of bounded
  ones), "raw" (its raw positive values), "times" (steps until the threshold is crossed, infinity where it
  never is) or "diverged" (1 where the run diverged, else 0);
- ``reduction``: how a run's steps become one number unless the claim says otherwise ("tail_mean": the mean of its
  last window), or "none" where the run itself is the number;
- ``mixed``, where a mixed model can state the same effect: as the arm's own ("level"), as that on the slope over the
  levels ("slope"), or as that on the change from the lowest level to the highest ("change");
- ``says``: what a claim of it says of its measure, by what it expects, with {axis} and {threshold} from the claim;
- ``ratio``: the effect is a ratio whatever the scale, so the claim's margin is one of ratios. Contrasts that
  ask for ``log`` give a ratio on logarithmic scales; `Comparison.ratio` has the last word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import ArrayLike

from stability.registry import InputError, Registry
from stability.stats import Comparison

contrast = Registry("contrast")

SUPPLIED: Mapping[str, str] = {
    "confidence": "confidence of the interval, already shared among the study's claims",
    "levels": "the values of the axis that the claim's `axis` names, in doublings where a step is a factor",
    "per": "the unit of a slope over the levels in a sentence: per unit or per doubling of what",
    "axis": "the axis that the claim's `axis` names, in a sentence",
    "better": "which way the measure is good: higher, lower or nothing",
    "log": "whether the values are logarithms",
    "budget": "the number of steps that a run had to cross the threshold",
    "names": 'the arms\' names (of two measures of one arm: its name, and "its" other measure)',
    "measure": "the measure's name in a sentence (for times, the threshold in words)",
}


def compare(
    name: str,
    a: ArrayLike,
    b: ArrayLike,
    *,
    supplied: Mapping[str, Any],
    options: Mapping[str, Any] | None = None,
    where: str = "contrast",
) -> Comparison:
    """Return the comparison of two arms by the contrast called *name*, given what it asks for of *supplied*.

    *options* are the claim's own; *where* is the place in the study that an error names. Raises `InputError`
    for an unknown contrast or option.
    """
    variant = contrast.get_or_explain(name, where)
    options = options or {}
    if taken := sorted(set(options) & set(SUPPLIED)):
        raise InputError(f"{where}.{taken[0]}: the study sets this itself; leave it out of the claim")
    variant.check_options(options, where)
    asked = {key: value for key, value in supplied.items() if key in variant.options}
    found: Comparison = variant(a, b, **asked, **options)
    return found


# The variants' modules register themselves in `contrast`, so they are imported once it exists.
from stability.contrasts import events, means, spreads, trends  # noqa: E402

__all__ = ["SUPPLIED", "compare", "contrast", "events", "means", "spreads", "trends"]
