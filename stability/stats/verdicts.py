"""The rule that turns a comparison into a verdict on a claim."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stability.registry import InputError
from stability.stats.comparison import OPEN, Comparison, Interval, margin_region
from stability.stats.planning import seeds_to_settle
from stability.stats.wording import between, confidence_in_percent, number, percent, seeds
from stability.vocabulary import VerdictName

Expect = Literal["higher", "lower", "equal"]


@dataclass(frozen=True)
class Verdict:
    """A claim's verdict, its reason, one plain sentence, and for an open claim the seeds that would settle it.

    Attributes:
        verdict: The verdict.
        reason: Which condition decided, in words.
        sentence: Verdict and effect in one plain sentence.
        seeds_to_settle: Seeds that would settle an open claim; None if it is settled or this is unknown.
    """

    verdict: VerdictName
    reason: str
    sentence: str
    seeds_to_settle: int | None = None


def verdict(
    comparison: Comparison,
    *,
    expect: Expect = "higher",
    margin: float,
    min_pairs: int = 3,
    failures: int | None = None,
    failure_limit: float = 0.1,
) -> Verdict:
    """Return the verdict on the claim that arm a is higher or lower than arm b, or equal to it.

    The first condition that holds decides:

    1. not-testable: nothing could be tested, there are fewer than *min_pairs* pairs, or *failures* exceed
       *failure_limit*;
    2. equivalent: the TOST interval lies strictly inside the margin, whether or not the difference is
       significant;
    3. supported or contradicted: the interval excludes no difference, on the expected or on the other side;
    4. inconclusive, with the seeds that would settle it (None if the present seeds should have sufficed, so
       that the effect must be close to the margin).

    For *expect* "equal" the claim is condition 2: it is supported if the condition holds, contradicted if the
    interval lies entirely outside the margin, and otherwise open, even if the difference is significant.

    Args:
        comparison: The comparison of arms a and b.
        expect: Expected direction. With a ratio "lower" means a / b < 1.
        margin: Differences within [-m, m] and ratios within [1 / (1 + m), 1 + m] count as equal.
        min_pairs: Smallest number of pairs that can be tested.
        failures: Number of pairs with a failed run; default the pairs left out of the comparison.
        failure_limit: Largest allowed share of failures among all pairs.
    """
    if expect not in ("higher", "lower", "equal"):
        raise InputError(f"expect {expect!r}; allowed: higher, lower, equal")
    if not 0 <= failure_limit <= 1:
        raise InputError(f"failure_limit {failure_limit!r}; allowed: a share from 0 to 1")
    region = margin_region(margin, comparison.ratio)
    no_effect = (comparison.no_difference, comparison.no_difference)
    failed = comparison.left_out if failures is None else failures
    if obstacle := _obstacle(comparison, min_pairs, failed, failure_limit):
        return Verdict("not-testable", obstacle, f"Not testable: {obstacle}.")
    if region[0] < comparison.equivalence_interval[0] and comparison.equivalence_interval[1] < region[1]:
        real = _side(comparison.interval, no_effect) != "open"
        return _within(comparison, "supported" if expect == "equal" else "equivalent", region, margin, real)
    side = _side(comparison.interval, region if expect == "equal" else no_effect)
    if side == "open":
        return _unsettled(comparison, region if expect == "equal" else None, margin)
    word: VerdictName = "supported" if side == expect else "contradicted"
    beyond = f"the margin, {between(region, comparison.ratio)}" if expect == "equal" else number(no_effect[0])
    side_word = "above" if side == "higher" else "below"
    reason = f"the {confidence_in_percent(comparison.confidence)} interval lies {side_word} {beyond}"
    return Verdict(word, reason, f"{word.capitalize()}: {_with_size(comparison, region, margin)}")


def _with_size(comparison: Comparison, region: Interval, margin: float) -> str:
    """Return a decided comparison's sentence, with a note if the interval overlaps the margin."""
    if _side(comparison.interval, region) != "open":
        return comparison.sentence
    return (
        f"{comparison.sentence.removesuffix('.')}; it may be smaller than the margin of {_limit(comparison, margin)}."
    )


def _limit(comparison: Comparison, margin: float) -> str:
    return percent(margin) if comparison.ratio else number(margin)


def _obstacle(comparison: Comparison, min_pairs: int, failed: int, failure_limit: float) -> str:
    if not comparison.testable and comparison.outcome != "too-few-pairs":
        return comparison.problem
    pairs = comparison.n + comparison.left_out
    if failed > failure_limit * pairs:
        limit = percent(failure_limit)
        return f"{failed} of {seeds(pairs)} had a failed run or no usable value, above the limit of {limit}"
    if not comparison.testable:
        return comparison.problem
    if comparison.n < min_pairs:
        return f"{comparison.n} pairs of runs, and a verdict needs at least {min_pairs}"
    return ""


def _within(comparison: Comparison, word: VerdictName, region: Interval, margin: float, real: bool) -> Verdict:
    confidence = confidence_in_percent(2 * comparison.confidence - 1)
    interval = between(comparison.equivalence_interval, comparison.ratio)
    inside = f"the {confidence} interval, {interval}, lies inside the margin, {between(region, comparison.ratio)}"
    statement = comparison.sentence.removesuffix(".").replace(f"; {OPEN}", "")
    smaller = "the difference is real, but smaller" if real else "any difference is smaller"
    reason = f"{inside}; the difference is real all the same" if real else inside
    # The interval is wider than the TOST interval, so it may exceed the margin; the sentence then shows both.
    covered = region[0] < comparison.interval[0] and comparison.interval[1] < region[1]
    wider = "" if covered else f" ({confidence} interval of equivalence, {interval})"
    limit = _limit(comparison, margin)
    return Verdict(word, reason, f"{word.capitalize()}: {statement}; {smaller} than the margin of {limit}{wider}.")


def _unsettled(comparison: Comparison, region: Interval | None, margin: float) -> Verdict:
    """Return "inconclusive"; *region* is the margin of a claim of equality, None for a claim of direction."""
    interval = between(comparison.interval, comparison.ratio)
    crossed = f"part of the margin, {between(region, comparison.ratio)}" if region else "no difference"
    reason = f"the {confidence_in_percent(comparison.confidence)} interval, {interval}, includes {crossed}"
    needed = seeds_to_settle(
        comparison.sd, comparison.n, margin=margin, ratio=comparison.ratio, confidence=comparison.confidence
    )
    statement = comparison.sentence.removesuffix(".")
    if comparison.allowance:
        # A finer grid narrows what the grid hides, and more seeds do not.
        return Verdict("inconclusive", reason, f"Inconclusive: {statement}.")
    if needed is None:
        return Verdict("inconclusive", reason, f"Inconclusive: {statement}.")
    if needed <= comparison.n:
        # These seeds sufficed for an effect of 0 and for one of the margin, so the true effect is neither.
        reason += "; the effect is too close to the margin for a number of seeds to be promised"
        return Verdict("inconclusive", reason, f"Inconclusive: {statement}; more seeds may not settle it.")
    return Verdict("inconclusive", reason, f"Inconclusive: {statement}; about {seeds(needed)} would settle it.", needed)


def _side(interval: Interval, region: Interval) -> Literal["higher", "lower", "open"]:
    if interval[0] > region[1]:
        return "higher"
    return "lower" if interval[1] < region[0] else "open"
