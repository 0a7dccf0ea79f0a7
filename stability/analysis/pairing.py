"""The two arms of a claim as arrays of one number per run, (seeds, levels of the claim's axis, other cells)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from stability import stats
from stability.contrasts import contrast
from stability.probes import Measure
from stability.results import (
    Results,
    chance_losses,
    diverged_level,
    steps_to_threshold,
    summarize,
    transformed,
)
from stability.study import Claim, Study
from stability.vocabulary import REDUCTIONS, TRANSFORMS, axes_in, axis_of

ContrastInputs = tuple[list[np.ndarray], dict[str, Any]]
"""The arrays of a claim's two arms, and the other arguments that its contrast may take."""


def contrast_inputs(results: Results, claim: Claim, confidence: float) -> ContrastInputs:
    """Return the arrays of a claim's two arms, and the other arguments that its contrast may take."""
    variant = contrast[claim.contrast]
    measure = results.measures[claim.measure]
    reduction, scale = reading_of(claim, measure)
    arms = [
        array_of(results, claim, arm, run_values(results, claim, name, variant.traits.on, reduction, scale))
        for arm, name in zip(claim.compare, claim.measures, strict=True)
    ]
    names, axis = claim.compare, axis_of(claim.axis) if claim.axis else None
    if claim.against_measure:
        names = (
            claim.compare[0],
            stats.wording.own_measure(_in_words(claim, results.measures[claim.against_measure], scale)),
        )
    supplied = {
        "confidence": confidence,
        "levels": levels_of(results.study, claim.axis),
        "per": axis.per if axis else "",
        "axis": axis.label if axis else "level",
        "better": measure.better,
        "log": TRANSFORMS[scale].log,
        "budget": float(results.study.train.steps),
        "names": names,
        "measure": _in_words(claim, measure, scale),
    }
    return arms, supplied


def levels_of(study: Study, axis: str) -> tuple[float, ...]:
    """Return the sorted values of an axis as slopes use them: see `vocabulary.Axis.position`."""
    return tuple(axis_of(axis).position(level) for level in sorted(study.grid.values(axis))) if axis else (0.0,)


def reading_of(claim: Claim, measure: Measure) -> tuple[str, str]:
    """Return the reduction and the scale that a claim applies to its measure."""
    return claim.reduction or contrast[claim.contrast].traits.reduction, claim.transform or measure.transform


def _in_words(claim: Claim, measure: Measure, scale: str) -> str:
    """Return the words for a measure as a claim compares it: with its scale, and the time in a run if not the end.

    A contrast that gives a ratio on a logarithmic scale is described by levels, any other by their logarithms.
    """
    variant, label = contrast[claim.contrast], measure.inline_label
    if claim.threshold is not None:
        return f"a {label} of {claim.threshold:g}"
    words = [label, REDUCTIONS[claim.reduction].adverb if claim.reduction else ""]
    if scale == "relative_to_chance":
        words.insert(1, "as a share of chance")
    if variant.traits.on == "transform":
        words.insert(1, "above chance" if scale == "log_above_chance" else "")
        words.insert(0, "log" if TRANSFORMS[scale].log and "log" not in variant.options else "")
    return " ".join(filter(None, words))


def run_values(results: Results, claim: Claim, name: str, on: str, reduction: str, scale: str) -> pd.Series:
    """Return one number per run of a measure, as the contrast takes it; a diverged run has the chance level or NaN.

    Args:
        results: The results of the study.
        claim: The claim, for its threshold.
        name: The measure.
        on: What the contrast compares (see `ContrastTraits.on`).
        reduction: How the steps of a run become one number.
        scale: The transform.
    """
    runs = results.runs.set_index("run")
    diverged = runs["status"] == "diverged"
    if on == "diverged":
        return diverged.astype(float).where(runs["status"].isin(["finished", "diverged"]))
    if on == "collapsed":
        return runs["collapsed"].where(runs["status"].isin(["finished", "diverged"]))
    if on == "times":
        assert claim.threshold is not None
        times = steps_to_threshold(results, name, claim.threshold)
        return times.where(~diverged, math.inf).where(runs["status"].isin(["finished", "diverged"]))
    values = summarize(results, name, reduction).reindex(runs.index)
    if reduction == "first":
        # Measured before the first step, so a later divergence does not matter.
        return values if on == "raw" else transformed(results, name, values, scale)
    level = chance_losses(results) if scale == "relative_to_chance" else diverged_level(results, name)
    level = level.reindex(runs.index) if isinstance(level, pd.Series) else level
    values = values.where(~diverged, level)
    return values if on == "raw" else transformed(results, name, values, scale)


def array_of(results: Results, claim: Claim, arm: str, numbers: pd.Series) -> np.ndarray:
    """Return one arm's numbers as (seeds, levels, cells): levels of the claim's axis, cells of all other axes.

    Args:
        results: The results of the study.
        claim: The claim, for its axis.
        arm: The arm.
        numbers: One number per run, indexed by run.
    """
    runs = results.runs[results.runs["arm"] == arm]
    axis = results.study.grid.column(claim.axis)
    level = runs[axis] if axis else 0
    cells = [other for other in axes_in(runs.columns) if other != axis]
    frame = runs.assign(number=numbers.loc[runs["run"]].to_numpy(), level=level)
    # The grid is a full product, so sorted runs can be reshaped.
    ordered = frame.sort_values(["seed", "level", *cells])["number"].to_numpy(dtype=float)
    return ordered.reshape(frame["seed"].nunique(), frame["level"].nunique(), -1)
