"""The registry of contrasts and its interface.

A contrast is ``(a, b, *, <supplied arguments>, <options>) -> Comparison``. *a* and *b* are float arrays of shape
(seeds, levels, cells): each run is already reduced over its steps, *levels* is the axis that the claim's `axis`
names (length 1 without one) and *cells* are all other cells of the grid. A keyword-only parameter named like a
key of `SUPPLIED` receives that value; other keyword-only parameters are options that a claim may set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import ArrayLike

from stability.registry import InputError, Registry, Traits
from stability.stats import Comparison

SUPPLIED: Mapping[str, str] = {
    "confidence": "confidence of the interval, already shared among the study's claims",
    "levels": "the values of the axis that the claim's `axis` names, in doublings where a step is a factor",
    "per": "the unit of a slope over the levels in a sentence: per unit or per doubling of what",
    "axis": "the axis that the claim's `axis` names, in a sentence",
    "better": "the better direction of the measure: higher, lower or empty",
    "log": "whether the values are logarithms",
    "budget": "the number of steps that a run had to cross the threshold",
    "names": 'the arms\' names (of two measures of one arm: its name, and "its" other measure)',
    "measure": "the measure's name in a sentence (for times, the threshold in words)",
}


@dataclass(frozen=True)
class ContrastTraits(Traits):
    """What a contrast declares.

    Attributes:
        on: What the arrays hold: "transform" (the measure's own scale: logs of positive quantities, chance-corrected
            logs of bounded ones), "raw" (its raw positive values), "times" (steps until the threshold is crossed,
            infinity if it never is), "diverged" (1 if the run diverged, else 0) or "collapsed" (the same for collapse).
        reduction: How a run's steps become one number unless the claim overrides it ("tail_mean": the mean of its last
            window), or "none" if the run itself is the number.
        needs: Keys that the claim must have ("axis", "threshold").
        axes: The axes that the claim may name; empty: any.
        least_levels: The smallest number of levels of that axis.
        ratio: The effect is a ratio on every scale, so the claim's margin is a ratio. Contrasts that take ``log`` give
            a ratio on logarithmic scales; `Comparison.ratio` is authoritative.
        mixed: How a mixed model expresses the same effect: as the effect of the arm ("level"), its effect on the slope
            over the levels ("slope"), or on the change from the lowest level to the highest ("change"); empty if it
            cannot.
        says: The phrase of a claim by its expected direction, with {axis} and {threshold} from the claim.
    """

    on: Literal["transform", "raw", "times", "diverged", "collapsed"]
    reduction: str
    needs: tuple[str, ...] = ()
    axes: tuple[str, ...] = ()
    least_levels: int = 2
    ratio: bool = False
    mixed: Literal["level", "slope", "change", ""] = ""
    says: Mapping[str, str] = field(default_factory=dict)

    @property
    def on_events(self) -> bool:
        """Return whether the arrays hold what happened to each run, yes or no, and not the measure of the claim."""
        return self.on in ("diverged", "collapsed")


contrast = Registry("contrast", ContrastTraits)


def compare(
    name: str,
    a: ArrayLike,
    b: ArrayLike,
    *,
    supplied: Mapping[str, Any],
    options: Mapping[str, Any] | None = None,
    where: str = "contrast",
) -> Comparison:
    """Return the comparison of two arms by the contrast called *name*.

    Args:
        name: Name of the contrast.
        a: Values of the first arm, (seeds, levels, cells).
        b: Values of the second arm, same shape.
        supplied: Values of the keys of `SUPPLIED`; the contrast receives those that it takes.
        options: Options of the claim.
        where: Location in the study for error messages.

    Raises:
        InputError: The contrast or an option is unknown.
    """
    variant = contrast.get_or_explain(name, where)
    options = options or {}
    if reserved := sorted(set(options) & set(SUPPLIED)):
        raise InputError(f"{where}.{reserved[0]}: the study sets this itself; leave it out of the claim")
    variant.check_options(options, where)
    arguments = {key: value for key, value in supplied.items() if key in variant.options}
    result: Comparison = variant(a, b, **arguments, **options)
    return result
