"""How many seeds each claim of a study needs, from pilot data or from an assumed spread, never from the effect seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from scipy.special import chdtri

from stability import analysis, stats
from stability.analysis import Results, claim_confidence, compared
from stability.contrasts import contrast
from stability.probes import Measure
from stability.registry import InputError
from stability.results import LOGARITHMS
from stability.study import Claim, Study

TARGET = 0.8
"""The chance of finding a difference of the margin, and of showing equality, that is planned for."""

MOST_MARGINS = 100
"""A standard deviation beyond so many margins needs more seeds than anyone would train."""


@dataclass(frozen=True)
class Need:
    """The seeds that one claim needs, or *why* that cannot be said.

    *width* is the margin and *sd* the standard deviation of the seeds' differences, both on the scale of the test
    (logs for a ratio); *pilot* counts the seeds that *sd* comes from (0: assumed), *bound* is its upper 80% bound (*sd*
    itself where assumed). *likely* plans with *sd*, *safe* with *bound*: enough to find a difference of the margin, and
    to show two equal arms equivalent.
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
    """Return what each claim of *study* needs for a power of 80%, at the confidence that the study shares out.

    Without a *pilot* the differences are assumed to have a standard deviation of *assumed* times the margin. Noncentral
    t (`stats.power`) and the power of TOST (`stats.equivalence_power`). Raises `InputError` unless *assumed* is
    positive and the study has claims.
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
    if contrast[claim.contrast].traits["on"] == "diverged":
        why = "the power of a test of divergences hangs on how often one arm alone diverges, which no margin says"
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
    bound = sd * math.sqrt((n - 1) / float(chdtri(n - 1, TARGET))) if n else sd
    if bound > MOST_MARGINS * width:
        return replace(need, why=f"the differences vary more than {MOST_MARGINS} times the margin")
    likely, safe = (_settling(width, spread, confidence) for spread in (sd, bound))
    return replace(need, pilot=n, sd=sd, bound=bound, likely=likely, safe=safe, note=note)


def _is_ratio(claim: Claim, measure: Measure) -> bool:
    """Tell whether a claim's margin is one of ratios: by its contrast, or by a logarithmic scale."""
    variant = contrast[claim.contrast]
    return variant.traits["ratio"] or (
        "log" in variant.options and (claim.transform or measure.transform) in LOGARITHMS
    )


def _settling(width: float, sd: float, confidence: float) -> int:
    found = stats.seeds_needed(width, sd, confidence=confidence, target=TARGET)
    return max(found, stats.seeds_for_equivalence(width, sd, confidence=confidence, target=TARGET))


def power_curves(needs: Sequence[Need]) -> pd.DataFrame:
    """Return the power of each claim that could be planned over the seeds: to find a difference of the margin.

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
    """Return the results of *run_dir* as a pilot of *study*, or raise `InputError` if they are of another study."""
    results = analysis.load_results(run_dir)
    if results.study.name != study.name:
        raise InputError(f"{run_dir}: holds study {results.study.name!r}, not {study.name!r}; name a run of this study")
    missing = [claim.id for claim in study.claims if claim not in results.study.claims]
    if missing:
        raise InputError(f"{run_dir}: was run with other claims than {missing[0]!r}; run the study as it stands")
    return results
