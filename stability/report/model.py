"""The content of a report as plain JSON data, before rendering.

It holds no time, path or duration, so equal results give equal bytes. Values that were not measured are absent or null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stability.analysis import Finding, Results, look_sentence
from stability.analysis.cells import cells_in_words
from stability.analysis.findings import assay_sentence
from stability.report.blocks import Table, as_json
from stability.report.caveats import Caveats
from stability.report.data import ReportData
from stability.report.tables import Json, effect_in_words, interval_in_words, missing_table, signs
from stability.stats.comparison import margin_region
from stability.stats.wording import confidence_in_percent, number
from stability.study import Study
from stability.vocabulary import NOT_TESTABLE, VERDICTS, axes_in, axis_of


def describe(data: ReportData, sections: Sequence[Json]) -> Json:
    """Return the report of a study as JSON data, the content of report.json and of both renderings.

    *sections* are those of `sections_of` as JSON data.
    """
    study, findings = data.results.study, data.findings
    return {
        "schema": 2,
        "study": study.name,
        "scale": study.scale,
        "title": study.title,
        "question": study.question,
        "source": study.source,
        "verdict": findings.verdict,
        "facts": _facts(data.results),
        "interim": interim(data.results),
        "answers": answers(data),
        "confidence": confidence_in_percent(findings.claims[0].confidence) if findings.claims else None,
        "looks": look_sentence(findings.looks) or None,
        "sections": list(sections),
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
        "missing": as_json(Table("What is missing", **missing_table(runs), size="small")),
    }


def _facts(results: Results) -> str:
    """Return the size of the study in one line: runs, arms, seeds and steps."""
    study, runs = results.study, results.runs
    parts = [f"replication {study.replication}: {study.changes}"] if study.replication else []
    parts += [f"{len(runs):,} runs", f"{runs['arm'].nunique()} arms", f"{study.grid.seeds} seeds"]
    parts += [
        f"{levels} {axis_of(axis).plural}" for axis in axes_in(runs.columns) if (levels := runs[axis].nunique()) > 1
    ]
    if results.tuning:
        parts.append(f"{len(results.tuning.tried):,} tuning runs before")
    return " · ".join([*parts, lengths_in_words(study)])


def lengths_in_words(study: Study) -> str:
    """Return the number of steps of the runs; a range from the largest to the smallest batch if samples are matched."""
    steps = sorted({study.lengths(size)[0] for size in study.grid.batch_size})
    if len(steps) == 1:
        shared = any(study.first_step(arm, size) for arm in study.grid.arms for size in study.grid.batch_size)
        return f"{steps[0]:,} steps each{', those that they start from included' if shared else ''}"
    return f"{steps[0]:,} to {steps[-1]:,} steps, equal samples seen"


# --- claims ----------------------------------------------------------------------------------------------------------


def answers(data: ReportData) -> list[Json]:
    """Return the answers to the claims, the primary one first, with the notes below them."""
    as_json = data.findings.to_json()
    agreement = as_json.get("agreement", {})
    untuned = {claim["id"]: answer_of(claim) for claim in as_json.get("untuned", [])}
    by_id = {finding.id: finding for finding in data.findings.claims}
    return [
        answer_of(claim)
        | {"untuned": untuned.get(claim["id"]), "agreement": agreement.get(claim["id"])}
        | {"exploratory": claim.get("registration_note")}
        | _caveats_of(claim, data.caveats)
        | _beside(by_id[claim["id"]])
        for claim in sorted(as_json["claims"], key=lambda claim: not claim["primary"])
    ]


def _beside(finding: Finding) -> Json:
    """Return what stands beside a pooled effect: its cells, and whether an equivalence could have shown a difference.

    None where there is nothing to say.
    """
    tested = finding.verdict != NOT_TESTABLE
    cells = cells_in_words(finding.cells, finding.ratio) if tested else ""
    lines = {"cells": f"Cell by cell: {cells}." if cells else "", "assay": assay_sentence(finding)}
    return {key: signs(text) if text else None for key, text in lines.items()}


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


def _caveats_of(claim: Mapping[str, Any], caveats: Caveats) -> Json:
    """Return the notes below an answer.

    "turns" is whether the effect has opposite signs in two cells, "uneven" a sentence on the disagreement between
    cells, and "idle" a sentence on an uninformative equality. An effect that only differs in size between cells is
    noted here for the primary claim; for the others it is listed among the limitations.
    """
    heterogeneity, idle = caveats.heterogeneity.get(claim["id"]), caveats.idle.get(claim["id"])
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
