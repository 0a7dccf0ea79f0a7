"""Comparison of published figures with ours, and whether the published order holds.

It gives no verdict: sizes, data and budgets differ, so a study states in words what is expected to transfer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from stability import stats
from stability.results import Results, summarize
from stability.stats.wording import between, number
from stability.study import Published
from stability.vocabulary import AXES

CONFIDENCE = 0.95
"""Confidence of each interval by itself, without adjustment: these tables are descriptive."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class Row:
    """One row: an arm or a level, the published figure, and ours with its interval over *n* seeds (NaN: none).

    Attributes:
        of: An arm, or a level of the axis.
        published: The published number; NaN if there is none.
        ours: Our number; NaN if there is none.
        interval: 95% interval of our number.
        n: Number of seeds that have a value.
    """

    of: str
    published: float
    ours: float
    interval: Interval
    n: int


@dataclass(frozen=True)
class Reproduction:
    """A published table next to ours.

    Attributes:
        text: What the table shows.
        source: The paper.
        transfers: What is expected to transfer to our setting.
        heading: Title of the table.
        unit: The published unit.
        rows: The rows.
        sentence: Whether our results keep the published order.
    """

    text: str
    source: str
    transfers: str
    heading: str
    unit: str
    rows: tuple[Row, ...]
    sentence: str


def reproduce(results: Results, request: Published) -> Reproduction:
    """Return a published table next to the same measure of *results*, multiplied by ``factor``.

    A table of arms holds means over the seeds, or standard deviations between them. A table over an axis holds the
    difference of two arms at each level, and its slope. A diverged run has no value; each interval is at 95%.
    """
    values = _values(results, request)
    if request.axis:
        rows, sentence = _over(results, request, values)
    elif request.statistic == "sd":
        rows = tuple(_sd_row(arm, figure, values(arm)) for arm, figure in request.values.items())
        sentence = _order(
            results, request, lambda a, b: stats.spread_ratio(values(a), values(b), confidence=CONFIDENCE)
        )
    else:
        rows = tuple(_row(arm, figure, values(arm).mean(axis=1)) for arm, figure in request.values.items())
        sentence = _order(
            results, request, lambda a, b: stats.paired_difference(values(a), values(b), confidence=CONFIDENCE)
        )
    label = results.measures[request.measure].label
    if request.factor != 1 and not request.unit:
        label = f"{request.factor:g} × {label}"
    heading = f"{label}, {request.compare[0]} minus {request.compare[1]}" if request.compare else label
    if request.statistic == "sd":
        heading = f"Standard deviation of {label} between seeds"
    return Reproduction(request.text, request.source, request.transfers, heading, request.unit, rows, sentence)


# --- ours ------------------------------------------------------------------------------------------------------------


def _values(results: Results, request: Published) -> Callable[[str], np.ndarray]:
    """Return a function of an arm: (seeds, cells), or with an axis (seeds, levels), averaged over the other cells."""
    runs = results.runs.set_index("run")
    numbers = request.factor * summarize(results, request.measure, request.reduction).reindex(runs.index)
    frame = runs.assign(number=numbers.where(runs["status"] == "finished"))
    column = results.study.grid.column(request.axis) if request.axis else None

    def of(arm: str) -> np.ndarray:
        arm_frame = frame[frame["arm"] == arm]
        if column:
            table = arm_frame.pivot_table(index="seed", columns=column, values="number", dropna=False)
            return table.sort_index(axis=1).to_numpy(dtype=float)
        cell = arm_frame.groupby("seed").cumcount()
        return pd.pivot(arm_frame.assign(cell=cell), index="seed", columns="cell", values="number").to_numpy(
            dtype=float
        )

    return of


def _row(of: str, published: float, per_seed: np.ndarray) -> Row:
    finite = per_seed[np.isfinite(per_seed)]
    if len(finite) < 2:
        return Row(of, published, float(finite.mean()) if len(finite) else math.nan, (math.nan, math.nan), len(finite))
    comparison = stats.paired_difference(finite, np.zeros_like(finite), confidence=CONFIDENCE)
    return Row(of, published, float(finite.mean()), comparison.interval, len(finite))


def _sd_row(of: str, published: float, values: np.ndarray) -> Row:
    """Return the row of a standard deviation between seeds, pooled over cells; it has no interval of its own."""
    several = values[:, np.isfinite(values).sum(axis=0) > 1]
    if not several.size:
        return Row(of, published, math.nan, (math.nan, math.nan), 0)
    variances = np.nanvar(several, axis=0, ddof=1)
    return Row(of, published, float(np.sqrt(variances.mean())), (math.nan, math.nan), len(values))


# --- in words --------------------------------------------------------------------------------------------------------


def _side(comparison: stats.Comparison) -> int:
    """Return 1 if the first arm is significantly higher, -1 if lower, 0 if undecided."""
    low, high = comparison.interval
    return int(low > comparison.no_difference) - int(high < comparison.no_difference)


def _order(results: Results, request: Published, compare: Callable[[str, str], stats.Comparison]) -> str:
    """Return how many pairs of arms keep the published order, in a sentence; pairs without interval are listed."""
    pairs = [(a, b) for a, b in combinations(request.values, 2) if request.values[a] != request.values[b]]
    comparisons = {pair: compare(*pair) for pair in pairs}
    compared = [pair for pair in pairs if comparisons[pair].n > 1]
    agreed = [_side(comparisons[a, b]) * np.sign(request.values[a] - request.values[b]) for a, b in compared]
    kept, reversed_, left = (agreed.count(sign) for sign in (1, -1, 0))
    reasons_missing = [_why_not(results, *pair) for pair in pairs if pair not in compared]
    reasons = "; ".join(dict.fromkeys(reasons_missing))
    if pairs and not compared:
        return f"Ours cannot be held against the published order: {reasons}."
    if len(pairs) == 1:
        word = "keeps" if kept else "reverses" if reversed_ else "leaves open"
        return f"Ours {word} the published order (95% interval of the pair)."
    missing_clause = f"; {len(reasons_missing)} cannot be compared: {reasons}" if reasons_missing else ""
    return (
        f"Of {len(pairs)} pairs, ours keep the published order in {kept}, reverse it in {reversed_} and leave {left} "
        f"open (95% intervals, each pair for itself){missing_clause}."
    )


def _why_not(results: Results, *arms: str) -> str:
    """Return why the difference of two arms has no interval."""
    for arm in arms:
        status = results.runs.loc[results.runs["arm"] == arm, "status"]
        if (status == "diverged").all():
            return f"every run of {arm} diverged"
        if (status != "finished").all():
            return f"no run of {arm} has a value"
    return f"fewer than two seeds have a value of both {arms[0]} and {arms[1]}"


def _over(results: Results, request: Published, values: Callable[[str], np.ndarray]) -> tuple[tuple[Row, ...], str]:
    """Return the rows of a difference over an axis at published and own levels, and the two slopes in a sentence."""
    assert request.compare
    levels = sorted(results.study.grid.values(request.axis))
    difference = values(request.compare[0]) - values(request.compare[1])
    ours = dict(zip(map(float, levels), difference.T, strict=True))
    published = {float(level): figure for level, figure in request.values.items()}
    missing = np.full(1, math.nan)
    rows = tuple(
        _row(f"{level:,g}", published.get(level, math.nan), ours.get(level, missing))
        for level in sorted({*ours, *published})
    )
    paper_slope = _slope(request.axis, list(published), np.array([list(published.values())]))[0]
    ours_row = _row("slope", paper_slope, _slope(request.axis, list(ours), difference))
    if ours_row.n < 2:
        return rows, (
            f"Published, the difference changes by {number(paper_slope)}{_per(request)}; ours has no slope with an "
            f"interval: {_why_not(results, *request.compare)} at every level."
        )
    low, high = ours_row.interval
    agrees = "this is open" if low <= 0 <= high else "the same sign" if low * paper_slope > 0 else "the other sign"
    return rows, (
        f"Published, the difference changes by {number(paper_slope)}{_per(request)}; here by "
        f"{number(ours_row.ours)} (95% interval {between(ours_row.interval, False)}): {agrees}."
    )


def _per(request: Published) -> str:
    return AXES[request.axis].per


def _slope(axis: str, levels: Sequence[float], rows: np.ndarray) -> np.ndarray:
    """Return the least-squares slope of each row over the levels, per `Axis.per`."""
    x = np.array([AXES[axis].position(level) for level in levels])
    x = x - x.mean()
    return np.asarray(rows @ x / (x @ x))
