"""The model of a report: everything that it says, as plain JSON data, before it looks like anything.

No time, path or duration is in it, so that equal results give equal bytes; what was not measured is absent or null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stability.analysis import Findings, Results, look_sentence
from stability.report.appendix import appendix
from stability.report.figures import Drawn
from stability.report.limitations import limitations
from stability.report.method import method
from stability.report.tables import Json, cell_table, crosscheck_table, minus, missing_table, plain_table, tuning_table
from stability.stats.comparison import margin_region
from stability.stats.wording import between, confidence_in_percent, number

RATES = (("lr", "learning rates"), ("lr_factor", "multiples of the learning rate"))

SHAPES = {"supported": "✔", "contradicted": "✘", "equivalent": "=", "inconclusive": "?", "not-testable": "–"}
"""A mark for each verdict, so that no reader depends on its colour."""

SECTIONS = {
    "claims": ("The claims", "Each claim was written down, with its measure and margin, before any run."),
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
    "noise": (
        "Robustness to mismatched pairs",
        "The same runs with a growing share of pairs mismatched on purpose. An arm that starts lower has less to lose, "
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
    "geometry": (
        "Geometry of the embeddings",
        "How far apart matching and mismatched pairs lie on the unit sphere, and images from texts, on held-out data.",
    ),
}


def describe(results: Results, findings: Findings, drawn: Sequence[Drawn]) -> Json:
    """Return the report of a study as JSON data: what report.json holds and what both renderings show."""
    study = results.study
    found = findings.to_json()
    untuned = {claim["id"]: answer_of(claim) for claim in found.get("untuned", [])}
    answers = [
        answer_of(claim) | {"untuned": untuned.get(claim["id"])}
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
        "sections": _sections(drawn, bool(answers)),
        "crosscheck": crosscheck_table(results),
        "cells": cell_table(results),
        "sensitivity": appendix(findings),
        "method": method(results, findings),
        "limitations": limitations(results, findings),
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
    parts = [f"{len(runs):,} runs", f"{runs['arm'].nunique()} arms", f"{study.grid.seeds} seeds"]
    for axis, word in (("batch_size", "batch sizes"), ("noise", "noise levels"), ("pairs", "numbers of pairs"), *RATES):
        if (levels := runs[axis].nunique()) > 1:
            parts.append(f"{levels} {word}")
    if results.tuning:
        parts.append(f"{len(results.tuning.tried):,} tuning runs before")
    return " · ".join([*parts, f"{study.train.steps:,} steps each"])


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
        "told": claim["sentence"].removeprefix(f"{word.capitalize()}: "),
        "arms": " against ".join(claim["compare"]),
        "effect": effect_in_words(claim["effect"], claim["ratio"]) if tested else None,
        "interval": _interval(claim["interval"], claim["ratio"]) if tested else None,
        "within": _interval(margin_region(claim["margin"], claim["ratio"]), claim["ratio"]),
        "kind": "ratio" if claim["ratio"] else "difference",
        "n": claim["n_pairs"],
        "p_adjusted": number(claim["p_adjusted"]) if tested and claim["p_adjusted"] is not None else None,
    }


def effect_in_words(effect: float, ratio: bool) -> str:
    """Return an effect as a factor or with its sign.

    >>> effect_in_words(0.8812, True), effect_in_words(-0.12, False), effect_in_words(3.0, False)
    ('0.881×', '−0.12', '+3')
    """
    return f"{number(effect)}×" if ratio else f"{'+' if effect > 0 else ''}{minus(number(effect))}"


def _interval(ends: Sequence[float | None], ratio: bool) -> str:
    """Return an interval in words; null is an end that is not bounded."""
    lowest = 0.0 if ratio else -math.inf
    lo, hi = (open_end if end is None else end for end, open_end in zip(ends, (lowest, math.inf), strict=True))
    return minus(between((lo, hi), ratio))


# --- sections --------------------------------------------------------------------------------------------------------


def _sections(drawn: Sequence[Drawn], claims: bool) -> list[Json]:
    """Return the sections that hold something, in reading order, with their figures."""
    present = {figure.section for figure in drawn} | ({"claims"} if claims else set())
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
    device = found["device"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    counts = ", ".join(f"{found[word]} {word}" for word in ("planned", "finished", "diverged", "failed"))
    pairs = [
        ("Study", f"{findings.study}, scale {findings.scale}"),
        ("Study hash", findings.study_hash),
        ("Runs", f"{counts} (diverged runs count as finished)"),
        ("Seeds", f"{found['seeds']} (0 to {found['seeds'] - 1}), shared by all arms"),
        *_tuning_seeds(results),
        ("Device", f"{device['type']}, {device['model']}"),
        ("Versions", versions),
        ("Commit", found["git_commit"]),
    ]
    return [[label, str(value)] for label, value in pairs if value]
