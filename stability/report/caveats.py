"""Caveats of a verdict: cells that disagree, small effects, coarse time resolution, sharpness without a threshold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from stability import contrasts
from stability.analysis import Finding, Findings, Results, steps_to_threshold
from stability.analysis.cells import Heterogeneity, heterogeneity_of
from stability.analysis.pairing import ContrastInputs, contrast_inputs
from stability.contrasts import contrast
from stability.optimizers import optimizer
from stability.report.tables import effect_in_words
from stability.stats.wording import number, percent
from stability.study import Claim
from stability.vocabulary import NOT_TESTABLE

TITLES = {"turns": "Opposite signs between cells", "differs": "Heterogeneous effect between cells"}


@dataclass(frozen=True)
class Caveats:
    """What the data say against the verdicts of a study, by claim id.

    Attributes:
        heterogeneity: How the effects in the claim's cells disagree.
        idle: For an uninformative equality, a title and a sentence.
    """

    heterogeneity: Mapping[str, Heterogeneity]
    idle: Mapping[str, tuple[str, str]]


def caveats_of(results: Results, findings: Findings) -> Caveats:
    """Return what the data say against the verdict of each tested claim."""
    heterogeneity: dict[str, Heterogeneity] = {}
    idle: dict[str, tuple[str, str]] = {}
    for claim, finding in zip(results.study.claims, findings.claims, strict=True):
        if finding.verdict == NOT_TESTABLE:
            continue
        inputs = contrast_inputs(results, claim, finding.confidence)
        if disagreement := heterogeneity_of(finding.cells, finding.ratio, finding.margin):
            heterogeneity[claim.id] = disagreement
        if note := _idle(claim, finding, inputs):
            idle[claim.id] = note
    return Caveats(heterogeneity, idle)


def doubtful(findings: Findings, caveats: Caveats) -> Iterator[tuple[str, str]]:
    """Yield a limitation for each caveat of a claim."""
    for finding in findings.claims:
        if disagreement := caveats.heterogeneity.get(finding.id):
            yield (
                TITLES[disagreement.how],
                f"“{finding.text}”: {disagreement.sentence} (intervals that hold for all cells together). The effect "
                f"given, {effect_in_words(finding.effect, finding.ratio)}, is the mean over the cells.",
            )
        if note := caveats.idle.get(finding.id):
            yield note[0], f"“{finding.text}”: {note[1]}"


def coarse(results: Results, findings: Findings) -> Iterator[tuple[str, str]]:
    """Yield a limitation per claim whose time to threshold has a resolution coarser than its margin."""
    for claim, finding in zip(results.study.claims, findings.claims, strict=True):
        if claim.threshold is None or finding.verdict == NOT_TESTABLE:
            continue
        measured = results.steps.loc[results.steps[claim.measure].notna(), "step"].unique()
        stride = int(np.diff(np.sort(measured)).min()) if len(measured) > 1 else 0
        arms = results.runs.loc[results.runs["arm"].isin(claim.compare), "run"]
        times = steps_to_threshold(results, claim.measure, claim.threshold)[arms]
        typical = float(times.median())
        if math.isfinite(typical) and stride > claim.margin * typical:
            yield (
                "Coarse time resolution",
                f"“{claim.text}”: measured every {stride} steps, and half of the runs reached the threshold by step "
                f"{typical:g}, so a single run's time has a resolution of {percent(stride / typical)}; only a mean "
                f"over runs can be finer than the margin of {percent(claim.margin)}.",
            )


def _idle(claim: Claim, finding: Finding, inputs: ContrastInputs) -> tuple[str, str] | None:
    """Return a title and a sentence if both sides of an equality are closer to 0 than the margin."""
    equal = "supported" if finding.expect == "equal" else "equivalent"
    if finding.verdict != equal or finding.ratio or contrast[claim.contrast].traits.on == "times":
        return None
    arms, supplied = inputs
    first, other = (
        contrasts.compare(claim.contrast, arm, np.zeros_like(arm), supplied=supplied).effect for arm in arms
    )
    if not max(abs(first), abs(other)) < finding.margin:
        return None
    if all(np.all(arm[np.isfinite(arm)] == 0) for arm in arms):
        return "Nothing happened", "Both sides are 0 in every run, so this equality is uninformative."
    return (
        "A margin wider than what it judges",
        f"Both sides, {number(first)} and {number(other)}, are smaller than the margin of {number(finding.margin)}, so "
        "that a difference as large had little room to show.",
    )


def without_threshold(results: Results) -> Iterator[tuple[str, str]]:
    """Yield the optimizers under which a sharpness has no known threshold, if the study measured sharpness."""
    if "sharpness_ratio" not in results.steps:
        return
    traits = {name: optimizer[name].traits for name in sorted(results.study.optimizers)}
    names = [
        name for name, trait in traits.items() if trait.preconditioner is None or trait.stability_threshold is None
    ]
    if names:
        yield (
            "Sharpness without a threshold",
            f"Above which sharpness training becomes unstable is not known for {' and '.join(names)}: runs trained by "
            "it have no sharpness relative to a threshold.",
        )
