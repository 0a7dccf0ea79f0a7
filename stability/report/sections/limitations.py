"""The section of the limitations that a study's own data show, each with a title and one or two sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain

import numpy as np
import pandas as pd

from stability.analysis import MIN_CHANCE_RATIO, Findings, Results, summarize
from stability.contrasts import contrast
from stability.probes import probe
from stability.report.blocks import Code, Paragraph, Part
from stability.report.caveats import coarse, doubtful, without_threshold
from stability.report.failures import failures
from stability.report.sections.registry import Blocks, ReportData, section
from stability.report.tables import signs
from stability.results import by_settings
from stability.stats.wording import number, percent, seeds
from stability.study import Study, optimizer_of
from stability.tuning import edges
from stability.vocabulary import NOT_TESTABLE

SATURATED = 0.95
"""A bounded measure above this value is too close to its ceiling to show a difference."""

FULL = 0.98
"""A claim is saturated if both of its sides exceed this share of their measure's ceiling."""

CONVERGED = 0.05
"""An eigenvalue counts as converged if its residual is at most this share of it."""


Limitations = Iterator[tuple[str, str]]


@section(order=190, title="Limitations that the data show", short="Limitations")
def limitations(data: ReportData) -> Blocks:
    """Yield the limitations of a study, those that affect the verdicts first, and the tracebacks of failed runs."""
    results, findings = data.results, data.findings
    sources = (
        _unfinished(results),
        _open_claims(findings),
        _fragile(findings),
        _exploratory(findings),
        doubtful(findings, data.caveats),
        _not_replicated(findings),
        _diverged(results),
        _collapsed(results),
        _left_out(results),
        _untuned(results),
        _at_the_edge(results),
        _bounded(results),
        _full(results),
        _false_negatives(results),
        _slow_scalars(results),
        _unconverged_eigenvalues(results),
        without_threshold(results),
        coarse(results, findings),
        _timed(results),
        _scope(results),
    )
    for title, text in chain.from_iterable(sources):
        yield Part(title, (Paragraph(signs(text)),))
    for failure in failures(results):
        yield Part(f"Traceback: {failure['reason']}", (Code(failure["traceback"]),), folded=True)


def _unfinished(results: Results) -> Limitations:
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
    """Return a sentence on why runs failed, each reason with its number of runs."""
    reasons = "; ".join(
        f"{failure['reason']} ({failure['runs']} {'run' if failure['runs'] == 1 else 'runs'}: {failure['cells']})"
        for failure in failures(results)
    )
    return f" Why: {reasons}." if reasons else ""


def _not_replicated(findings: Findings) -> Limitations:
    for again in findings.replications:
        if again.missing:
            yield f"Replication {again.name} missing", f"{_capital(again.missing)}; it counts nowhere."
    for claim in findings.claims:
        found = findings.agreement(claim.id)
        if any(site.word != "same" for site in found.sites):
            here = _capital(claim.verdict.replace("-", " "))
            yield f"The claim {claim.id} elsewhere", f"{here} here; its effect is elsewhere: {found.clause}"


def _capital(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}"


def _open_claims(findings: Findings) -> Limitations:
    for claim in findings.claims:
        if claim.verdict == "inconclusive":
            advice = (
                f"about {claim.seeds_to_settle:,} seeds would settle it at the margin declared"
                if claim.seeds_to_settle
                else "the effect is too close to the margin for a number of seeds to be promised"
            )
            yield "Too few seeds for a claim", f"“{claim.text}” stays open with {seeds(claim.n_pairs)}: {advice}."
        elif claim.verdict == NOT_TESTABLE:
            yield "A claim that could not be tested", f"“{claim.text}”: {claim.reason}."


def _fragile(findings: Findings) -> Limitations:
    for claim in findings.claims:
        if not claim.sensitivity.agrees:
            yield "Verdict depends on the method or on a single seed", f"“{claim.text}”: {claim.sensitivity.sentence}"


def _exploratory(findings: Findings) -> Limitations:
    """Yield the claims and rankings that were not as they are before the runs, and what was withdrawn after them."""
    for claim in findings.claims:
        if claim.registration == "exploratory":
            yield "An exploratory claim", f"“{claim.text}”: {claim.registration_note}"
    for ranked in findings.rankings:
        if ranked.registration == "exploratory":
            yield "An exploratory ranking", f"{ranked.label}: {ranked.registration_note}"
    if withdrawn := [one["id"] for one in findings.registration.get("withdrawn", ()) if one["table"] == "claims"]:
        yield (
            "Claims withdrawn after their runs",
            f"{', '.join(withdrawn)}: registered before the first step and deleted since. The intervals of the others "
            "are as wide as with them.",
        )


def _diverged(results: Results) -> Limitations:
    runs = results.runs
    diverged = runs[runs["status"] == "diverged"]
    if not len(diverged):
        return
    total = runs.groupby(["arm", "batch_size"], sort=False).size()
    counted = diverged.groupby(["arm", "batch_size"], sort=False).size()
    cells = ", ".join(f"{arm} at batch {size}: {n} of {total.loc[(arm, size)]}" for (arm, size), n in _by_cell(counted))
    yield (
        "Diverged runs",
        f"{len(diverged)} of {len(runs)} runs ended at or above the loss of embeddings that say nothing ({cells}). "
        "They count as finished: at chance where a measure is bounded, as the whole budget where steps to a "
        "threshold are counted, and as missing where no such level exists.",
    )


def _collapsed(results: Results) -> Limitations:
    """Yield a limitation if runs collapsed without ending at or above chance, so that their measures count as read."""
    runs = results.runs
    collapsed = int(((runs["collapsed"] == 1) & (runs["status"] == "finished")).sum())
    if collapsed:
        yield (
            "Collapsed runs",
            f"{collapsed} of {len(runs)} runs collapsed and end just below chance. They are not counted as diverged, "
            "so every measure is what was read.",
        )


def _left_out(results: Results) -> Limitations:
    for note in results.study.notes:
        yield "Samples left out or cut", note


def _untuned(results: Results) -> Limitations:
    yield "Learning rates", _what_was_tuned(results.study)


def _at_the_edge(results: Results) -> Limitations:
    """Yield a limitation if the search chose an end of a searched range, or if all of its runs diverged."""
    if results.tuning is None:
        return
    at_edge = edges(results.study, results.tuning)
    if at_edge:
        cells = "; ".join(f"{arm} at batch {size}, {words}" for arm, size, words in at_edge)
        yield (
            "Tuned to the edge of the search",
            f"The setting chosen lies at an end of what was tried: {cells}. The optimum may lie outside the range, "
            "so this arm may be under-tuned.",
        )
    finite = results.tuning.tried.groupby(["arm", "batch_size"], sort=False)["score"].count()
    for (arm, size), count in _by_cell(finite):
        if not count:
            yield (
                "A search without a choice",
                f"Every tuning run of {arm} at batch {size} diverged, so the lowest rate was used as a placeholder; it "
                "is not a tuned value.",
            )


def _bounded(results: Results) -> Limitations:
    """Yield the noise-free cells in which a measure between chance and 1 is near chance or near its ceiling."""
    runs = results.runs[results.runs["noise"] == results.runs["noise"].min()]
    for name, measure in results.measures.items():
        if measure.transform != "log_above_chance" or name not in results.steps or "image" in name:
            continue
        values, chance = summarize(results, name, "final"), summarize(results, measure.chance, "final")
        table = runs.assign(value=values.reindex(runs["run"]).to_numpy(), chance=chance.reindex(runs["run"]).to_numpy())
        level = table.groupby(["arm", "batch_size"], sort=False)[["value", "chance"]].mean().dropna()
        label, inline = measure.label, measure.inline_label
        if low := _cells(level[level["value"] < MIN_CHANCE_RATIO * level["chance"]]):
            yield (
                f"{label} near chance",
                f"Without noise, {inline} ends below {MIN_CHANCE_RATIO:g} times its chance level for {low}; little can "
                "be lost there.",
            )
        if high := _cells(level[level["value"] > SATURATED]):
            yield f"{label} near its ceiling", f"Without noise, {inline} ends above {percent(SATURATED)} for {high}."


def _full(results: Results) -> Limitations:
    """Yield the claims whose two sides are both near the ceiling of their measure."""
    runs = results.runs[results.runs["noise"] == results.runs["noise"].min()]
    for claim in results.study.claims:
        traits, measure = contrast[claim.contrast].traits, results.measures[claim.measure]
        if traits.on not in ("transform", "raw") or math.isinf(measure.ceiling):
            continue
        reduction = claim.reduction or traits.reduction
        sides = []
        for arm, name in zip(claim.compare, claim.measures, strict=True):
            share = summarize(results, name, reduction) / results.measures[name].ceiling
            of_arm = runs[runs["arm"] == arm]
            sides.append(share.reindex(of_arm["run"]).groupby(of_arm["batch_size"].to_numpy(), sort=False).mean())
        both = pd.concat(sides, axis=1)
        full = both[(both > FULL).all(axis=1)]
        if len(full):
            rows = zip(full.index, full.to_numpy().tolist(), strict=True)
            cells = ", ".join(
                f"at batch {size} ({number(first)} and {number(second)} of it)" for size, (first, second) in rows
            )
            yield (
                f"{measure.label} saturated",
                f"“{claim.text}”: both sides lie above {percent(FULL)} of the highest value that there is, "
                f"{measure.ceiling:g}, {cells}. Both are at the ceiling, so a difference could not be detected.",
            )


def _cells(level: pd.DataFrame) -> str:
    return ", ".join(f"{arm} at batch {size} ({number(value)})" for (arm, size), value in _by_cell(level["value"]))


def _by_cell(values: pd.Series) -> list[tuple[tuple[str, int], float]]:
    """Return the items of a series indexed by arm and batch size."""
    return list(zip(values.index.to_list(), values.to_list(), strict=True))


def _false_negatives(results: Results) -> Limitations:
    if "false_negative_fraction" not in results.steps:
        return
    rows = (
        results.steps[["run", "false_negative_fraction"]].dropna().merge(results.runs[["run", "batch_size"]], on="run")
    )
    share = rows.groupby("batch_size")["false_negative_fraction"].mean()
    share = share[share > 0]
    if not len(share):
        return
    shares = "; ".join(
        f"at batch {size}, {percent(value)} of the pairs ({number(value * (size - 1))} per image)"
        for size, value in zip(share.index.to_list(), share.to_list(), strict=True)
    )
    yield (
        "False negatives in the batch",
        f"Several images share a caption, so some pairs that the losses push apart do match: {shares}. Recall counts "
        "any item with the same caption as right; the losses do not know of it.",
    )


def _slow_scalars(results: Results) -> Limitations:
    """Yield the arms whose bias moved more than half the sum of its learning rates: it may not have converged."""
    steps = results.steps
    if "bias" not in steps or not steps["bias"].notna().any():
        return
    by_run = steps[["run", "bias", "learning_rate"]].dropna().groupby("run", sort=False)
    table = pd.DataFrame({"start": by_run["bias"].first(), "end": by_run["bias"].last()})
    table["reach"] = by_run["learning_rate"].sum()
    bounded = []
    for study, runs in by_settings(results):
        for arm in study.grid.arms:
            train = study.train_of(arm)
            part = table[table.index.isin(runs["run"][runs["arm"] == arm])].assign(arm=arm, optimizer=train.optimizer)
            if len(part) and optimizer_of(train)[0].traits.bounded_step:
                bounded.append(part.assign(reach=part["reach"] * train.scalar_lr_multiplier))
    for (label, name), part in pd.concat(bounded).groupby(["arm", "optimizer"], sort=False) if bounded else ():
        # Not the mean of the ends: where the bias rises in some cells and falls in others, that has not moved.
        moved, sum_of_rates = (part["end"] - part["start"]).abs().mean(), part["reach"].mean()
        if moved > sum_of_rates / 2:
            yield (
                f"How far the bias of {label} could move",
                f"It starts at {number(part['start'].mean())} and moves by {number(moved)} on average. The optimizer "
                f"{name} moves a scalar by no more than about the sum of its learning rates, here "
                f"{number(sum_of_rates)}: what lies further away was out of reach, whether better or not.",
            )


def _unconverged_eigenvalues(results: Results) -> Limitations:
    pairs = (
        ("hessian_max_eigenvalue", "top"),
        ("hessian_min_eigenvalue", "lowest"),
        ("preconditioned_sharpness", "preconditioned top"),
    )
    unconverged = []
    for name, word in pairs:
        if name not in results.steps:
            continue
        rows = results.steps[[name, f"{name}_residual"]].dropna()
        share = float(np.mean(rows[f"{name}_residual"] > CONVERGED * rows[name].abs())) if len(rows) else 0.0
        if share:
            unconverged.append(f"{percent(share)} of the {word} eigenvalues")
    if unconverged:
        yield (
            "Eigenvalues that did not converge",
            f"After the Lanczos steps given, the residual is above {percent(CONVERGED)} of the value for "
            f"{', '.join(unconverged)}; read these as approximate.",
        )


def _timed(results: Results) -> Limitations:
    if any(probe[name].traits.timed for name in results.study.probes):
        device = results.manifest["device"]
        yield (
            "One machine",
            f"Times and memory were measured on one kind of machine ({device['type']}, {device['model']}); another may "
            "put the losses in another order.",
        )


def _scope(results: Results) -> Limitations:
    study = results.study
    named = (study.model.image, study.model.text, study.model.extra_modalities)
    towers = " and ".join(dict.fromkeys(tower.name for tower in named if tower))
    yield (
        "Scope",
        f"{_datasets(results)}, small towers ({towers}, {study.model.embed_dim} shared dimensions) and "
        f"{study.train.steps:,} steps: what holds here need not hold at another size.",
    )


def _datasets(results: Results) -> str:
    """Return the dataset of the study and those of its replications in words."""
    name = results.study.data.name
    others = dict.fromkeys(again.study.data.name for again in results.replications if not again.missing)
    other_names = [other for other in others if other != name]
    return (
        f"One dataset ({name}), and {' and '.join(other_names)} in replications"
        if other_names
        else f"One dataset ({name})"
    )


def _what_was_tuned(study: Study) -> str:
    """Return one sentence on what was tuned, and what was the same for every loss."""
    rates, tune = study.grid.lr, study.tune
    if tune:
        return (
            f"The rate was chosen per loss and batch size from {tune.lr[0]:g} to {tune.lr[-1]:g} only, "
            f"by {tune.seeds} {'seed' if tune.seeds == 1 else 'seeds'} at one level of noise; what the "
            "search did not vary is the same for every loss."
        )
    if study.grid.lr_multipliers:
        shown = ", ".join(f"{multiplier:g}" for multiplier in study.grid.lr_multipliers)
        return f"No learning rate was chosen per loss: every arm was trained at {shown} times {rates[0]:g}."
    if len(rates) > 1:
        shown = ", ".join(f"{rate:g}" for rate in rates)
        return f"No learning rate was chosen per loss: every arm was trained at each of {shown}; cells are averaged."
    return (
        f"Nothing was tuned per loss: every arm was trained at the learning rate {rates[0]:g}, the same for every "
        "loss and batch size. A loss whose best rate lies elsewhere is shown below its best."
    )
