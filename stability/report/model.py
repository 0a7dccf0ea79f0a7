"""The model of a report: everything that it says, as plain JSON data, before it looks like anything.

No time, path or duration is in it, so that equal results give equal bytes; what was not measured is absent or null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stability.analysis import Findings, Results, look_sentence
from stability.report.appendix import appendix
from stability.report.doubts import Doubts, doubts
from stability.report.failures import failures
from stability.report.figures import ReportFigure
from stability.report.limitations import limitations
from stability.report.method import method
from stability.report.replications import LEAD, TITLE, replications
from stability.report.reproduced import reproduced
from stability.report.tables import (
    Json,
    cell_table,
    crosscheck_table,
    effect_in_words,
    interval_in_words,
    missing_table,
    plain_table,
    signs,
    tuning_table,
)
from stability.stats.comparison import margin_region
from stability.stats.wording import confidence_in_percent, number
from stability.study import Study

RATES = (("lr", "learning rates"), ("lr_multiplier", "multiples of the learning rate"))

SHAPES = {"supported": "✔", "contradicted": "✘", "equivalent": "=", "inconclusive": "?", "not-testable": "–"}
"""A mark for each verdict, so that no reader depends on its color."""

SECTIONS = {
    "claims": ("The claims", "Each claim was written down, with its measure and margin, before any run."),
    "replications": (TITLE, LEAD),
    "ranking": (
        "Rankings",
        "All arms in order, each pair compared within the seeds. Intervals hold for all pairs together, so that the "
        "best of many is not taken for better than it is; arms that share a letter cannot be told apart.",
    ),
    "tuning": (
        "Tuning",
        "Before the test, every arm was given as many settings to try at each batch size as any other, on seeds that "
        "the test does not use.",
    ),
    "learning": (
        "Learning",
        "Losses differ in scale, so how far one falls below its chance level says less than what the embeddings can do "
        "on pairs that training never saw.",
    ),
    "values": (
        "What the claims compare",
        "Each run's value of what a claim is about, where no other figure shows it.",
    ),
    "noise": (
        "Robustness to corrupted pairs",
        "The same runs with a growing share of pairs corrupted on purpose. An arm that starts lower has less to lose, "
        "so slopes are compared on the chance-corrected logarithmic scale.",
    ),
    "convergence": (
        "Time to threshold",
        "The share of seeds that have reached the claim's threshold, step by step. A run that never does stays out, "
        "and counts in the test as one that took the whole budget.",
    ),
    "gradients": (
        "Gradient noise",
        "The share of a batch gradient's squared length that is noise: 0 if every batch says the same, 1 if batches "
        "agree on nothing. It does not change when a loss is multiplied by a constant.",
    ),
    "scalars": (
        "Temperature and bias",
        "The loss's own trained scalars. Adam moves a scalar by at most about the sum of its learning rates.",
    ),
    "curvature": (
        "Curvature",
        "Eigenvalues of the Hessian of the training loss. Raw eigenvalues change with the loss's scale; the sharpness "
        "that Adam sees, as a multiple of the edge of stability, does not.",
    ),
    "landscape": (
        "Loss landscape",
        "How the training loss rises around the end of training. Directions are random and every filter moves in "
        "proportion to its norm, so that a rise, as a share of the loss's chance level, can be compared between arms.",
    ),
    "geometry": (
        "Geometry of the embeddings",
        "How far apart matching and mismatched pairs lie on the unit sphere, and images from texts, on held-out data.",
    ),
}


def describe(results: Results, findings: Findings, drawn: Sequence[ReportFigure]) -> Json:
    """Return the report of a study as JSON data: what report.json holds and what both renderings show."""
    study = results.study
    found = findings.to_json()
    agreed = found.get("agreement", {})
    untuned = {claim["id"]: answer_of(claim) for claim in found.get("untuned", [])}
    doubted = doubts(results, findings)
    answers = [
        answer_of(claim)
        | {"untuned": untuned.get(claim["id"]), "agreement": agreed.get(claim["id"])}
        | _doubts_of(claim, doubted)
        for claim in sorted(found["claims"], key=lambda claim: not claim["primary"])
    ]
    return {
        "schema": 1,
        "study": study.name,
        "scale": study.scale,
        "title": study.title,
        "question": study.question,
        "source": study.source,
        "verdict": findings.verdict,
        "facts": _facts(results),
        "interim": interim(results),
        "answers": answers,
        "confidence": confidence_in_percent(findings.claims[0].confidence) if findings.claims else None,
        "looks": look_sentence(findings.looks) or None,
        "tuning": tuning_table(results),
        "replications": replications(findings),
        "sections": _sections(drawn, {"claims": bool(answers), "replications": bool(findings.replications)}),
        "published": reproduced(findings),
        "crosscheck": crosscheck_table(results),
        "cells": cell_table(results),
        "sensitivity": appendix(findings),
        "method": method(results, findings),
        "limitations": limitations(results, findings, doubted),
        "failures": failures(results),
        "provenance": provenance_rows(results, findings),
        "command": findings.provenance["command"],
        "study_text": study.text,
    }


def interim(results: Results) -> Json | None:
    """Return what is missing of an unfinished run, in a sentence and as a table of the cells; None if it is whole."""
    runs = results.runs
    missing = runs["status"] == "planned"
    if not missing.any():
        return None
    return {
        "sentence": f"{int(missing.sum()):,} of {len(runs):,} runs are not finished; every verdict may still change.",
        "missing": missing_table(runs),
    }


def _facts(results: Results) -> str:
    """Return one line on the size of the study: runs, arms, seeds and steps."""
    study, runs = results.study, results.runs
    parts = [f"replication {study.replication}: {study.changes}"] if study.replication else []
    parts += [f"{len(runs):,} runs", f"{runs['arm'].nunique()} arms", f"{study.grid.seeds} seeds"]
    for axis, word in (
        ("batch_size", "batch sizes"),
        ("noise", "noise levels"),
        ("train_pairs", "numbers of pairs"),
        *RATES,
    ):
        if (levels := runs[axis].nunique()) > 1:
            parts.append(f"{levels} {word}")
    if results.tuning:
        parts.append(f"{len(results.tuning.tried):,} tuning runs before")
    return " · ".join([*parts, lengths_in_words(study)])


def lengths_in_words(study: Study) -> str:
    """Return how long the runs are: their steps, from the largest batch to the smallest where samples are matched."""
    steps = sorted({study.lengths(size)[0] for size in study.grid.batch_size})
    if len(steps) == 1:
        return f"{steps[0]:,} steps each"
    return f"{steps[0]:,} to {steps[-1]:,} steps, equal samples seen"


# --- claims ----------------------------------------------------------------------------------------------------------


def answer_of(claim: Mapping[str, Any]) -> Json:
    """Return one claim's answer, from its entry in findings.json: its numbers, and the words that show them."""
    word = claim["verdict"].replace("-", " ")
    tested = claim["effect"] is not None and claim["verdict"] != "not-testable"
    kept = ("id", "primary", "text", "source", "verdict", "sentence", "method", "assumptions", "seeds_to_settle")
    return {
        **{key: claim[key] for key in kept},
        "word": word,
        "shape": SHAPES[claim["verdict"]],
        "told": signs(claim["sentence"].removeprefix(f"{word.capitalize()}: ")),
        "arms": _sides(claim),
        "effect": effect_in_words(claim["effect"], claim["ratio"]) if tested else None,
        "interval": interval_in_words(claim["interval"], claim["ratio"]) if tested else None,
        "within": interval_in_words(margin_region(claim["margin"], claim["ratio"]), claim["ratio"]),
        "kind": "ratio" if claim["ratio"] else "difference",
        "n": claim["n_pairs"],
        "p_adjusted": number(claim["p_adjusted"]) if tested and claim["p_adjusted"] is not None else None,
    }


def _doubts_of(claim: Mapping[str, Any], doubted: Doubts) -> Json:
    """Return what stands below an answer: if the effect *turns* between cells, how *uneven* it is, if it is *idle*.

    That an effect only differs between cells is said of the primary claim, and of the others among the limitations.
    """
    how, idle = doubted.apart.get(claim["id"]), doubted.idle.get(claim["id"])
    turns = how is not None and how.how == "turns"
    lead = "Opposite signs" if turns else "Heterogeneous"
    said = how if turns or claim["primary"] else None
    return {
        "turns": turns,
        "uneven": signs(f"{lead}: {said.sentence}. The effect above is the mean over the cells.") if said else None,
        "idle": signs(idle[1]) if idle else None,
    }


def _sides(claim: Mapping[str, Any]) -> str:
    """Return what was compared with what: two arms, or two measures of one."""
    if "against_measure" not in claim:
        return " against ".join(claim["compare"])
    own, other = (claim[key].replace("_", " ") for key in ("measure", "against_measure"))
    return f"{own} against {other}, both of {claim['compare'][0]}"


# --- sections --------------------------------------------------------------------------------------------------------


def _sections(drawn: Sequence[ReportFigure], told: Mapping[str, bool]) -> list[Json]:
    """Return the sections that hold something, in reading order, with their figures; those *told* need none."""
    present = {figure.section for figure in drawn} | {name for name, holds in told.items() if holds}
    return [
        {
            "id": name,
            "title": title,
            "lead": lead,
            "figures": [
                {
                    "id": figure.id,
                    "title": figure.title,
                    "caption": figure.caption,
                    "alt": figure.alt,
                    "table": plain_table(figure.table),
                }
                for figure in drawn
                if figure.section == name
            ],
        }
        for name, (title, lead) in SECTIONS.items()
        if name in present
    ]


# --- provenance ------------------------------------------------------------------------------------------------------


def _tuning_seeds(results: Results) -> list[tuple[str, str]]:
    if not results.tuning:
        return []
    first, last = results.tuning.tried["seed"].min(), results.tuning.tried["seed"].max()
    count = last - first + 1
    return [("Tuning seeds", f"{count} ({first} to {last}), shared by all arms and settings, none of them a test seed")]


def provenance_rows(results: Results, findings: Findings) -> list[list[str]]:
    """Return where the results come from, as pairs of label and value."""
    found = findings.provenance
    device, first = found["device"], results.study.grid.first_seed
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    counts = ", ".join(f"{found[word]} {word}" for word in ("planned", "finished", "diverged", "failed"))
    pairs = [
        ("Study", f"{findings.study}, scale {findings.scale}"),
        ("Study hash", findings.study_hash),
        ("Runs", f"{counts} (diverged runs count as finished)"),
        ("Seeds", f"{found['seeds']} ({first} to {first + found['seeds'] - 1}), shared by all arms"),
        *_tuning_seeds(results),
        ("Device", f"{device['type']}, {device['model']}"),
        ("Versions", versions),
        ("Commit", found["git_commit"]),
    ]
    return [[label, str(value)] for label, value in pairs if value]
