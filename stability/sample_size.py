"""Sample size of each claim of a study, from pilot data or an assumed spread, never from the observed effect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from stability import analysis, stats
from stability.analysis import Results, claim_confidence, compared
from stability.contrasts import contrast
from stability.probes import Measure
from stability.registry import InputError
from stability.stats.planning import seeds_for_both, upper_sd
from stability.study import Claim, Study
from stability.vocabulary import TRANSFORMS

TARGET = 0.8
"""Planned power to detect a difference of the margin, and to show equality."""

MOST_MARGINS = 100
"""A standard deviation above this many margins needs an impractical number of seeds."""


@dataclass(frozen=True)
class Need:
    """The seeds that one claim needs to detect a difference of the margin and to show equivalence of equal arms.

    Attributes:
        id: Identifier of the claim.
        text: The claim in words.
        contrast: Name of the contrast.
        confidence: Confidence of its interval.
        width: The margin on the scale of the test (log for a ratio).
        pilot: Number of seeds that *sd* was estimated from; 0 if assumed.
        sd: Standard deviation of the seeds' differences on the scale of the test.
        bound: Upper 80% bound of *sd*; *sd* itself if assumed.
        likely: Seeds needed if the standard deviation is *sd*.
        safe: Seeds needed if it is *bound*.
        why: Why no number can be given; empty if there is one.
        note: A caveat.
    """

    id: str
    text: str
    contrast: str
    confidence: float
    width: float
    pilot: int = 0
    sd: float = math.nan
    bound: float = math.nan
    likely: int | None = None
    safe: int | None = None
    why: str = ""
    note: str = ""


def seeds_by_claim(study: Study, pilot: Results | None = None, assumed: float = 1.0) -> tuple[Need, ...]:
    """Return the seeds that each claim of *study* needs for a power of 80%, at its share of the study's confidence.

    Without a *pilot* the differences are assumed to have a standard deviation of *assumed* times the margin. Power is
    that of the noncentral t (`stats.power`) and of TOST (`stats.equivalence_power`).

    Raises:
        InputError: *assumed* is not positive, or the study has no claims.
    """
    if not (assumed > 0 and math.isfinite(assumed)):
        raise InputError(f"--sd: got {assumed}; allowed: a positive number, in units of the margin")
    if not study.claims:
        raise InputError(f"the study {study.name!r} has no claims, so there is nothing to plan for")
    return tuple(_need(study, claim, pilot, assumed) for claim in study.claims)


def _need(study: Study, claim: Claim, pilot: Results | None, assumed: float) -> Need:
    confidence, ratio = claim_confidence(study), _is_ratio(claim, study.measures[claim.measure])
    high = stats.margin_region(claim.margin, ratio)[1]
    width = math.log(high) if ratio else high
    need = Need(claim.id, claim.text, claim.contrast, confidence, width)
    traits = contrast[claim.contrast].traits
    if traits.on_events:
        why = (
            "the power also depends on the grid of rates, which the margin does not specify"
            if traits.axes
            else "power for divergence tests depends on the discordant rate, which the margin does not specify"
        )
        return replace(need, why=why)
    note = "approximate: of the jackknife's pseudo-values" if claim.contrast == "spread" else ""
    sd, n = assumed * width, 0
    if pilot is not None:
        comparison = compared(pilot, claim, confidence)
        if not comparison.testable:
            return replace(need, why=f"the pilot cannot be tested: {comparison.problem}")
        sd, n = comparison.sd, comparison.n
        if not (math.isfinite(sd) and sd > 0):
            return replace(need, why=f"the differences of the pilot's {n} seeds do not vary")
    bound = upper_sd(sd, n) if n else sd
    if bound > MOST_MARGINS * width:
        return replace(need, why=f"the differences vary more than {MOST_MARGINS} times the margin")
    likely, safe = (seeds_for_both(width, spread, confidence=confidence, target=TARGET) for spread in (sd, bound))
    return replace(need, pilot=n, sd=sd, bound=bound, likely=likely, safe=safe, note=note)


def _is_ratio(claim: Claim, measure: Measure) -> bool:
    """Return whether a claim's margin is a ratio, because of its contrast or of a logarithmic scale."""
    variant = contrast[claim.contrast]
    return variant.traits.ratio or ("log" in variant.options and TRANSFORMS[claim.transform or measure.transform].log)


def power_curves(needs: Sequence[Need]) -> pd.DataFrame:
    """Return the power of each planned claim to detect a difference of the margin, by number of seeds.

    Columns: id, seeds, likely (at the pilot's standard deviation), safe (at its upper 80% bound).
    """
    planned = [need for need in needs if need.safe is not None]
    last = min(200, max((need.safe or 0 for need in planned), default=0) * 5 // 4 + 2)
    grid = sorted({*range(3, min(last, 40) + 1), *range(40, last + 1, 4)})
    rows = [
        {
            "id": need.id,
            "seeds": n,
            "likely": stats.power(n, need.width, need.sd, confidence=need.confidence),
            "safe": stats.power(n, need.width, need.bound, confidence=need.confidence),
        }
        for need in planned
        for n in grid
    ]
    return pd.DataFrame(rows, columns=["id", "seeds", "likely", "safe"])


def pilot_of(study: Study, run_dir: Path) -> Results:
    """Return the results of *run_dir* as a pilot of *study*, or raise `InputError` if they belong to another study."""
    results = analysis.load_results(run_dir)
    if results.study.name != study.name:
        raise InputError(f"{run_dir}: holds study {results.study.name!r}, not {study.name!r}; name a run of this study")
    missing = [claim.id for claim in study.claims if claim not in results.study.claims]
    if missing:
        raise InputError(f"{run_dir}: was run with other claims than {missing[0]!r}; run the study as it stands")
    return results
