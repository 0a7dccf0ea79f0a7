"""Ratio of critical learning rates: the rates from which on runs collapse, read on a grid of rates."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtr

from stability.registry import InputError
from stability.stats.comparison import (
    Account,
    Array,
    Comparison,
    Estimate,
    build_comparison,
    check_confidence,
    estimate_mean,
    untestable,
)
from stability.stats.wording import Names, critical_rate_clause, number, percent

MOST_CENSORED = 0.2
"""The largest share of an arm's runs whose critical rate may lie beyond an end of the grid."""

BEYOND = (0.5, 2.0)
"""Where a critical rate beyond an end of the grid is placed, in steps of the grid from that end: near and far."""

FEW_BRACKETS = 2
"""Seeds whose critical rates fall into no more brackets than this do not average out what the grid hides."""


@dataclass(frozen=True)
class _Read:
    """The critical rates of one arm on a grid, (seeds, cells).

    Attributes:
        place: Number of rates below the critical one: 0 if the lowest rate collapses, that of all if none does.
        near: Logarithm of the critical rate: the middle of its bracket; beyond an end, half a step from it.
        far: The same; beyond an end, two steps from it.
        allowance: What the grid hides of the mean over cells, on the scale of the logarithm.
        turns: Number of runs that collapse at a rate below one at which they do not.
    """

    place: np.ndarray
    near: Array
    far: Array
    allowance: float
    turns: int


def critical_rate_ratio(
    a: ArrayLike,
    b: ArrayLike,
    *,
    rates: ArrayLike,
    confidence: float = 0.95,
    names: Names = ("a", "b"),
) -> Comparison:
    """Return the ratio a / b of critical learning rates: paired t over seeds of their logarithms.

    The critical rate of a seed and cell lies between the highest rate at which its run does not collapse and the next
    rate of the grid, from which on all higher rates collapse; it is read as their geometric mean. A collapse at a rate
    below one without it does not count (the sentence says how many there are).

    The interval is that of the t test, plus what the grid hides. Middles of brackets have the mean of the critical
    rates up to half a step. If the critical rates are normal with a standard deviation of half a step or more, the
    error is below .3% of a step (the sawtooth's Fourier series, first term h / pi exp(-2 pi^2 sd^2 / h^2)); if they
    hardly vary, it is up to half. So an arm whose seeds lie in at most `FEW_BRACKETS` brackets widens the interval by
    half a step on both sides. A critical rate beyond an end of the grid is placed half a step and, in a second
    analysis, two steps beyond it; the interval spans both.

    Nothing is tested if an arm collapses nowhere or everywhere, or if more than `MOST_CENSORED` of its runs have their
    critical rate beyond the grid.

    Args:
        a: Whether each run of the first arm collapsed: booleans (or 0, 1 and NaN for unknown), (seeds, rates) or
            (seeds, rates, cells...).
        b: The same for the second arm.
        rates: The learning rates, positive and different, (rates,).
        confidence: 1 - alpha.
        names: Names of the two arms in the sentence.
    """
    check_confidence(confidence)
    rate = np.asarray(rates, dtype=np.float64)
    if rate.ndim != 1 or len(rate) < 2 or not np.isfinite(rate).all() or (rate <= 0).any():
        raise InputError(f"rates {rate.tolist()}; allowed: two or more positive numbers")
    order = np.argsort(rate)
    logs = np.log(rate[order])
    if (np.diff(logs) <= 0).any():
        raise InputError(f"rates {rate.tolist()}; allowed: rates that differ")
    left, right = (_outcomes(arm, len(rate))[:, order] for arm in (a, b))
    if left.shape != right.shape:
        raise InputError(f"arms of shapes {np.shape(a)} and {np.shape(b)}; allowed: equal shapes")
    used = np.isfinite(left + right).all(axis=(1, 2))
    left_out = int((~used).sum())
    reads = [_read(arm[used], logs) for arm in (left, right)]
    assumptions = (
        "seeds are independent; the mean of their differences is near normal; the critical rate lies anywhere between "
        "the two rates around it"
    )
    account = Account(
        "paired t over seeds' log critical rates, plus what the grid hides",
        assumptions,
        "ratio of critical rates",
        critical_rate_clause(names),
        ratio=True,
    )
    per_seed = (reads[0].near - reads[1].near).mean(axis=1)
    n = int(used.sum())
    if n < 2:
        problem = f"{n} usable pair{'s' if n != 1 else ''}, and a test needs at least 2"
        return untestable("too-few-pairs", problem, account, confidence, per_seed=per_seed, left_out=left_out)
    for name, one in zip(names, reads, strict=True):
        if problem := _censored(name, one, len(rate)):
            return untestable("all-censored", problem, account, confidence, n=n, left_out=left_out)
    resolution = max(1.0, float(np.abs(logs).max()))
    allowance = reads[0].allowance + reads[1].allowance
    estimate = estimate_mean(per_seed, confidence, resolution)
    estimates = [estimate] + [
        estimate_mean(other, confidence, resolution)
        for other in ((reads[0].far - reads[1].near).mean(axis=1), (reads[0].near - reads[1].far).mean(axis=1))
        if not np.array_equal(other, per_seed)
    ]
    note = _note(names, reads, len(rate), allowance)
    spanned = _spanned(estimates, allowance, n)
    return replace(build_comparison(spanned, account, per_seed, confidence, left_out, note), allowance=allowance)


def _outcomes(arm: ArrayLike, rates: int) -> Array:
    """Return an arm as (seeds, rates, cells)."""
    values = np.asarray(arm, dtype=np.float64)
    if values.ndim < 2 or values.shape[1] != rates:
        raise InputError(
            f"an arm of shape {values.shape} for {rates} rates; allowed: one rate for each entry of axis 1"
        )
    if not np.isin(values[np.isfinite(values)], (0.0, 1.0)).all():
        raise InputError("outcomes that are not yes or no; allowed: booleans, or 0, 1 and NaN")
    return values.reshape(len(values), rates, math.prod(values.shape[2:]))


def _read(collapsed: Array, logs: Array) -> _Read:
    healthy = collapsed == 0
    place = len(logs) - np.where(healthy.any(axis=1), np.argmax(healthy[:, ::-1], axis=1), len(logs))
    turns = int(((collapsed == 1) & (np.arange(len(logs))[:, None] < place[:, None])).any(axis=1).sum())
    first, last = logs[1] - logs[0], logs[-1] - logs[-2]
    between = (logs[1:] + logs[:-1]) / 2
    near, far = (
        np.concatenate([[logs[0] - steps * first], between, [logs[-1] + steps * last]])[place] for steps in BEYOND
    )
    widest = np.concatenate([[first], np.diff(logs), [last]])[place]
    few = np.array([len(np.unique(column)) <= FEW_BRACKETS for column in place.T])
    allowance = float(np.mean(few * widest.max(axis=0, initial=0.0) / 2))
    return _Read(place, near, far, allowance, turns)


def _censored(name: str, read: _Read, rates: int) -> str:
    """Return why an arm's critical rates cannot be compared, in words; empty if they can."""
    runs = read.place.size
    below, above = int((read.place == 0).sum()), int((read.place == rates).sum())
    if above == runs:
        return f"{name} collapses at none of the {rates} rates, so its critical rate lies above them"
    if below == runs:
        return f"{name} collapses at all of the {rates} rates, so its critical rate lies below them"
    if below + above > MOST_CENSORED * runs:
        return (
            f"{name}'s critical rate lies beyond the {rates} rates in {below + above} of {runs} cases ({below} below, "
            f"{above} above), and at most {percent(MOST_CENSORED)} may"
        )
    return ""


def _spanned(estimates: list[Estimate], allowance: float, n: int) -> Estimate:
    """Return the first estimate with intervals that span those of all, and the allowance on both sides."""

    def hull(intervals: list[tuple[float, float]]) -> tuple[float, float]:
        return min(low for low, _ in intervals) - allowance, max(high for _, high in intervals) + allowance

    return replace(
        estimates[0],
        interval=hull([one.interval for one in estimates]),
        equivalence_interval=hull([one.equivalence_interval for one in estimates]),
        p_value=_p_value(estimates, allowance, n),
        outcome="tested",
    )


def _p_value(estimates: list[Estimate], allowance: float, n: int) -> float:
    """Return the largest p-value of the estimates at the nearest end of what the grid hides; 1 if that includes 0."""
    if min(abs(one.center) for one in estimates) <= allowance or len({one.center > 0 for one in estimates}) > 1:
        return 1.0
    return max(
        2 * float(stdtr(n - 1, (allowance - abs(one.center)) * math.sqrt(n) / one.sd)) if one.sd else one.p_value
        for one in estimates
    )


def _note(names: Names, reads: list[_Read], rates: int, allowance: float) -> str:
    """Return what the sentence adds: censored runs, collapses below a rate without one, and what the grid hides."""
    parts = []
    for name, one in zip(names, reads, strict=True):
        if beyond := int(((one.place == 0) | (one.place == rates)).sum()):
            parts.append(f"{name}'s lies beyond the grid in {beyond} of {one.place.size} cases")
        if one.turns:
            parts.append(
                f"in {one.turns} of {one.place.size}, {name} collapsed at a lower rate but not at a higher one"
            )
    if allowance:
        parts.append(f"the interval includes a factor of {number(math.exp(allowance))} that the grid of rates hides")
    return "".join(f"; {part}" for part in parts)
