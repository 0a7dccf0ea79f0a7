"""Published figures beside ours: what a paper reports, what the same measure is here, and whether its order holds.

No verdict comes of it: sizes, data and budgets differ, so a study says in words what may be expected to transfer.
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
from stability.study import DOUBLING, Published

CONFIDENCE = 0.95
"""Of each interval by itself: these tables describe and decide nothing."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class Row:
    """One line: an arm or a level, the published figure, and ours with its interval over *n* seeds (NaN: none)."""

    of: str
    published: float
    ours: float
    interval: Interval
    n: int


@dataclass(frozen=True)
class Reproduction:
    """A published table beside ours, in the published unit, and what came of its order."""

    text: str
    source: str
    transfers: str
    heading: str
    unit: str
    rows: tuple[Row, ...]
    sentence: str


def reproduce(results: Results, asked: Published) -> Reproduction:
    """Return a published table beside the same measure of *results*, times ``factor``.

    Of arms: means over the seeds, or standard deviations between them. Of a difference over an axis: the difference
    of two arms at each level, and its slope. A diverged run has no value; intervals are at 95%, each for itself.
    """
    values = _values(results, asked)
    if asked.axis:
        rows, sentence = _over(results, asked, values)
    elif asked.statistic == "sd":
        rows = tuple(_sd_row(arm, figure, values(arm)) for arm, figure in asked.values.items())
        sentence = _order(results, asked, lambda a, b: stats.spread_ratio(values(a), values(b), confidence=CONFIDENCE))
    else:
        rows = tuple(_row(arm, figure, values(arm).mean(axis=1)) for arm, figure in asked.values.items())
        sentence = _order(
            results, asked, lambda a, b: stats.paired_difference(values(a), values(b), confidence=CONFIDENCE)
        )
    label = results.measures[asked.measure].label
    if asked.factor != 1 and not asked.unit:
        label = f"{asked.factor:g} × {label}"
    heading = f"{label}, {asked.compare[0]} minus {asked.compare[1]}" if asked.compare else label
    if asked.statistic == "sd":
        heading = f"Standard deviation of {label} between seeds"
    return Reproduction(asked.text, asked.source, asked.transfers, heading, asked.unit, rows, sentence)


# --- ours ------------------------------------------------------------------------------------------------------------


def _values(results: Results, asked: Published) -> Callable[[str], np.ndarray]:
    """Return ``arm -> (seeds, cells)``, or ``(seeds, levels)`` of means over other cells where an axis is gone over."""
    runs = results.runs.set_index("run")
    numbers = asked.factor * summarize(results, asked.measure, asked.reduction).reindex(runs.index)
    frame = runs.assign(number=numbers.where(runs["status"] == "finished"))
    column = results.study.grid.column(asked.axis) if asked.axis else None

    def of(arm: str) -> np.ndarray:
        own = frame[frame["arm"] == arm]
        if column:
            table = own.pivot_table(index="seed", columns=column, values="number", dropna=False)
            return table.sort_index(axis=1).to_numpy(dtype=float)
        cell = own.groupby("seed").cumcount()
        return pd.pivot(own.assign(cell=cell), index="seed", columns="cell", values="number").to_numpy(dtype=float)

    return of


def _row(of: str, published: float, per_seed: np.ndarray) -> Row:
    known = per_seed[np.isfinite(per_seed)]
    if len(known) < 2:
        return Row(of, published, float(known.mean()) if len(known) else math.nan, (math.nan, math.nan), len(known))
    found = stats.paired_difference(known, np.zeros_like(known), confidence=CONFIDENCE)
    return Row(of, published, float(known.mean()), found.interval, len(known))


def _sd_row(of: str, published: float, values: np.ndarray) -> Row:
    """Return a row of the standard deviation between seeds, pooled over cells; its interval is that of the order."""
    several = values[:, np.isfinite(values).sum(axis=0) > 1]
    if not several.size:
        return Row(of, published, math.nan, (math.nan, math.nan), 0)
    variances = np.nanvar(several, axis=0, ddof=1)
    return Row(of, published, float(np.sqrt(variances.mean())), (math.nan, math.nan), len(values))


# --- in words --------------------------------------------------------------------------------------------------------


def _side(found: stats.Comparison) -> int:
    """Return 1 where the first arm is higher for sure, -1 where it is lower, 0 where that is open."""
    low, high = found.interval
    return int(low > found.no_difference) - int(high < found.no_difference)


def _order(results: Results, asked: Published, compare: Callable[[str, str], stats.Comparison]) -> str:
    """Return how many pairs of arms keep the published order, in a sentence; pairs without an interval stay apart."""
    pairs = [(a, b) for a, b in combinations(asked.values, 2) if asked.values[a] != asked.values[b]]
    found = {pair: compare(*pair) for pair in pairs}
    compared = [pair for pair in pairs if found[pair].n > 1]
    agreed = [_side(found[a, b]) * np.sign(asked.values[a] - asked.values[b]) for a, b in compared]
    kept, reversed_, left = (agreed.count(way) for way in (1, -1, 0))
    lacking = [_why_not(results, *pair) for pair in pairs if pair not in compared]
    reasons = "; ".join(dict.fromkeys(lacking))
    if pairs and not compared:
        return f"Ours cannot be held against the published order: {reasons}."
    if len(pairs) == 1:
        word = "keeps" if kept else "reverses" if reversed_ else "leaves open"
        return f"Ours {word} the published order (95% interval of the pair)."
    but = f"; {len(lacking)} cannot be compared: {reasons}" if lacking else ""
    return (
        f"Of {len(pairs)} pairs, ours keep the published order in {kept}, reverse it in {reversed_} and leave {left} "
        f"open (95% intervals, each pair for itself){but}."
    )


def _why_not(results: Results, *arms: str) -> str:
    """Return why two arms have no interval of their difference: what there is of too few seeds."""
    for arm in arms:
        status = results.runs.loc[results.runs["arm"] == arm, "status"]
        if (status == "diverged").all():
            return f"every run of {arm} diverged"
        if (status != "finished").all():
            return f"no run of {arm} has a value"
    return f"fewer than two seeds have a value of both {arms[0]} and {arms[1]}"


def _over(results: Results, asked: Published, values: Callable[[str], np.ndarray]) -> tuple[tuple[Row, ...], str]:
    """Return the rows of a difference over an axis, of levels published or ours, and the two slopes in a sentence."""
    assert asked.compare
    levels = sorted(results.study.grid.values(asked.axis))
    difference = values(asked.compare[0]) - values(asked.compare[1])
    ours = dict(zip(map(float, levels), difference.T, strict=True))
    published = {float(level): figure for level, figure in asked.values.items()}
    nothing = np.full(1, math.nan)
    rows = tuple(
        _row(f"{level:,g}", published.get(level, math.nan), ours.get(level, nothing))
        for level in sorted({*ours, *published})
    )
    stated = _slope(asked.axis, list(published), np.array([list(published.values())]))[0]
    own = _row("slope", stated, _slope(asked.axis, list(ours), difference))
    if own.n < 2:
        return rows, (
            f"Published, the difference changes by {number(stated)}{_per(asked)}; ours has no slope with an interval: "
            f"{_why_not(results, *asked.compare)} at every level."
        )
    low, high = own.interval
    agrees = "this is open" if low <= 0 <= high else "the same sign" if low * stated > 0 else "the other sign"
    return rows, (
        f"Published, the difference changes by {number(stated)}{_per(asked)}; here by {number(own.ours)} "
        f"(95% interval {between(own.interval, False)}): {agrees}."
    )


def _per(asked: Published) -> str:
    return f" per doubling of the {asked.axis.replace('_', ' ')}" if asked.axis in DOUBLING else ""


def _slope(over: str, levels: Sequence[float], rows: np.ndarray) -> np.ndarray:
    """Return the least-squares slope of each row over the levels, in doublings where a step is a factor."""
    x = np.log2(levels) if over in DOUBLING else np.asarray(levels, dtype=float)
    x = x - x.mean()
    return np.asarray(rows @ x / (x @ x))
