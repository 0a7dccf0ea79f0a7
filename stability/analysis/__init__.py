"""The analysis of a study: from results and claims to findings, with arms paired by seed and one verdict per claim."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from stability import contrasts, stats
from stability.analysis.cells import cells_of
from stability.analysis.controls import controls_of, with_sensitivity
from stability.analysis.findings import Finding, Findings, Ranked, Replication, findings_text, look_sentence
from stability.analysis.loader import load_results, load_to_show
from stability.analysis.pairing import array_of, contrast_inputs, reading_of, run_values
from stability.contrasts import contrast
from stability.probes import Measure
from stability.registration import Registration, name_of, registration_of
from stability.reproductions import reproduce
from stability.results import (
    FLOOR,
    Replicated,
    Results,
    Tuning,
    run_frame,
    steps_to_threshold,
    summarize,
    transformed,
)
from stability.sensitivity import NOTHING, Question, sensitivity
from stability.stats.divergences import nothing_happened
from stability.study import LATE, Claim, Ranking, Study, command_of
from stability.vocabulary import NOT_TESTABLE

__all__ = [
    "FLOOR",
    "LATE",
    "MIN_CHANCE_RATIO",
    "Finding",
    "Findings",
    "Ranked",
    "Replication",
    "Results",
    "Tuning",
    "analyze",
    "compared",
    "findings_text",
    "load_results",
    "load_to_show",
    "look_sentence",
    "run_frame",
    "steps_to_threshold",
    "summarize",
    "transformed",
]

ALPHA = 0.05
"""The error rate that all claims of a study share, at all of its looks."""


MIN_CHANCE_RATIO = 3.0
"""A bounded measure must be this many times its chance level in the clean cells of each arm to be testable."""


def analyze(results: Results, checks: bool = True) -> Findings:
    """Return the findings of a study: each claim's effect, intervals, verdict, and its sensitivity checks if *checks*.

    Intervals have confidence 1 - .05/k for k claims (Bonferroni), so verdict and interval cannot disagree.
    """
    study, registration = results.study, _registration(results)
    findings = _family(results, checks)
    primary = next((finding.verdict for finding in findings if finding.primary), NOT_TESTABLE)
    untuned = _family(results.untuned, checks=False) if results.untuned else ()
    return Findings(
        study=study.name,
        scale=study.scale,
        study_hash=study.hash,
        verdict=primary,
        provenance=provenance(results),
        claims=findings,
        untuned=untuned,
        rankings=tuple(_ranked(results, entry, registration) for entry in study.rankings),
        published=tuple(reproduce(results, entry) for entry in study.published),
        looks=_looks(study),
        replications=tuple(_replication(study, replication) for replication in results.replications),
        registration=_registered(study, registration),
    )


def _registration(results: Results) -> Registration:
    """Return how what the study claims stands against the record of its run directory."""
    runs = {str(arm): {*ids} for arm, ids in results.runs.groupby("arm", sort=False)["run"]}
    return registration_of(results.study, results.record, runs)


def _registered(study: Study, registration: Registration) -> dict[str, Any]:
    """Return what the findings say of the registration in general; the rest is said of each claim and ranking."""
    if not registration.recorded:
        return {"recorded": False, "note": registration.note}
    withdrawn = [{"table": one.table, "id": one.name, "was": one.text} for one in registration.withdrawn]
    # Where no look is recorded, this is the first one.
    looked = {} if study.looks else {"seeds_at_first_look": registration.first_look or study.grid.seeds}
    return {"recorded": True, **looked, "withdrawn": withdrawn}


def _replication(original: Study, replication: Replicated) -> Replication:
    """Return the outcome of a replication; its claims are tested only if all of its runs are there."""
    study, results = replication.study, replication.results
    complete = results is not None and not replication.missing
    counts = provenance(results) if results else {}
    return Replication(
        name=study.replication,
        data=study.data.name,
        other_data=study.data.name != original.data.name,
        changes=study.changes,
        study_hash=study.hash,
        missing=replication.missing,
        counts={key: counts[key] for key in ("seeds", "planned", "finished", "diverged", "failed") if counts},
        claims=_family(results, checks=False) if results and complete else (),
    )


def claim_confidence(study: Study, withdrawn: int = 0) -> float:
    """Return the confidence of each interval: alpha = .05 is shared among registered looks, then among claims.

    Claims that were *withdrawn* after their runs keep their shares, so that no deletion narrows the other intervals.
    """
    per_look = 1 - ALPHA / max(1, len(study.looks))
    return stats.shared_confidence(max(1, len(study.claims) + withdrawn), per_look)


def _family(results: Results, checks: bool) -> tuple[Finding, ...]:
    registration = _registration(results)
    withdrawn = sum(one.table == "claims" for one in registration.withdrawn)
    confidence = claim_confidence(results.study, withdrawn)
    findings = [_finding(results, claim, confidence, checks) for claim in results.study.claims]
    p_values = [*(finding.p_value for finding in findings), *[math.nan] * withdrawn]
    adjusted = np.minimum(1, stats.adjust(p_values) * max(1, len(results.study.looks)))
    standings = [registration.of("claims", finding.id) for finding in findings]
    return tuple(
        replace(
            finding,
            p_adjusted=float(p) if math.isfinite(finding.p_value) else math.nan,
            registration=standing.status,
            registration_note=standing.note if standing.status == "exploratory" else "",
        )
        for finding, p, standing in zip(findings, adjusted.tolist()[: len(findings)], standings, strict=True)
    )


def _looks(study: Study) -> dict[str, Any]:
    """Return the registered looks, the current one (by its seeds), and the alpha spent up to it."""
    if not study.looks:
        return {}
    past_looks = [n for n in study.looks if n <= study.grid.seeds]
    return {
        "seeds": list(study.looks),
        "at": study.grid.seeds,
        "alpha_spent": ALPHA * len(past_looks) / len(study.looks),
    }


def provenance(results: Results) -> dict[str, Any]:
    """Return the origin of results without times or paths: versions, device, seeds, counts and the command."""
    counts = results.runs["status"].value_counts()
    manifest, study = results.manifest, results.study
    return {
        "versions": manifest["versions"],
        "device": manifest["device"],
        "git_commit": ", ".join(sorted({group["git_commit"] for group in manifest["groups"] if "git_commit" in group})),
        "seeds": study.grid.seeds,
        "planned": len(results.runs),
        "finished": int(counts.get("finished", 0) + counts.get("diverged", 0)),
        "diverged": int(counts.get("diverged", 0)),
        "failed": int(counts.get("failed", 0)),
        **({"tuning_runs": len(results.tuning.tried)} if results.tuning else {}),
        "command": f"{command_of(study)} --scale {study.scale} --device {manifest['device']['type']}"
        + (f" --until-settled {study.looks[-1]}" if study.looks else ""),
    }


def compared(results: Results, claim: Claim, confidence: float) -> stats.Comparison:
    """Return the comparison of a claim's two arms by its contrast, over the runs that exist."""
    arms, supplied = contrast_inputs(results, claim, confidence)
    return contrasts.compare(claim.contrast, *arms, supplied=supplied, where=f"claims.{claim.id}")


def _finding(results: Results, claim: Claim, confidence: float, checks: bool) -> Finding:
    measure = results.measures[claim.measure]
    reduction, scale = reading_of(claim, measure)
    arms, supplied = contrast_inputs(results, claim, confidence)
    comparison = contrasts.compare(claim.contrast, *arms, supplied=supplied, where=f"claims.{claim.id}")
    levels = cells_of(results, claim)
    cells = contrasts.in_each_cell(claim.contrast, *arms, supplied=supplied, cells=levels, where=f"claims.{claim.id}")
    verdict = stats.verdict(comparison, expect=claim.expect, margin=claim.margin, cells=cells)
    why = _near_chance(results, claim, contrast[claim.contrast].traits.on, scale, reduction)
    if why := why or _nothing_happened(results, claim, arms):
        verdict = stats.Verdict(NOT_TESTABLE, why, f"Not testable: {why}.")
    elif verdict.verdict == NOT_TESTABLE and comparison.left_out and (lost := _lost(results, claim)):
        why = f"{verdict.reason}; {lost}"
        verdict = replace(verdict, reason=why, sentence=f"Not testable: {why}.")
    controls = controls_of(results, claim, confidence)
    verdict, assay = with_sensitivity(verdict, claim, controls)
    question = Question(claim.contrast, supplied, claim.expect, claim.margin, tuple(levels), cells)
    return Finding(
        id=claim.id,
        primary=claim.primary,
        text=claim.text,
        source=claim.source or results.study.source,
        measure=claim.measure,
        contrast=claim.contrast,
        compare=claim.compare,
        expect=claim.expect,
        verdict=verdict.verdict,
        reason=verdict.reason,
        effect=comparison.effect,
        interval=comparison.interval,
        equivalence_interval=comparison.equivalence_interval,
        confidence=confidence,
        margin=claim.margin,
        ratio=comparison.ratio,
        n_pairs=comparison.n,
        p_value=comparison.p_value,
        p_adjusted=math.nan,
        p_sign_flip=stats.sign_flip(comparison.per_seed) if comparison.testable else math.nan,
        seeds_to_settle=verdict.seeds_to_settle,
        sentence=verdict.sentence,
        method=comparison.method,
        assumptions=comparison.assumptions,
        sensitivity=sensitivity(comparison, verdict.verdict, arms, question) if checks else NOTHING,
        against_measure=claim.against_measure,
        cells=cells,
        depends_on=verdict.depends_on,
        controls=controls,
        assay_sensitivity=assay,
    )


def _ranked(results: Results, request: Ranking, registration: Registration) -> Ranked:
    """Return a ranking: cells are averaged per seed on the measure's scale; all pairs of all rankings hold at 95%."""
    study, measure = results.study, results.measures[request.measure]
    assert measure.better
    names = study.ranked(request)
    # A claim of a difference defines how runs are read; its two arms do not matter.
    claim = Claim(
        id="ranking",
        text=measure.label,
        measure=measure.name,
        contrast="difference",
        compare=(names[0], names[1]),
        expect="equal",
        margin=1.0,
        reduction=request.reduction,
        transform=request.transform,
    )
    reduction, scale = reading_of(claim, measure)
    numbers = run_values(results, claim, measure.name, "transform", reduction, scale)
    values = np.stack([array_of(results, claim, name, numbers).mean(axis=(1, 2)) for name in names], axis=1)
    confidence = 1 - ALPHA / max(1, len(study.looks)) / len(study.rankings)
    ranking = stats.ranking(values, names, better=measure.better, confidence=confidence)
    standing = registration.of("rankings", name_of(request))
    note = standing.note if standing.status == "exploratory" else ""
    return Ranked(measure.name, measure.label, reduction, scale, measure.better, ranking, standing.status, note)


def _lost(results: Results, claim: Claim) -> str:
    """Return how many runs of a claim's arms failed or diverged, in words; empty if none did."""
    status = results.runs.loc[results.runs["arm"].isin(claim.compare), "status"]
    status_words = {"failed": "failed", "diverged": "diverged (they end no better than chance)"}
    counts = {words: int((status == word).sum()) for word, words in status_words.items()}
    listed = " and ".join(f"{count} {words}" for words, count in counts.items() if count)
    return f"of the {len(status)} runs of its arms {listed}" if listed else ""


def _nothing_happened(results: Results, claim: Claim, arms: list[np.ndarray]) -> str:
    """Return that no run of either arm had an event, for a claim on rates of events, in words; else empty."""
    on_rates = all(results.measures[name].spikes for name in claim.measures)
    if not on_rates or contrast[claim.contrast].traits.on not in ("transform", "raw"):
        return ""
    values = np.concatenate([arm.ravel() for arm in arms])
    values = values[np.isfinite(values)]
    return nothing_happened(claim.compare, "had a spike", len(values)) if len(values) and not values.any() else ""


def _near_chance(results: Results, claim: Claim, on: str, scale: str, reduction: str) -> str:
    """Return why a bounded measure cannot be compared (an arm's clean level is too close to chance), else empty."""
    if scale != "log_above_chance" or on != "transform":
        return ""
    reasons = (_too_low(results, claim, results.measures[name], reduction) for name in dict.fromkeys(claim.measures))
    return next(filter(None, reasons), "")


def _too_low(results: Results, claim: Claim, measure: Measure, reduction: str) -> str:
    values, chance = (
        summarize(results, name, how) for name, how in ((measure.name, reduction), (measure.chance, "final"))
    )
    runs = results.runs
    clean = runs[(runs["noise"] == runs["noise"].min()) & runs["arm"].isin(claim.compare)]
    times = clean.assign(times=(values / chance).reindex(clean["run"]).to_numpy())
    level = times.groupby(["arm", "batch_size"])["times"].mean().dropna()
    if not len(level) or level.min() >= MIN_CHANCE_RATIO:
        return ""
    arm, batch_size = level.idxmin()
    return (
        f"{arm} at batch size {batch_size} reaches only {level.min():.1f} times the chance level of {measure.label} "
        f"without noise, and {MIN_CHANCE_RATIO:g} are needed"
    )
