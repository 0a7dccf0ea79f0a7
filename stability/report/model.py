"""The content of a report as plain JSON data, before rendering.

It holds no time, path or duration, so equal results give equal bytes. Values that were not measured are absent or null.
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
from stability.vocabulary import AXES, NOT_TESTABLE, VERDICTS

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
    """Return the report of a study as JSON data: the content of report.json and of both renderings."""
    study = results.study
    as_json = findings.to_json()
    agreement = as_json.get("agreement", {})
    untuned = {claim["id"]: answer_of(claim) for claim in as_json.get("untuned", [])}
    claim_doubts = doubts(results, findings)
    answers = [
        answer_of(claim)
        | {"untuned": untuned.get(claim["id"]), "agreement": agreement.get(claim["id"])}
        | _doubts_of(claim, claim_doubts)
        for claim in sorted(as_json["claims"], key=lambda claim: not claim["primary"])
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
        "limitations": limitations(results, findings, claim_doubts),
        "failures": failures(results),
        "provenance": provenance_rows(results, findings),
        "command": findings.provenance["command"],
        "study_text": study.text,
    }


def interim(results: Results) -> Json | None:
    """Return the missing runs of an unfinished study as a sentence and a table of cells; None if no run is missing."""
    runs = results.runs
    missing = runs["status"] == "planned"
    if not missing.any():
        return None
    return {
        "sentence": f"{int(missing.sum()):,} of {len(runs):,} runs are not finished; every verdict may still change.",
        "missing": missing_table(runs),
    }


def _facts(results: Results) -> str:
    """Return the size of the study in one line: runs, arms, seeds and steps."""
    study, runs = results.study, results.runs
    parts = [f"replication {study.replication}: {study.changes}"] if study.replication else []
    parts += [f"{len(runs):,} runs", f"{runs['arm'].nunique()} arms", f"{study.grid.seeds} seeds"]
    parts += [f"{levels} {axis.plural}" for axis in AXES.values() if (levels := runs[axis.name].nunique()) > 1]
    if results.tuning:
        parts.append(f"{len(results.tuning.tried):,} tuning runs before")
    return " · ".join([*parts, lengths_in_words(study)])


def lengths_in_words(study: Study) -> str:
    """Return the number of steps of the runs; a range from the largest to the smallest batch if samples are matched."""
    steps = sorted({study.lengths(size)[0] for size in study.grid.batch_size})
    if len(steps) == 1:
        return f"{steps[0]:,} steps each"
    return f"{steps[0]:,} to {steps[-1]:,} steps, equal samples seen"


# --- claims ----------------------------------------------------------------------------------------------------------


def answer_of(claim: Mapping[str, Any]) -> Json:
    """Return one claim's answer from its entry in findings.json: its numbers and their text."""
    word = claim["verdict"].replace("-", " ")
    tested = claim["effect"] is not None and claim["verdict"] != NOT_TESTABLE
    copied_keys = ("id", "primary", "text", "source", "verdict", "sentence", "method", "assumptions", "seeds_to_settle")
    return {
        **{key: claim[key] for key in copied_keys},
        "word": word,
        "shape": VERDICTS[claim["verdict"]].mark,
        "told": signs(claim["sentence"].removeprefix(f"{word.capitalize()}: ")),
        "arms": _sides(claim),
        "effect": effect_in_words(claim["effect"], claim["ratio"]) if tested else None,
        "interval": interval_in_words(claim["interval"], claim["ratio"]) if tested else None,
        "within": interval_in_words(margin_region(claim["margin"], claim["ratio"]), claim["ratio"]),
        "kind": "ratio" if claim["ratio"] else "difference",
        "n": claim["n_pairs"],
        "p_adjusted": number(claim["p_adjusted"]) if tested and claim["p_adjusted"] is not None else None,
    }


def _doubts_of(claim: Mapping[str, Any], claim_doubts: Doubts) -> Json:
    """Return the notes below an answer.

    "turns" is whether the effect has opposite signs in two cells, "uneven" a sentence on the disagreement between
    cells, and "idle" a sentence on an uninformative equality. An effect that only differs in size between cells is
    noted here for the primary claim; for the others it is listed among the limitations.
    """
    heterogeneity, idle = claim_doubts.heterogeneity.get(claim["id"]), claim_doubts.idle.get(claim["id"])
    turns = heterogeneity is not None and heterogeneity.how == "turns"
    lead = "Opposite signs" if turns else "Heterogeneous"
    shown = heterogeneity if turns or claim["primary"] else None
    return {
        "turns": turns,
        "uneven": signs(f"{lead}: {shown.sentence}. The effect above is the mean over the cells.") if shown else None,
        "idle": signs(idle[1]) if idle else None,
    }


def _sides(claim: Mapping[str, Any]) -> str:
    """Return the two sides of a comparison in words: two arms, or two measures of one arm."""
    if "against_measure" not in claim:
        return " against ".join(claim["compare"])
    first, other = (claim[key].replace("_", " ") for key in ("measure", "against_measure"))
    return f"{first} against {other}, both of {claim['compare'][0]}"


# --- sections --------------------------------------------------------------------------------------------------------


def _sections(drawn: Sequence[ReportFigure], has_text: Mapping[str, bool]) -> list[Json]:
    """Return the non-empty sections in reading order with their figures; *has_text* says which have other content."""
    present = {figure.section for figure in drawn} | {name for name, has in has_text.items() if has}
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
    """Return the provenance of the results as pairs of label and value."""
    provenance = findings.provenance
    device, first = provenance["device"], results.study.grid.first_seed
    versions = ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())
    counts = ", ".join(f"{provenance[word]} {word}" for word in ("planned", "finished", "diverged", "failed"))
    pairs = [
        ("Study", f"{findings.study}, scale {findings.scale}"),
        ("Study hash", findings.study_hash),
        ("Runs", f"{counts} (diverged runs count as finished)"),
        ("Seeds", f"{provenance['seeds']} ({first} to {first + provenance['seeds'] - 1}), shared by all arms"),
        *_tuning_seeds(results),
        ("Device", f"{device['type']}, {device['model']}"),
        ("Versions", versions),
        ("Commit", provenance["git_commit"]),
    ]
    return [[label, str(value)] for label, value in pairs if value]
