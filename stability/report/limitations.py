"""What weakens a study's answers, as its own data show it: each limitation is a title and a sentence or two."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from stability.analysis import MIN_CHANCE_RATIO, Findings, Results, summarize
from stability.contrasts import contrast
from stability.probes import probe
from stability.report.doubts import Doubts, coarse, doubtful, doubts
from stability.report.failures import failures
from stability.report.tables import signs
from stability.stats.wording import number, percent, seeds
from stability.tuning import edges

SATURATED = 0.95
"""A bounded measure above this leaves too little room for a difference to show."""

FULL = 0.98
"""A claim whose two sides both reach this share of their measure's ceiling compares what is left of a thing used up."""

CONVERGED = 0.05
"""An eigenvalue counts as converged if its residual is at most this share of it."""


def limitations(results: Results, findings: Findings, found: Doubts | None = None) -> list[dict[str, str]]:
    """Return the limitations of a study, those that touch the verdicts first; each has a title and a text.

    *found* is what `doubts` returns, made here unless given.
    """
    found = found or doubts(results, findings)
    sources = (
        _unfinished(results),
        _open_claims(findings),
        _fragile(findings),
        doubtful(findings, found),
        _not_replicated(findings),
        _diverged(results),
        _left_out(results),
        _untuned(results),
        _at_the_edge(results),
        _bounded(results),
        _full(results),
        _false_negatives(results),
        _slow_scalars(results),
        _loose_eigenvalues(results),
        coarse(results, findings),
        _timed(results),
        _scope(results),
    )
    return [{"title": title, "text": signs(text)} for source in sources for title, text in source]


Said = Iterator[tuple[str, str]]


def _unfinished(results: Results) -> Said:
    counts = results.runs["status"].value_counts()
    for status, consequence in (
        ("planned", "Verdicts rest on the runs that are there, and may change."),
        ("failed", "Pairs with a failed run are left out; beyond a tenth of the seeds a claim is not testable."),
    ):
        if missing := int(counts.get(status, 0)):
            word = "not finished" if status == "planned" else "failed"
            reasons = _reasons(results) if status == "failed" else ""
            yield f"Runs {word}", f"{missing} of {len(results.runs)} runs {word}. {consequence}{reasons}"


def _reasons(results: Results) -> str:
    """Return why runs failed, each reason with its runs."""
    told = "; ".join(
        f"{one['reason']} ({one['runs']} {'run' if one['runs'] == 1 else 'runs'}: {one['cells']})"
        for one in failures(results)
    )
    return f" Why: {told}." if told else ""


def _not_replicated(findings: Findings) -> Said:
    for again in findings.replications:
        if again.missing:
            yield f"Replication {again.name} missing", f"{_capital(again.missing)}; it counts nowhere."
    for claim in findings.claims:
        differ = {each.verdict for again in findings.replications for each in again.claims if each.id == claim.id}
        if differ - {claim.verdict}:
            here = _capital(claim.verdict.replace("-", " "))
            yield f"The claim {claim.id} elsewhere", f"{here} here. {findings.agreement(claim.id).clause}"


def _capital(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}"


def _open_claims(findings: Findings) -> Said:
    for claim in findings.claims:
        if claim.verdict == "inconclusive":
            advice = (
                f"about {claim.seeds_to_settle:,} seeds would settle it at the margin declared"
                if claim.seeds_to_settle
                else "the effect is too close to the margin for a number of seeds to be promised"
            )
            yield "Too few seeds for a claim", f"“{claim.text}” stays open with {seeds(claim.n_pairs)}: {advice}."
        elif claim.verdict == "not-testable":
            yield "A claim that could not be tested", f"“{claim.text}”: {claim.reason}."


def _fragile(findings: Findings) -> Said:
    for claim in findings.claims:
        if not claim.sensitivity.agrees:
            yield "Verdict depends on the method or on a single seed", f"“{claim.text}”: {claim.sensitivity.sentence}"


def _diverged(results: Results) -> Said:
    runs = results.runs
    diverged = runs[runs["status"] == "diverged"]
    if not len(diverged):
        return
    total = runs.groupby(["arm", "batch_size"], sort=False).size()
    counted = diverged.groupby(["arm", "batch_size"], sort=False).size()
    cells = ", ".join(
        f"{arm} at batch {size}: {n} of {total.loc[(arm, size)]}" for (arm, size), n in _by_place(counted)
    )
    yield (
        "Diverged runs",
        f"{len(diverged)} of {len(runs)} runs ended at or above the loss of embeddings that say nothing ({cells}). "
        "They count as finished: at chance where a measure is bounded, as the whole budget where steps to a "
        "threshold are counted, and as missing where no such level exists.",
    )


def _left_out(results: Results) -> Said:
    for note in results.study.notes:
        yield "Samples left out or cut", note


def _untuned(results: Results) -> Said:
    yield "Learning rates", results.study.untuned


def _at_the_edge(results: Results) -> Said:
    """Say where the search chose an end of what it tried, or had nothing to choose from."""
    if results.tuning is None:
        return
    found = edges(results.study, results.tuning)
    if found:
        said = "; ".join(f"{arm} at batch {size}, {words}" for arm, size, words in found)
        yield (
            "Tuned to the edge of the search",
            f"The setting chosen lies at an end of what was tried: {said}. The optimum may lie outside the range, "
            "so this arm may be under-tuned.",
        )
    lost = results.tuning.tried.groupby(["arm", "batch_size"], sort=False)["score"].count()
    for (arm, size), count in _by_place(lost):
        if not count:
            yield (
                "A search without a choice",
                f"Every tuning run of {arm} at batch {size} diverged, so the lowest rate was used as a placeholder; it "
                "is not a tuned value.",
            )


def _bounded(results: Results) -> Said:
    """Name the cells without noise in which a measure between chance and 1 has no room to fall, or none to rise."""
    runs = results.runs[results.runs["noise"] == results.runs["noise"].min()]
    for name, measure in results.measures.items():
        if measure.transform != "log_above_chance" or name not in results.steps or "image" in name:
            continue
        values, chance = summarize(results, name, "final"), summarize(results, measure.chance, "final")
        table = runs.assign(value=values.reindex(runs["run"]).to_numpy(), chance=chance.reindex(runs["run"]).to_numpy())
        level = table.groupby(["arm", "batch_size"], sort=False)[["value", "chance"]].mean().dropna()
        label = measure.label
        inside = f"{label[:1].lower()}{label[1:]}"
        if low := _places(level[level["value"] < MIN_CHANCE_RATIO * level["chance"]]):
            yield (
                f"{label} near chance",
                f"Without noise, {inside} ends below {MIN_CHANCE_RATIO:g} times its chance level for {low}; little can "
                "be lost there.",
            )
        if high := _places(level[level["value"] > SATURATED]):
            yield f"{label} near its ceiling", f"Without noise, {inside} ends above {percent(SATURATED)} for {high}."


def _full(results: Results) -> Said:
    """Name the claims of which both sides lie at the highest value that their measure can have."""
    runs = results.runs[results.runs["noise"] == results.runs["noise"].min()]
    for claim in results.study.claims:
        traits, measure = contrast[claim.contrast].traits, results.measures[claim.measure]
        if traits["on"] not in ("transform", "raw") or math.isinf(measure.ceiling):
            continue
        reduction = claim.reduction or traits["reduction"]
        sides = []
        for arm, name in zip(claim.compare, claim.measures, strict=True):
            share = summarize(results, name, reduction) / results.measures[name].ceiling
            of_arm = runs[runs["arm"] == arm]
            sides.append(share.reindex(of_arm["run"]).groupby(of_arm["batch_size"].to_numpy(), sort=False).mean())
        both = pd.concat(sides, axis=1)
        full = both[(both > FULL).all(axis=1)]
        if len(full):
            rows = zip(full.index, full.to_numpy().tolist(), strict=True)
            places = ", ".join(
                f"at batch {size} ({number(own)} and {number(other)} of it)" for size, (own, other) in rows
            )
            yield (
                f"{measure.label} saturated",
                f"“{claim.text}”: both sides lie above {percent(FULL)} of the highest value that there is, "
                f"{measure.ceiling:g}, {places}. Both are at the ceiling, so a difference could not be detected.",
            )


def _places(level: pd.DataFrame) -> str:
    return ", ".join(f"{arm} at batch {size} ({number(value)})" for (arm, size), value in _by_place(level["value"]))


def _by_place(values: pd.Series) -> list[tuple[tuple[str, int], float]]:
    """Return the values of a series indexed by arm and batch size."""
    return list(zip(values.index.to_list(), values.to_list(), strict=True))


def _false_negatives(results: Results) -> Said:
    if "false_negative_fraction" not in results.steps:
        return
    rows = (
        results.steps[["run", "false_negative_fraction"]].dropna().merge(results.runs[["run", "batch_size"]], on="run")
    )
    share = rows.groupby("batch_size")["false_negative_fraction"].mean()
    share = share[share > 0]
    if not len(share):
        return
    said = "; ".join(
        f"at batch {size}, {percent(value)} of the pairs ({number(value * (size - 1))} per image)"
        for size, value in zip(share.index.to_list(), share.to_list(), strict=True)
    )
    yield (
        "False negatives in the batch",
        f"Several images share a caption, so some pairs that the losses push apart do match: {said}. Recall counts any "
        "item with the same caption as right; the losses do not know of it.",
    )


def _slow_scalars(results: Results) -> Said:
    """Say where a bias moved over half as far as its summed learning rates can carry it: it may not have arrived."""
    steps = results.steps
    if "bias" not in steps or not steps["bias"].notna().any():
        return
    rows = steps[["run", "step", "bias", "learning_rate"]].dropna().merge(results.runs[["run", "arm"]], on="run")
    by_run = rows.groupby(["arm", "run"], sort=False)
    reach = by_run["learning_rate"].sum()
    reach = reach * [results.study.train_of(arm).scalar_lr_multiplier for arm, _ in reach.index]
    table = pd.DataFrame({"start": by_run["bias"].first(), "end": by_run["bias"].last(), "reach": reach})
    for arm, part in table.groupby("arm", sort=False):
        start, end, sum_of_rates = part["start"].mean(), part["end"].mean(), part["reach"].mean()
        adam = results.study.train_of(str(arm)).optimizer == "adamw"
        if adam and abs(end - start) > sum_of_rates / 2:
            yield (
                f"How far the bias of {arm} could move",
                f"It starts at {number(start)} and ends at {number(end)} on average. Adam moves a scalar by no more "
                f"than about the sum of its learning rates, here {number(sum_of_rates)}: what lies further away was "
                "out of reach, whether better or not.",
            )


def _loose_eigenvalues(results: Results) -> Said:
    pairs = (
        ("hessian_max_eigenvalue", "top"),
        ("hessian_min_eigenvalue", "lowest"),
        ("preconditioned_sharpness", "preconditioned top"),
    )
    loose = []
    for name, word in pairs:
        if name not in results.steps:
            continue
        rows = results.steps[[name, f"{name}_residual"]].dropna()
        share = float(np.mean(rows[f"{name}_residual"] > CONVERGED * rows[name].abs())) if len(rows) else 0.0
        if share:
            loose.append(f"{percent(share)} of the {word} eigenvalues")
    if loose:
        yield (
            "Eigenvalues that did not converge",
            f"After the Lanczos steps given, the residual is above {percent(CONVERGED)} of the value for "
            f"{', '.join(loose)}; read these as approximate.",
        )


def _timed(results: Results) -> Said:
    if any(probe[name].traits.get("timed") for name in results.study.probes):
        device = results.manifest["device"]
        yield (
            "One machine",
            f"Times and memory were measured on one kind of machine ({device['type']}, {device['model']}); another may "
            "put the losses in another order.",
        )


def _scope(results: Results) -> Said:
    study = results.study
    named = (study.model.image, study.model.text, study.model.extra_modalities)
    towers = " and ".join(dict.fromkeys(tower.name for tower in named if tower))
    yield (
        "Scope",
        f"{_datasets(results)}, small towers ({towers}, {study.model.embed_dim} shared dimensions) and "
        f"{study.train.steps:,} steps: what holds here need not hold at another size.",
    )


def _datasets(results: Results) -> str:
    """Return on which data the verdicts rest, and on which they were asked again."""
    name = results.study.data.name
    others = dict.fromkeys(again.study.data.name for again in results.replications if not again.missing)
    extra_modalities = [other for other in others if other != name]
    return (
        f"One dataset ({name}), and {' and '.join(extra_modalities)} in replications"
        if extra_modalities
        else f"One dataset ({name})"
    )
