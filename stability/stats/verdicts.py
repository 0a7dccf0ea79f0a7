"""The rule that turns a comparison into a verdict on a claim."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stability.registry import InputError
from stability.stats.cells import CellEffect, Disagreement, cells_beyond, disagreement, inside
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
        depends_on: The axes in which two cells of a mixed claim differ, in words; empty for other verdicts.
    """

    verdict: VerdictName
    reason: str
    sentence: str
    seeds_to_settle: int | None = None
    depends_on: str = ""


def verdict(
    comparison: Comparison,
    *,
    expect: Expect = "higher",
    margin: float,
    min_pairs: int = 3,
    failures: int | None = None,
    failure_limit: float = 0.1,
    cells: Sequence[CellEffect] = (),
) -> Verdict:
    """Return the verdict on the claim that arm a is higher or lower than arm b, or equal to it.

    The first condition that holds decides:

    1. not-testable: nothing could be tested, there are fewer than *min_pairs* pairs, or *failures* exceed
       *failure_limit*;
    2. equivalent: the TOST interval lies strictly inside the margin, and so does that of every cell, whether or
       not the difference is significant;
    3. mixed: cells say the opposite of each other or of their mean (`cells.disagreement`);
    4. supported or contradicted: the interval excludes no difference, on the expected or on the other side, and
       does not lie inside the margin;
    5. inconclusive, with the seeds that would settle it (None if the present seeds should have sufficed, so
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
        cells: The effects in the cells of the grid over which the comparison averages; none if there is one cell.
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
    cells = cells if len(cells) > 1 else ()
    within = inside(comparison.equivalence_interval, region)
    if within and all(inside(cell.equivalence_interval, region) for cell in cells):
        real = _side(comparison.interval, no_effect) != "open"
        word: VerdictName = "supported" if expect == "equal" else "equivalent"
        return _within(comparison, word, region, margin, real, len(cells))
    if found := disagreement(comparison.interval, cells, region, no_effect[0], within):
        return _mixed(comparison, found, len(cells))
    if within:
        return _not_everywhere(comparison, cells, region, margin)
    side = _side(comparison.interval, region if expect == "equal" else no_effect)
    if side == "open":
        return _unsettled(comparison, region if expect == "equal" else None, margin, cells)
    word = "supported" if side == expect else "contradicted"
    beyond = f"the margin, {between(region, comparison.ratio)}" if expect == "equal" else number(no_effect[0])
    side_word = "above" if side == "higher" else "below"
    reason = f"the {confidence_in_percent(comparison.confidence)} interval lies {side_word} {beyond}"
    alone = len(cells_beyond(cells, region if expect == "equal" else no_effect)[side == "higher"])
    shown = f"; {alone} of {len(cells)} cells show it alone" if cells else ""
    sentence = _with_size(comparison, region, margin).removesuffix(".")
    return Verdict(word, reason + shown, f"{word.capitalize()}: {sentence}{shown}.")


def _mixed(comparison: Comparison, found: Disagreement, cells: int) -> Verdict:
    """Return "mixed", with the two cells that disagree beside the mean."""
    apart = " and ".join(cell.in_words(comparison.ratio) for cell in (found.first, found.second))
    statement = comparison.sentence.removesuffix(".")
    sentence = f"Mixed: it depends on the {found.axes}: {apart}; in the mean over {cells} cells {statement}."
    return Verdict("mixed", f"the cells disagree: {apart}", sentence, depends_on=found.axes)


def _not_everywhere(comparison: Comparison, cells: Sequence[CellEffect], region: Interval, margin: float) -> Verdict:
    """Return "inconclusive" for a mean inside the margin that is not shown to be there in every cell."""
    open_cells = [cell for cell in cells if not inside(cell.equivalence_interval, region)]
    widest = max(open_cells, key=lambda cell: _reach(cell, comparison.ratio))
    where = f"{len(open_cells)} of {len(cells)} cells, such as {widest.in_words(comparison.ratio)}"
    reason = f"the mean lies inside the margin, {between(region, comparison.ratio)}, but not shown so: {where}"
    statement = comparison.sentence.removesuffix(".").replace(f"; {OPEN}", "")
    limit = f"smaller than the margin of {_limit(comparison, margin)} in the mean, which is not shown for {where}"
    return _with_seeds(comparison, margin, cells, reason, f"{statement}; {limit}")


def _reach(cell: CellEffect, ratio: bool) -> float:
    """Return how far the interval of a cell reaches from no effect."""
    low, high = cell.equivalence_interval
    return max(high, 1 / low if low > 0 else math.inf) if ratio else max(high, -low)


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


def _within(
    comparison: Comparison, word: VerdictName, region: Interval, margin: float, real: bool, cells: int
) -> Verdict:
    confidence = confidence_in_percent(2 * comparison.confidence - 1)
    interval = between(comparison.equivalence_interval, comparison.ratio)
    within = f"the {confidence} interval, {interval}, lies inside the margin, {between(region, comparison.ratio)}"
    within += f", and so does that of each of {cells} cells" if cells else ""
    statement = comparison.sentence.removesuffix(".").replace(f"; {OPEN}", "")
    smaller = "the difference is real, but smaller" if real else "any difference is smaller"
    reason = f"{within}; the difference is real all the same" if real else within
    # The interval is wider than the TOST interval, so it may exceed the margin; the sentence then shows both.
    covered = region[0] < comparison.interval[0] and comparison.interval[1] < region[1]
    wider = "" if covered else f" ({confidence} interval of equivalence, {interval})"
    limit = _limit(comparison, margin)
    everywhere = f" in each of {cells} cells" if cells else ""
    sentence = f"{word.capitalize()}: {statement}; {smaller} than the margin of {limit}{everywhere}{wider}."
    return Verdict(word, reason, sentence)


def _unsettled(comparison: Comparison, region: Interval | None, margin: float, cells: Sequence[CellEffect]) -> Verdict:
    """Return "inconclusive"; *region* is the margin of a claim of equality, None for a claim of direction."""
    interval = between(comparison.interval, comparison.ratio)
    crossed = f"part of the margin, {between(region, comparison.ratio)}" if region else "no difference"
    reason = f"the {confidence_in_percent(comparison.confidence)} interval, {interval}, includes {crossed}"
    return _with_seeds(comparison, margin, cells, reason, comparison.sentence.removesuffix("."))


def _with_seeds(
    comparison: Comparison, margin: float, cells: Sequence[CellEffect], reason: str, statement: str
) -> Verdict:
    """Return "inconclusive" with the number of seeds that would settle the claim, equality in every cell."""
    needed = seeds_to_settle(
        comparison.sd,
        comparison.n,
        margin=margin,
        ratio=comparison.ratio,
        confidence=comparison.confidence,
        cell_sds=[cell.sd for cell in cells],
    )
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
