"""Results and the study's claims in, findings out: one number a run, arms paired by seed, one verdict a claim."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stability import contrasts, stats
from stability.agreement import Agreement, agreement
from stability.contrasts import contrast
from stability.grid import Run, runs_of
from stability.probes import Measure
from stability.registry import InputError
from stability.reproductions import Reproduction, reproduce
from stability.results import (
    AXES,
    FLOOR,
    LOGARITHMS,
    Replicated,
    Results,
    Tuning,
    chance_losses,
    on_scale,
    run_frame,
    summarise,
    times_to,
)
from stability.sensitivity import NOTHING, Question, Sensitivity, sensitivity
from stability.store import MANIFEST, read_groups, read_manifest, read_study, replication_path
from stability.study import DOUBLING, LATE, Claim, Ranking, Study
from stability.tuning import search

__all__ = [
    "AXES",
    "CLEAR",
    "FLOOR",
    "LATE",
    "Finding",
    "Findings",
    "Replication",
    "Results",
    "Tuning",
    "analyse",
    "compared",
    "findings_text",
    "look_sentence",
    "on_scale",
    "read",
    "run_frame",
    "summarise",
    "times_to",
]

ALPHA = 0.05
"""The chance of a wrong direction that all claims of a study, at all its looks, share."""

AXIS_WORDS = {"batch_size": "batch size", "pairs": "number of training pairs", "lr": "learning rate"}

CLEAR = 3.0
"""A bounded measure must stand this many times above chance in the clean cells of either arm, or it is not testable."""


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
    sensitivity: Sensitivity
    against: str = ""

    @property
    def measures(self) -> tuple[str, str]:
        """Return the measures of both sides, which differ only where one is held against another."""
        return self.measure, self.against or self.measure


@dataclass(frozen=True)
class Ranked:
    """The arms of a study in the order of one measure; means and differences are on its *scale*, logs among them."""

    measure: str
    label: str
    reduction: str
    scale: str
    better: str
    found: stats.Ranking


@dataclass(frozen=True)
class Replication:
    """What came of the claims in a replication of the study; none while its runs are *missing*, in words.

    *data* names its dataset and *other_data* tells whether the study's is another one; *changes* says what else it has
    other than the study, as keys of the file.
    """

    name: str
    data: str
    other_data: bool
    changes: str
    study_hash: str
    missing: str
    counts: dict[str, int]
    claims: tuple[Finding, ...]


@dataclass(frozen=True)
class Findings:
    """All findings of a study, its verdict (the primary claim's), and where they come from.

    *untuned* holds the same claims tested without tuning, where the study asks for that: no part of the verdict, as
    *replications* are none. *looks* says which registered look this is, where there are any.
    """

    study: str
    scale: str
    study_hash: str
    verdict: str
    provenance: dict[str, Any]
    claims: tuple[Finding, ...]
    untuned: tuple[Finding, ...] = ()
    rankings: tuple[Ranked, ...] = ()
    published: tuple[Reproduction, ...] = ()
    looks: dict[str, Any] = field(default_factory=dict)
    replications: tuple[Replication, ...] = ()

    def agreement(self, claim: str) -> Agreement:
        """Return what the replications make of the claim with this id."""
        verdicts = {
            each.name: finding.verdict for each in self.replications for finding in each.claims if finding.id == claim
        }
        own = next(finding.verdict for finding in self.claims if finding.id == claim)
        return agreement(own, verdicts, [each.name for each in self.replications if each.missing])

    def to_json(self) -> dict[str, Any]:
        """Return what findings.json holds: plain data without NaN or infinity (null instead)."""
        keys = ("study", "scale", "study_hash", "verdict", "provenance")
        found = {name: [_as_json(claim) for claim in getattr(self, name)] for name in ("claims", "untuned")}
        plain = {"schema": 1, **{key: getattr(self, key) for key in keys}, **found}
        optional = ("untuned", "rankings", "published", "looks", "replications")
        plain |= {name: [_plain(one) for one in getattr(self, name)] for name in ("rankings", "published")}
        plain |= {"looks": self.looks, "replications": [_replication_as_json(each) for each in self.replications]}
        if self.replications:
            plain["agreement"] = {claim.id: vars(self.agreement(claim.id)) for claim in self.claims}
        return {key: value for key, value in plain.items() if value or key not in optional}

    def _repr_html_(self) -> str:
        """Return a table of the claims and what came of each, for a notebook."""
        rows = "".join(
            f"<tr><td><b>{html.escape(claim.verdict)}</b></td><td>{html.escape(claim.text)}<br>"
            f"<small>{html.escape(claim.sentence)}</small></td></tr>"
            for claim in sorted(self.claims, key=lambda claim: not claim.primary)
        )
        title = f"{html.escape(self.study)} ({html.escape(self.scale)}): {html.escape(self.verdict)}"
        return f"<table><caption>{title}</caption><tbody>{rows}</tbody></table>"


def _as_json(finding: Finding) -> dict[str, Any]:
    return {key: _plain(value) for key, value in vars(finding).items() if key != "against" or value}


REPLICATED = (
    "id",
    "verdict",
    "effect",
    "interval",
    "equivalence_interval",
    "confidence",
    "margin",
    "ratio",
    "n_pairs",
    "p_value",
    "sentence",
)
"""What findings.json says of a claim in a replication; the rest is as in the study, or of the study alone."""


def _replication_as_json(again: Replication) -> dict[str, Any]:
    claims = [{key: value for key, value in _as_json(claim).items() if key in REPLICATED} for claim in again.claims]
    return {key: value for key, value in vars(again).items() if key != "claims"} | {"claims": claims}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if is_dataclass(value):
        return {key: _plain(part) for key, part in vars(value).items()}
    return [_plain(part) for part in value] if isinstance(value, tuple) else value


# --- reading ---------------------------------------------------------------------------------------------------------


def read(run_dir: str | Path, warn: Callable[[str], None] = lambda sentence: None) -> Results:
    """Return the results of a run directory, finished or not; *warn* gets a sentence on each damaged file.

    Raises `InputError` if no run lies there.
    """
    where = Path(run_dir)
    manifest = read_manifest(where)
    study = read_study(manifest, where)
    found = _read(study, manifest, where, warn)
    if found is None:
        raise InputError(
            f"{where}: the tuning runs are not all finished, so no setting is chosen and nothing is tested; "
            "`stability run` goes on with them"
        )
    return replace(found, replications=tuple(_read_again(again, where, warn) for again in study.replications))


def _read_again(study: Study, where: Path, warn: Callable[[str], None]) -> Replicated:
    """Return what the directory *where* of a study holds of one of its replications, and what is missing of it."""
    place = replication_path(where, study.replication)
    if not (place / MANIFEST).is_file():
        return Replicated(study, None, "not begun")
    found = _read(study, read_manifest(place), place, warn)
    if found is None:
        return Replicated(study, None, "its tuning is not finished")
    missing = int((found.runs["status"] == "planned").sum())
    return Replicated(study, found, f"{missing:,} of {len(found.runs):,} runs are not finished" if missing else "")


def _read(study: Study, manifest: dict[str, Any], where: Path, warn: Callable[[str], None]) -> Results | None:
    """Return the results of one study in its directory; None while its tuning is not finished."""
    steps = read_groups(where, manifest["groups"], warn)
    if study.tune is None:
        return _results(study, manifest, steps, runs_of(study))
    tuning = search(study, manifest, steps)
    if tuning is None:
        return None
    untuned = _results(study, manifest, steps, runs_of(study)) if study.tune.untuned else None
    found = _results(study, manifest, steps, runs_of(study, tuning.chosen))
    return replace(found, tuning=tuning, untuned=untuned)


def _results(study: Study, manifest: dict[str, Any], steps: pd.DataFrame, runs: Sequence[Run]) -> Results:
    # In the order of the study, so that nothing depends on the order in which groups were finished.
    place = {run.id: number for number, run in enumerate(runs)}
    steps = steps.assign(place=steps["run"].map(place)).dropna(subset=["place"])
    steps = steps.sort_values(["place", "step"], kind="stable").drop(columns="place").reset_index(drop=True)
    return Results(study, manifest, run_frame(study, manifest, steps, runs), steps, study.measures)


# --- one verdict a claim ---------------------------------------------------------------------------------------------


def analyse(results: Results, checks: bool = True) -> Findings:
    """Return the findings of a study: each claim's effect, intervals, verdict, and its checks if *checks*.

    Intervals are at confidence 1 - .05/k for k claims (Bonferroni), so verdict and interval cannot disagree.
    """
    study = results.study
    findings = _family(results, checks)
    primary = next((finding.verdict for finding in findings if finding.primary), "not-testable")
    untuned = _family(results.untuned, checks=False) if results.untuned else ()
    return Findings(
        study=study.name,
        scale=study.scale,
        study_hash=study.hash,
        verdict=primary,
        provenance=provenance(results),
        claims=findings,
        untuned=untuned,
        rankings=tuple(_ranked(results, asked) for asked in study.rankings),
        published=tuple(reproduce(results, asked) for asked in study.published),
        looks=_looks(study),
        replications=tuple(_replication(study, again) for again in results.replications),
    )


def _replication(original: Study, again: Replicated) -> Replication:
    """Return what came of a replication; nothing is tested of one that is not whole."""
    study, results = again.study, again.results
    whole = results is not None and not again.missing
    counts = provenance(results) if results else {}
    return Replication(
        name=study.replication,
        data=study.data.name,
        other_data=study.data.name != original.data.name,
        changes=study.changes,
        study_hash=study.hash,
        missing=again.missing,
        counts={key: counts[key] for key in ("seeds", "planned", "finished", "diverged", "failed") if counts},
        claims=_family(results, checks=False) if results and whole else (),
    )


def claim_confidence(study: Study) -> float:
    """Return the confidence of each interval: 95% shared among registered looks, then among the study's claims."""
    per_look = 1 - ALPHA / max(1, len(study.looks))
    return stats.shared_confidence(max(1, len(study.claims)), per_look)


def _family(results: Results, checks: bool) -> tuple[Finding, ...]:
    confidence = claim_confidence(results.study)
    found = [_finding(results, claim, confidence, checks) for claim in results.study.claims]
    adjusted = np.minimum(1, stats.adjust([finding.p_value for finding in found]) * max(1, len(results.study.looks)))
    return tuple(
        replace(finding, p_adjusted=float(p) if math.isfinite(finding.p_value) else math.nan)
        for finding, p in zip(found, adjusted, strict=True)
    )


def _looks(study: Study) -> dict[str, Any]:
    """Return the registered looks, the one that these findings are of (by its seeds), and the alpha spent up to it."""
    if not study.looks:
        return {}
    taken = [n for n in study.looks if n <= study.grid.seeds]
    return {"seeds": list(study.looks), "at": study.grid.seeds, "alpha_spent": ALPHA * len(taken) / len(study.looks)}


def look_sentence(looks: Mapping[str, Any]) -> str:
    """Return which registered look findings are of, and the alpha spent by then, in a sentence; nothing without looks.

    >>> look_sentence({"seeds": [5, 10, 20], "at": 10, "alpha_spent": 0.1 / 3})
    'Look 2 of 3 (10 seeds; registered before the first step: 5, 10, 20); .033 of an alpha of .05 is spent.'
    """
    if not looks:
        return ""
    place, registered = looks["seeds"].index(looks["at"]) + 1, ", ".join(map(str, looks["seeds"]))
    spent = f"{looks['alpha_spent']:.2g}".removeprefix("0")
    return (
        f"Look {place} of {len(looks['seeds'])} ({looks['at']} seeds; registered before the first step: {registered}); "
        f"{spent} of an alpha of .05 is spent."
    )


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
        **({"tuning_runs": len(results.tuning.tried)} if results.tuning else {}),
        "command": f"stability run {study.name} --scale {study.scale} --device {manifest['device']['type']}"
        + (f" --until-settled {study.looks[-1]}" if study.looks else ""),
    }


def compared(results: Results, claim: Claim, confidence: float) -> stats.Comparison:
    """Return the comparison of a claim's two arms by its contrast, over the runs that there are."""
    arms, supplied = _asked(results, claim, confidence)
    return contrasts.compare(claim.contrast, *arms, supplied=supplied, where=f"claims.{claim.id}")


def _asked(results: Results, claim: Claim, confidence: float) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Return the numbers of a claim's two arms, and what its contrast may ask for beside them."""
    variant = contrast[claim.contrast]
    measure = results.measures[claim.measure]
    reduction, scale = _reading(claim, measure)
    arms = [
        _array(results, claim, arm, _numbers(results, claim, name, variant.traits["on"], reduction, scale))
        for arm, name in zip(claim.compare, claim.measures, strict=True)
    ]
    names = claim.compare
    if claim.against:
        names = (claim.compare[0], stats.wording.another(_in_words(claim, results.measures[claim.against], scale)))
    supplied = {
        "confidence": confidence,
        "levels": _levels(results.study, claim.over),
        "per": f" per doubling of the {AXIS_WORDS[claim.over]}" if claim.over in DOUBLING else "",
        "better": measure.better,
        "log": scale in LOGARITHMS,
        "budget": float(results.study.train.steps),
        "names": names,
        "measure": _in_words(claim, measure, scale),
    }
    return arms, supplied


def _levels(study: Study, over: str) -> tuple[float, ...]:
    """Return the values of an axis in order, as slopes have them: in doublings where a step is a factor."""
    values = sorted(study.grid.values(over)) if over else [0.0]
    return tuple(float(np.log2(value)) if over in DOUBLING else float(value) for value in values)


def _reading(claim: Claim, measure: Measure) -> tuple[str, str]:
    """Return the reduction and the scale by which a claim reads its measure."""
    return claim.reduction or contrast[claim.contrast].traits["reduction"], claim.scale or measure.scale


def _finding(results: Results, claim: Claim, confidence: float, checks: bool) -> Finding:
    measure = results.measures[claim.measure]
    reduction, scale = _reading(claim, measure)
    arms, supplied = _asked(results, claim, confidence)
    comparison = contrasts.compare(claim.contrast, *arms, supplied=supplied, where=f"claims.{claim.id}")
    decided = stats.verdict(comparison, expect=claim.expect, margin=claim.margin)
    if why := _near_chance(results, claim, contrast[claim.contrast].traits["on"], scale, reduction):
        decided = stats.Verdict("not-testable", why, f"Not testable: {why}.")
    question = Question(claim.contrast, supplied, claim.expect, claim.margin)
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
        sensitivity=sensitivity(comparison, decided.verdict, arms, question) if checks else NOTHING,
        against=claim.against,
    )


def _in_words(claim: Claim, measure: Measure, scale: str) -> str:
    label = measure.label[:1].lower() + measure.label[1:]
    if claim.threshold is not None:
        return f"a {label} of {claim.threshold:g}"
    if scale == "of-chance":
        return f"{label} as a share of chance"
    return f"log chance-corrected {label}" if scale == "chance-log" and claim.over else label


def _numbers(results: Results, claim: Claim, name: str, on: str, reduction: str, scale: str) -> pd.Series:
    """Return one number per run of a measure, as the contrast takes it, with diverged runs as the measure has them."""
    runs = results.runs.set_index("run")
    diverged = runs["status"] == "diverged"
    if on == "diverged":
        return diverged.astype(float).where(runs["status"].isin(["finished", "diverged"]))
    if on == "times":
        assert claim.threshold is not None
        times = times_to(results, name, claim.threshold)
        return times.where(~diverged, math.inf).where(runs["status"].isin(["finished", "diverged"]))
    values = summarise(results, name, reduction).reindex(runs.index)
    chance = results.measures[name].chance
    # A diverged run has learnt nothing: chance where a measure is bounded; elsewhere there is no such level.
    level = summarise(results, chance, "final").reindex(runs.index) if chance else math.nan
    level = chance_losses(results) if scale == "of-chance" else level
    values = values.where(~diverged, level)
    return values if on == "raw" else on_scale(results, name, values, scale)


def _array(results: Results, claim: Claim, arm: str, numbers: pd.Series) -> np.ndarray:
    """Return one arm's numbers as (seeds, levels, cells): levels along the claim's axis, cells along all others."""
    runs = results.runs[results.runs["arm"] == arm]
    over = results.study.grid.column(claim.over)
    level = runs[over] if over else 0
    cells = [axis for axis in AXES if axis != over]
    frame = runs.assign(number=numbers.loc[runs["run"]].to_numpy(), level=level)
    # The grid is a full product, so sorting puts every run in its place.
    ordered = frame.sort_values(["seed", "level", *cells])["number"].to_numpy(dtype=float)
    return ordered.reshape(frame["seed"].nunique(), frame["level"].nunique(), -1)


def _ranked(results: Results, asked: Ranking) -> Ranked:
    """Return a ranking: a seed's cells averaged on the measure's scale, all pairs and rankings at 95% together."""
    study, measure = results.study, results.measures[asked.measure]
    assert measure.better
    names = study.ranked(asked)
    # The reading of a claim of a difference, whatever two arms it names.
    claim = Claim(
        id="ranking",
        text=measure.label,
        measure=measure.name,
        contrast="difference",
        compare=(names[0], names[1]),
        expect="equal",
        margin=1.0,
        reduction=asked.reduction,
        scale=asked.scale,
    )
    reduction, scale = _reading(claim, measure)
    numbers = _numbers(results, claim, measure.name, "scale", reduction, scale)
    values = np.stack([_array(results, claim, name, numbers).mean(axis=(1, 2)) for name in names], axis=1)
    confidence = 1 - ALPHA / max(1, len(study.looks)) / len(study.rankings)
    found = stats.ranking(values, names, better=measure.better, confidence=confidence)
    return Ranked(measure.name, measure.label, reduction, scale, measure.better, found)


def _near_chance(results: Results, claim: Claim, on: str, scale: str, reduction: str) -> str:
    """Return why a bounded measure cannot be compared: an arm's clean level is too close to chance; else nothing."""
    if scale != "chance-log" or on != "scale":
        return ""
    found = (_too_low(results, claim, results.measures[name], reduction) for name in dict.fromkeys(claim.measures))
    return next(filter(None, found), "")


def _too_low(results: Results, claim: Claim, measure: Measure, reduction: str) -> str:
    values, chance = (
        summarise(results, name, how) for name, how in ((measure.name, reduction), (measure.chance, "final"))
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
