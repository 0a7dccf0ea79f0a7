"""The words of a comparison: numbers, percentages and the clause that states which arm is higher."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Names = tuple[str, str]
"""The names of two arms; the second may be another measure of the first arm (see `own_measure`)."""

Clause = Callable[[float], str]

ITS = "its "


def number(x: float) -> str:
    """Return *x* with three significant digits, without an exponent where possible.

    >>> number(0.88123), number(-12345.6), number(2e-7), number(float("inf"))
    ('0.881', '-12,346', '2e-07', 'infinity')
    """
    if math.isinf(x):
        return "infinity" if x > 0 else "-infinity"
    return f"{x:,.0f}" if 1000 <= abs(x) < 1e7 else f"{x:.3g}"


def percent(share: float) -> str:
    """Return a share in percent, to two digits below ten.

    >>> percent(0.1234), percent(0.0035), percent(1.5)
    ('12%', '0.35%', '150%')
    """
    return f"{100 * share:.0f}%" if share >= 0.1 else f"{100 * share:.2g}%"


def confidence_in_percent(confidence: float) -> str:
    """Return a confidence level in percent, with enough digits for one that is shared among claims.

    >>> confidence_in_percent(0.95), confidence_in_percent(1 - 0.05 / 3)
    ('95%', '98.33%')
    """
    return f"{100 * confidence:.4g}%"


def signed_effect(effect: float, ratio: bool) -> str:
    """Return an effect with its sign: a ratio as its distance from 1 in percent, or as a multiple from 2 on.

    >>> signed_effect(1.07, True), signed_effect(0.94, True), signed_effect(2.5, True), signed_effect(-0.12, False)
    ('+7%', '-6%', '2.5 times', '-0.12')
    """
    if ratio and effect >= 2:
        return f"{number(effect)} times"
    size = effect - 1 if ratio else effect
    sign = "+" if size > 0 else "-" if size < 0 else ""
    return f"{sign}{percent(abs(size)) if ratio else number(abs(size))}"


def seeds(n: int) -> str:
    """Return a count of seeds in words: ``"1 seed"``, ``"2 seeds"``."""
    return f"{n} seed" if n == 1 else f"{n} seeds"


def enumerated(words: Sequence[str]) -> str:
    """Return words as an enumeration.

    >>> enumerated(["a"]), enumerated(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def between(interval: tuple[float, float], ratio: bool) -> str:
    """Return an interval as ``"lo to hi"``, or ``"unbounded"`` if it excludes nothing."""
    lo, hi = interval
    if hi == math.inf and lo == (0.0 if ratio else -math.inf):
        return "unbounded"
    return f"{number(lo)} to {number(hi)}"


def relative(factor: float, more: str, less: str) -> str:
    """Return how far a ratio is from 1, e.g. ``"12% lower than"`` or ``"2.5 times"``.

    >>> relative(0.88, "higher", "lower"), relative(1.2, "more steps", "fewer steps")
    ('12% lower than', '20% more steps than')
    """
    return f"{percent(abs(factor - 1))} {more if factor > 1 else less} than"


def own_measure(measure: str) -> str:
    """Return the name of a second side that is another measure of the first arm: *"its ..."*."""
    return ITS + measure


def of_each(form: str, names: Names, measure: str) -> tuple[Names, str]:
    """Return names and measure of a quantity derived from the measure, such as ``"slope of {}"``.

    >>> of_each("slope of {}", ("siglip", "clip"), "recall")
    (('siglip', 'clip'), 'slope of recall')
    >>> of_each("slope of {}", ("clip", own_measure("accuracy")), "recall")
    (('clip', 'its slope of accuracy'), 'slope of recall')
    """
    a, b = names
    return (a, own_measure(form.format(b.removeprefix(ITS))) if b.startswith(ITS) else b), form.format(measure)


def _possessive(name: str) -> str:
    return name if name.startswith(ITS) else f"{name}'s"


def ratio_clause(names: Names, measure: str) -> Clause:
    """Return the clause for a ratio of levels: *"siglip's gradient noise is 12% lower than clip's"*."""
    a, possessive = names[0], _possessive(names[1])

    def clause(ratio: float) -> str:
        if ratio == 1:
            return f"{a}'s {measure} equals {possessive}"
        if ratio >= 2:
            return f"{a}'s {measure} is {number(ratio)} times {possessive}"
        return f"{a}'s {measure} is {relative(ratio, 'higher', 'lower')} {possessive}"

    return clause


def difference_clause(names: Names, measure: str) -> Clause:
    """Return the clause for a difference of levels: *"siglip's recall is 0.12 higher than clip's"*."""
    a, possessive = names[0], _possessive(names[1])

    def clause(difference: float) -> str:
        if difference == 0:
            return f"{a}'s {measure} equals {possessive}"
        word = "higher" if difference > 0 else "lower"
        return f"{a}'s {measure} is {number(abs(difference))} {word} than {possessive}"

    return clause


def spread_clause(names: Names, measure: str) -> Clause:
    """Return the clause for a ratio of spreads: *"siglip's recall varies 33% less across seeds than ..."*."""
    a, possessive = names[0], _possessive(names[1])

    def clause(ratio: float) -> str:
        if ratio == 1:
            return f"{a}'s {measure} varies across seeds as much as {possessive}"
        if ratio >= 2:
            return f"{a}'s {measure} varies {number(ratio)} times as much across seeds as {possessive}"
        word = "more" if ratio > 1 else "less"
        return f"{a}'s {measure} varies {percent(abs(ratio - 1))} {word} across seeds than {possessive}"

    return clause


def time_clause(names: Names, measure: str) -> Clause:
    """Return the clause for a ratio of steps: *"siglip takes 25% fewer steps than clip to reach the threshold"*."""
    a, b = names

    def clause(ratio: float) -> str:
        if ratio == 1:
            return f"{a} reaches {measure} as soon as {b}"
        if ratio >= 2:
            return f"{a} takes {number(ratio)} times as many steps as {b} to reach {measure}"
        return f"{a} takes {relative(ratio, 'more steps', 'fewer steps')} {b} to reach {measure}"

    return clause


def critical_rate_clause(names: Names) -> Clause:
    """Return the clause for a ratio of critical rates: *"siglip collapses from a 40% lower rate on than clip"*."""
    a, b = names

    def clause(ratio: float) -> str:
        if ratio == 1:
            return f"{a} collapses from the same learning rate on as {b}"
        if ratio >= 2:
            return f"{a} collapses from {number(ratio)} times the learning rate on that {b} does"
        return f"{a} collapses from a {percent(abs(ratio - 1))} {'higher' if ratio > 1 else 'lower'} rate on than {b}"

    return clause
