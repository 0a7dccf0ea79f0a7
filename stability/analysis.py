"""Results and the study's claims in, findings out: one number a run, arms paired by seed, one verdict a claim."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stability import contrasts, stats
from stability.check import chance_level
from stability.contrasts import contrast
from stability.grid import runs_of
from stability.losses import loss
from stability.probes import Measure
from stability.store import read_groups, read_manifest
from stability.study import Claim, Study, parse_study
from stability.train.divergence import diverged_at

AXES = ("batch_size", "corruption", "noise", "lr")

LATE = 0.2
"""The late window: this last share of a run's steps."""

CLEAR = 3.0
"""A bounded measure must stand this many times above chance in the clean cells of either arm, or it is not testable."""

FLOOR = 1.1
"""A bounded measure below this many times chance is taken as this: its chance-corrected logarithm has no lower end."""


@dataclass(frozen=True)
class Results:
    """A run directory, read: the study, its manifest, one row per run, one row per run and step, and the measures."""

    study: Study
    manifest: dict[str, Any]
    runs: pd.DataFrame
    steps: pd.DataFrame
    measures: dict[str, Measure]


@dataclass(frozen=True)
class Finding:
    """What came of one claim. *effect* and intervals are on the scale of the contrast (a ratio where *ratio*)."""

    id: str
    primary: bool
    text: str
    source: str
    measure: str
    contrast: str
    compare: tuple[str, str]
    expect: str
    verdict: str
    reason: str
    effect: float
    interval: tuple[float, float]
    equivalence_interval: tuple[float, float]
    confidence: float
    margin: float
    ratio: bool
    n_pairs: int
    p_value: float
    p_adjusted: float
    p_sign_flip: float
    seeds_to_settle: int | None
    sentence: str
    method: str
    assumptions: str


@dataclass(frozen=True)
class Findings:
    """All findings of a study, its verdict (the primary claim's), and where they come from."""

    study: str
    scale: str
    study_hash: str
    verdict: str
    provenance: dict[str, Any]
    claims: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        """Return what findings.json holds: plain data without NaN or infinity (null instead)."""
        keys = ("study", "scale", "study_hash", "verdict", "provenance")
        claims = [{key: _plain(value) for key, value in vars(claim).items()} for claim in self.claims]
        return {"schema": 1, **{key: getattr(self, key) for key in keys}, "claims": claims}

    def _repr_html_(self) -> str:
        """Return a table of the claims and what came of each, for a notebook."""
        rows = "".join(
            f"<tr><td><b>{html.escape(claim.verdict)}</b></td><td>{html.escape(claim.text)}<br>"
            f"<small>{html.escape(claim.sentence)}</small></td></tr>"
            for claim in sorted(self.claims, key=lambda claim: not claim.primary)
        )
        title = f"{html.escape(self.study)} ({html.escape(self.scale)}): {html.escape(self.verdict)}"
        return f"<table><caption>{title}</caption><tbody>{rows}</tbody></table>"


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return [_plain(part) for part in value] if isinstance(value, tuple) else value


# --- reading ---------------------------------------------------------------------------------------------------------


def read(run_dir: str | Path, warn: Callable[[str], None] = lambda sentence: None) -> Results:
    """Return the results of a run directory, finished or not; *warn* gets a sentence on each damaged file.

    Raises `InputError` if no run lies there.
    """
    where = Path(run_dir)
    manifest = read_manifest(where)
    study = parse_study(manifest["study_text"], str(where / "manifest.json"), manifest["study"], manifest["scale"])
    # In the order of the study, so that nothing depends on the order in which groups were finished.
    place = {run.id: number for number, run in enumerate(runs_of(study))}
    steps = read_groups(where, manifest["groups"], warn)
    steps = steps.assign(place=steps["run"].map(place)).dropna(subset=["place"])
    steps = steps.sort_values(["place", "step"], kind="stable").drop(columns="place").reset_index(drop=True)
    return Results(study, manifest, run_frame(study, manifest, steps), steps, study.measures)


def run_frame(study: Study, manifest: Mapping[str, Any], steps: pd.DataFrame) -> pd.DataFrame:
    """Return one row per run of the grid: its cell, status (finished, diverged, failed, planned) and divergence."""
    status = {run: group["status"] for group in manifest["groups"] for run in group["runs"]}
    losses = dict(iter(steps.groupby("run", sort=False)["loss"]))
    chance = {
        (arm, size): chance_level(loss[study.arm(arm).loss], size)
        for arm in study.grid.loss
        for size in study.grid.batch_size
    }
    rows = []
    for run in runs_of(study):
        row = {"run": run.id, **{key: getattr(run, key) for key in ("arm", "seed", *AXES)}}
        row |= {"status": status.get(run.id, "planned"), "diverged_at": math.nan}
        if row["status"] == "finished" and run.id not in losses:
            row["status"] = "planned"
        if run.id in losses:
            logged = losses[run.id].to_numpy()[: study.train.steps]
            step = diverged_at(logged, chance[run.arm, run.batch_size], study.train.warmup)
            row |= {
                "status": "finished" if step is None else "diverged",
                "diverged_at": math.nan if step is None else step,
            }
        rows.append(row)
    return pd.DataFrame(rows)


# --- one number a run ------------------------------------------------------------------------------------------------


def summarise(results: Results, name: str, reduction: str) -> pd.Series:
    """Return one number per run (indexed by run) for a measure: its final, best or late value, or its area.

    late: mean over the last fifth of the steps; area: that under the curve after warm-up, per step; a pooled measure
    is the ratio of the two means.
    """
    measure, train = results.measures[name], results.study.train
    if measure.pooled:
        top, bottom = (summarise(results, part, reduction) for part in measure.pooled)
        return top / bottom
    rows = results.steps[["run", "step", name]].dropna()
    if reduction == "late":
        rows = rows[rows["step"] >= (1 - LATE) * train.steps]
    elif reduction == "area":
        rows = rows[rows["step"] >= train.warmup]
        return rows.groupby("run", sort=False)[["step", name]].apply(_area)
    by_run = rows.groupby("run", sort=False)[name]
    if reduction == "final":
        return by_run.last().astype(float)
    if reduction == "best":
        return (by_run.max() if measure.better == "higher" else by_run.min()).astype(float)
    return by_run.agg(lambda values: float(np.mean(values.to_numpy(np.float64))))


def _area(curve: pd.DataFrame) -> float:
    """Return the mean height of a curve of (step, value) rows, by the trapezoidal rule; of one point, its height."""
    steps, values = (curve.iloc[:, column].to_numpy(np.float64) for column in (0, 1))
    return float(np.trapezoid(values, steps) / (steps[-1] - steps[0])) if len(steps) > 1 else float(values[0])


def times_to(results: Results, name: str, threshold: float) -> pd.Series:
    """Return per run the first measured step with a measure at the threshold or better; infinity if there is none."""
    rows = results.steps[["run", "step", name]].dropna()
    better = results.measures[name].better
    reached = rows[rows[name] >= threshold] if better == "higher" else rows[rows[name] <= threshold]
    first = reached.groupby("run", sort=False)["step"].min().astype(float)
    return first.reindex(results.runs["run"], fill_value=math.inf)


def on_scale(results: Results, name: str, values: pd.Series, scale: str) -> pd.Series:
    """Return one number per run on the scale on which arms are contrasted (see `probes.Measure`)."""
    if scale == "log":
        return np.log(values.where(values > 0))
    if scale == "chance-log":
        chance = summarise(results, results.measures[name].chance, "final").reindex(values.index)
        return np.log((np.maximum(values, FLOOR * chance) - chance) / (1 - chance))
    return values


# --- one verdict a claim ---------------------------------------------------------------------------------------------


def analyse(results: Results) -> Findings:
    """Return the findings of a study: each claim's effect, intervals and verdict.

    Intervals are at confidence 1 - .05/k for k claims (Bonferroni), so verdict and interval cannot disagree.
    """
    study = results.study
    confidence = stats.shared_confidence(max(1, len(study.claims)))
    found = [_finding(results, claim, confidence) for claim in study.claims]
    adjusted = stats.adjust([finding.p_value for finding in found])
    findings = tuple(
        replace(finding, p_adjusted=float(p) if math.isfinite(finding.p_value) else math.nan)
        for finding, p in zip(found, adjusted, strict=True)
    )
    primary = next((finding.verdict for finding in findings if finding.primary), "not-testable")
    return Findings(study.name, study.scale, study.hash, primary, provenance(results), findings)


def provenance(results: Results) -> dict[str, Any]:
    """Return where results come from, without times or paths: versions, device, seeds, counts and the command."""
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
        "command": f"stability run {study.name} --scale {study.scale} --device {manifest['device']['type']}",
    }


def _finding(results: Results, claim: Claim, confidence: float) -> Finding:
    variant = contrast[claim.contrast]
    measure = results.measures[claim.measure]
    reduction = claim.reduction or variant.traits["reduction"]
    scale = claim.scale or measure.scale
    arms = [
        _array(results, claim, arm, _numbers(results, claim, variant.traits["on"], reduction, scale))
        for arm in claim.compare
    ]
    supplied = {
        "confidence": confidence,
        "levels": sorted(getattr(results.study.grid, claim.over)) if claim.over else (0.0,),
        "log": scale != "linear",
        "budget": float(results.study.train.steps),
        "names": claim.compare,
        "measure": _in_words(claim, measure, scale),
    }
    comparison = contrasts.compare(claim.contrast, *arms, supplied=supplied, where=f"claims.{claim.id}")
    decided = stats.verdict(comparison, expect=claim.expect, margin=claim.margin)
    if why := _near_chance(results, claim, measure, variant.traits["on"], scale, reduction):
        decided = stats.Verdict("not-testable", why, f"Not testable: {why}.")
    return Finding(
        id=claim.id,
        primary=claim.primary,
        text=claim.text,
        source=claim.source or results.study.source,
        measure=claim.measure,
        contrast=claim.contrast,
        compare=claim.compare,
        expect=claim.expect,
        verdict=decided.verdict,
        reason=decided.reason,
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
        seeds_to_settle=decided.seeds_to_settle,
        sentence=decided.sentence,
        method=comparison.method,
        assumptions=comparison.assumptions,
    )


def _in_words(claim: Claim, measure: Measure, scale: str) -> str:
    label = measure.label[:1].lower() + measure.label[1:]
    if claim.threshold is not None:
        return f"a {label} of {claim.threshold:g}"
    return f"log chance-corrected {label}" if scale == "chance-log" and claim.over else label


def _numbers(results: Results, claim: Claim, on: str, reduction: str, scale: str) -> pd.Series:
    """Return one number per run, as the contrast takes it, with diverged runs as the claim's measure has them."""
    runs = results.runs.set_index("run")
    diverged = runs["status"] == "diverged"
    if on == "diverged":
        return diverged.astype(float).where(runs["status"].isin(["finished", "diverged"]))
    if on == "times":
        assert claim.threshold is not None
        times = times_to(results, claim.measure, claim.threshold)
        return times.where(~diverged, math.inf).where(runs["status"].isin(["finished", "diverged"]))
    values = summarise(results, claim.measure, reduction).reindex(runs.index)
    chance = results.measures[claim.measure].chance
    # A diverged run has learnt nothing: chance where a measure is bounded; elsewhere there is no such level.
    level = summarise(results, chance, "final").reindex(runs.index) if chance else math.nan
    values = values.where(~diverged, level)
    return values if on == "raw" else on_scale(results, claim.measure, values, scale)


def _array(results: Results, claim: Claim, arm: str, numbers: pd.Series) -> np.ndarray:
    """Return one arm's numbers as (seeds, levels, cells): levels along the claim's axis, cells along all others."""
    runs = results.runs[results.runs["arm"] == arm]
    level = runs[claim.over] if claim.over else 0
    cells = [axis for axis in AXES if axis != claim.over]
    frame = runs.assign(number=numbers.loc[runs["run"]].to_numpy(), level=level)
    # The grid is a full product, so sorting puts every run in its place.
    ordered = frame.sort_values(["seed", "level", *cells])["number"].to_numpy(dtype=float)
    return ordered.reshape(frame["seed"].nunique(), frame["level"].nunique(), -1)


def _near_chance(results: Results, claim: Claim, measure: Measure, on: str, scale: str, reduction: str) -> str:
    """Return why a bounded measure cannot be compared: an arm's clean level is too close to chance; else nothing."""
    if scale != "chance-log" or on != "scale":
        return ""
    values, chance = (
        summarise(results, name, how) for name, how in ((claim.measure, reduction), (measure.chance, "final"))
    )
    runs = results.runs
    clean = runs[(runs["noise"] == runs["noise"].min()) & runs["arm"].isin(claim.compare)]
    times = clean.assign(times=(values / chance).reindex(clean["run"]).to_numpy())
    level = times.groupby(["arm", "batch_size"])["times"].mean().dropna()
    if not len(level) or level.min() >= CLEAR:
        return ""
    arm, batch_size = level.idxmin()
    return (
        f"{arm} at batch size {batch_size} reaches only {level.min():.1f} times the chance level of {measure.label} "
        f"without noise, and {CLEAR:g} are needed"
    )


def findings_text(findings: Findings) -> str:
    """Return findings.json as text: sorted as written, two spaces, a newline at the end."""
    return json.dumps(findings.to_json(), indent=2, allow_nan=False) + "\n"
