"""The model of a report: everything that it says, as plain JSON data, before it looks like anything.

No time, path or duration is in it, so that equal results give equal bytes; what was not measured is absent or null.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stability.analysis import AXES, Findings, Results, summarise
from stability.report.figures import Drawn
from stability.report.limitations import limitations
from stability.report.method import method
from stability.stats.comparison import margin_region
from stability.stats.wording import between, confidence_in_percent, number, percent

Json = dict[str, Any]

SHAPES = {"supported": "✔", "contradicted": "✘", "equivalent": "=", "inconclusive": "?", "not-testable": "–"}
"""A mark for each verdict, so that no reader depends on its colour."""

SECTIONS = {
    "claims": ("The claims", "Each claim was written down, with its measure and margin, before any run."),
    "learning": (
        "Learning",
        "Every seed is a thin line, the median of the seeds a bold one. Losses differ in scale and chance level, so "
        "compare arms by what their embeddings can do, not by the loss.",
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
        "Where matching and mismatching held-out pairs lie on the sphere at the end of training, and on the way.",
    ),
}

CELL_MEASURES = (
    ("loss", "late"),
    ("recall_at_1", "final"),
    ("zero_shot_accuracy", "final"),
    ("gradient_noise_fraction", "late"),
    ("sharpness_ratio", "final"),
    ("margin_trimmed", "final"),
    ("modality_gap", "final"),
)

AXIS_LABELS = {
    "arm": "Arm",
    "seed": "Seed",
    "batch_size": "Batch",
    "corruption": "Corruption",
    "noise": "Noise",
    "lr": "Rate",
    "runs": "Runs",
    "diverged": "Diverged",
}


def describe(results: Results, findings: Findings, drawn: Sequence[Drawn]) -> Json:
    """Return the report of a study as JSON data: what report.json holds and what both renderings show."""
    study = results.study
    answers = [answer_of(claim) for claim in sorted(findings.to_json()["claims"], key=lambda claim: not claim["primary"])]
    counts = results.runs["status"].value_counts()
    missing = int(counts.get("planned", 0))
    return {
        "schema": 1,
        "study": study.name,
        "scale": study.scale,
        "title": study.title,
        "question": study.question,
        "source": study.source,
        "verdict": findings.verdict,
        "facts": _facts(results),
        "interim": f"Interim: {missing} of {len(results.runs)} runs are not finished." if missing else None,
        "answers": answers,
        "confidence": confidence_in_percent(findings.claims[0].confidence) if findings.claims else None,
        "sections": _sections(drawn, bool(answers)),
        "crosscheck": _crosscheck(results),
        "cells": _cells(results, findings),
        "method": method(results, findings),
        "limitations": limitations(results, findings),
        "provenance": _provenance(results, findings),
        "command": findings.provenance["command"],
        "study_text": study.text,
    }


def _facts(results: Results) -> str:
    """Return one line on the size of the study: runs, arms, seeds and steps."""
    study, runs = results.study, results.runs
    parts = [f"{len(runs):,} runs", f"{runs['arm'].nunique()} arms", f"{study.grid.seeds} seeds"]
    for axis, word in (("batch_size", "batch sizes"), ("noise", "noise levels"), ("lr", "learning rates")):
        if (levels := runs[axis].nunique()) > 1:
            parts.append(f"{levels} {word}")
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
        "effect": _effect(claim["effect"], claim["ratio"]) if tested else None,
        "interval": _interval(claim["interval"], claim["ratio"]) if tested else None,
        "equal": _interval(margin_region(claim["margin"], claim["ratio"]), claim["ratio"]),
        "kind": "ratio" if claim["ratio"] else "difference",
        "n": claim["n_pairs"],
        "p_adjusted": number(claim["p_adjusted"]) if tested and claim["p_adjusted"] is not None else None,
    }


def _effect(effect: float, ratio: bool) -> str:
    """Return an effect as a factor or with its sign.

    >>> _effect(0.8812, True), _effect(-0.12, False), _effect(3.0, False)
    ('0.881 ×', '−0.12', '+3')
    """
    return f"{number(effect)} ×" if ratio else f"{'+' if effect > 0 else ''}{minus(number(effect))}"


def _interval(ends: Sequence[float | None], ratio: bool) -> str:
    """Return an interval in words; null is an end that is not bounded."""
    lowest = 0.0 if ratio else -math.inf
    lo, hi = (open_end if end is None else end for end, open_end in zip(ends, (lowest, math.inf), strict=True))
    return minus(between((lo, hi), ratio))


def minus(text: str) -> str:
    """Return a number's text with a true minus sign; exponents keep theirs.

    >>> minus("-0.2 to -2e-07")
    '−0.2 to −2e-07'
    """
    return re.sub(r"(?<![\w.])-(?=[\di])", "−", text)


# --- figures and tables ----------------------------------------------------------------------------------------------


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


def plain_table(frame: pd.DataFrame) -> Json:
    """Return a table as JSON data: column names and rows, numbers to six digits, null where nothing was measured."""
    columns = [[plain(value) for value in frame[name]] for name in frame.columns]
    rows = [list(row) for row in zip(*columns, strict=True)]
    return {"columns": [str(name) for name in frame.columns], "rows": rows}


def plain(value: Any) -> Any:
    """Return a value of a table as JSON has it, floats to six significant digits, null for NaN and infinity.

    >>> plain(np.float32(0.1)), plain(float("nan")), plain(np.array([1.0, 1 / 3])), plain("clip")
    (0.1, None, [1.0, 0.333333], 'clip')
    """
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(f"{float(value):.6g}") if math.isfinite(value) else None
    return None if value is None or value is pd.NA else str(value)


def _cells(results: Results, findings: Findings) -> Json:
    """Return one row per cell of the grid: mean and standard deviation over seeds of the main measures."""
    runs = results.runs
    axes = ["arm", *(axis for axis in AXES if runs[axis].nunique() > 1)]
    chosen = dict(CELL_MEASURES)
    chosen |= {claim.measure: "late" for claim in findings.claims if claim.measure not in chosen}
    numbers = {name: _known(results, name, how) for name, how in chosen.items()}
    numbers = {name: values for name, values in numbers.items() if values is not None}
    columns = [*axes, "runs", *(["diverged"] if (runs["status"] == "diverged").any() else [])]
    rows = []
    for key, cell in runs.groupby(axes, sort=False):
        counted = {"runs": len(cell), "diverged": int((cell["status"] == "diverged").sum())}
        facts = {**dict(zip(axes, key, strict=True)), **counted}
        row = [_cell(facts[name]) for name in columns]
        rows.append(row + [_mean_and_spread(values.reindex(cell["run"]).to_numpy()) for values in numbers.values()])
    heads = [_head(AXIS_LABELS[name], "", name != "arm") for name in columns]
    for name in numbers:
        measure = results.measures[name]
        when = "" if chosen[name] == "final" else f"mean over the last fifth of steps{', ' * bool(measure.unit)}"
        heads.append(_head(measure.label, f"{when}{measure.unit}", True))
    fixed = [f"{AXIS_LABELS[axis].lower()} {_plainly(runs[axis].iloc[0])}" for axis in AXES if axis not in axes]
    return {"columns": heads, "rows": rows, "fixed": ", ".join(fixed) or None}


def _known(results: Results, name: str, reduction: str) -> pd.Series | None:
    """Return one number a run of a measure that the study made, or None."""
    if name not in results.measures or results.measures[name].listed:
        return None
    values = summarise(results, name, reduction)
    return values if np.isfinite(values.to_numpy(dtype=float)).any() else None


def _crosscheck(results: Results) -> Json | None:
    """Return our top eigenvalue and trace beside PyHessian's and the exact ones, a row a checked run; None if none."""
    if "crosscheck_high" not in results.steps:
        return None
    rows = results.steps[results.steps["crosscheck_high"].notna()]
    last = rows.groupby("run", sort=False).tail(1).merge(results.runs, on="run")
    if not len(last):
        return None
    exact = [name for name in ("dense_high", "dense_trace") if last[name].notna().any()]
    heads = [_head(AXIS_LABELS[name], "", name != "arm") for name in ("arm", "batch_size", "seed")]
    names = ["crosscheck_high", "pyhessian_high", *exact[:1], "crosscheck_trace", "pyhessian_trace", *exact[1:]]
    heads += [_head(results.measures[name].label, "", True) for name in names]
    spread = {"crosscheck_high": "crosscheck_residual", "crosscheck_trace": "crosscheck_trace_stderr"}
    body = []
    for _, row in last.iterrows():
        cells = [_cell(row[name]) for name in ("arm", "batch_size", "seed")]
        body.append(cells + [_with_error(row[name], row.get(spread.get(name, ""))) for name in names])
    apart = float((last["crosscheck_high"] / last["pyhessian_high"] - 1).abs().max())
    agreed = f"The two largest eigenvalues differ by at most {percent(apart)}." if math.isfinite(apart) else None
    return {"columns": heads, "rows": body, "agreement": agreed}


def _head(label: str, note: str, numeric: bool) -> Json:
    return {"label": label, "note": note or None, "numeric": numeric}


def _cell(value: Any) -> Json:
    known = plain(value)
    return {"text": _plainly(value), "value": known}


def _plainly(value: Any) -> str:
    known = plain(value)
    if known is None:
        return "–"
    return minus(number(known)) if isinstance(known, float) else str(known)


def _with_error(value: float, error: float | None) -> Json:
    cell = _cell(value)
    if error is not None and math.isfinite(error):
        cell["text"] += f" ± {_small(error)}"
    return cell


def _mean_and_spread(values: Iterable[float]) -> Json:
    """Return the mean over seeds with the standard deviation behind it, as a cell."""
    known = np.asarray(list(values), dtype=float)
    known = known[np.isfinite(known)]
    if not len(known):
        return _cell(None)
    cell = _cell(float(known.mean()))
    if len(known) > 1:
        cell["text"] += f" ± {_small(float(known.std(ddof=1)))}"
    return cell


def _small(value: float) -> str:
    return f"{value:.2g}"


# --- provenance ------------------------------------------------------------------------------------------------------


def _provenance(results: Results, findings: Findings) -> list[list[str]]:
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
        ("Device", f"{device['type']}, {device['model']}"),
        ("Versions", versions),
        ("Commit", found["git_commit"]),
    ]
    return [[label, str(value)] for label, value in pairs if value]
