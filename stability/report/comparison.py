"""Comparison of two runs of one study, for example before and after a change, or on two devices."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stability import analysis
from stability.analysis import Findings, Results, summarize
from stability.registry import InputError
from stability.report.html import environment
from stability.report.model import answer_of, interim
from stability.report.sections.provenance import provenance_rows
from stability.report.tables import Json, effect_in_words
from stability.stats.wording import number, percent
from stability.store import write_files

FILES = {"html": "index.html", "json": "comparison.json"}


def write_comparison(first: str | Path, second: str | Path, out: str | Path | None = None) -> dict[str, Path]:
    """Write a comparison of two run directories and return its paths (html, json).

    The claims are tested in both; nothing is run.

    Args:
        first: The run directory to compare with.
        second: The run directory that is compared.
        out: The directory to write to; by default a new one next to *second*.

    Raises:
        InputError: If the runs belong to two studies, or the files cannot be written.
    """
    before, after = Path(first), Path(second)
    if before.resolve() == after.resolve():
        raise InputError(f"{after}: given twice; allowed: two runs of one study")
    folder = Path(out) if out else after.resolve().parent / f"{after.resolve().name}-against-{before.resolve().name}"
    compared = compare(analysis.load_to_show(before), analysis.load_to_show(after), (before.name, after.name))
    texts = {"html": page(compared), "json": json.dumps(compared, indent=1, allow_nan=False) + "\n"}
    write_files(folder, {FILES[kind]: text.encode() for kind, text in texts.items()}, "the comparison")
    return {kind: folder / name for kind, name in FILES.items()}


def page(compared: Mapping[str, Any]) -> str:
    """Return the page of a comparison."""
    return environment().get_template("comparison.html").render(compared=compared)


def compare(first: Results, second: Results, names: tuple[str, str] = ("A", "B")) -> Json:
    """Compare two runs of one study as JSON data: claims, values of the shared runs, provenance and study text.

    Raises `InputError` if they belong to two studies.
    """
    both = (first, second)
    if first.study.name != second.study.name:
        raise InputError(
            f"{names[1]}: a run of the study {second.study.name!r}; allowed: {first.study.name!r}, as {names[0]}"
        )
    findings = tuple(analysis.analyze(results) for results in both)
    return {
        "schema": 1,
        "study": first.study.name,
        "title": second.study.title,
        "names": list(names),
        "interim": [interim(results) for results in both],
        "claims": _claims(*findings),
        "runs": _runs(first, second),
        "provenance": _provenance(*zip(both, findings, strict=True)),
        "study_changes": _changes(first.study.text, second.study.text, names),
    }


# --- claims ----------------------------------------------------------------------------------------------------------


def _claims(first: Findings, second: Findings) -> list[Json]:
    """Return the claims of either run, the primary one first, with both answers and the change of the effect."""
    sides = [{claim["id"]: claim for claim in findings.to_json()["claims"]} for findings in (first, second)]
    ids = dict.fromkeys([*sides[1], *sides[0]])
    rows = [_claim(sides[0].get(name), sides[1].get(name)) for name in ids]
    return sorted(rows, key=lambda row: not row["primary"])


def _claim(first: Mapping[str, Any] | None, second: Mapping[str, Any] | None) -> Json:
    definition = second or first
    assert definition is not None
    answers = [answer_of(claim) if claim else None for claim in (first, second)]
    verdicts = [answer["verdict"] if answer else None for answer in answers]
    return {
        "id": definition["id"],
        "primary": definition["primary"],
        "text": definition["text"],
        "answers": answers,
        "same": verdicts[0] == verdicts[1],
        "moved": _moved(first, second) if all(answer and answer["effect"] for answer in answers) else None,
    }


def _moved(first: Mapping[str, Any] | None, second: Mapping[str, Any] | None) -> str | None:
    """Return the change of an effect from the first run to the second: a factor for ratios, else a difference."""
    if not first or not second or first["ratio"] != second["ratio"]:
        return None
    if not first["ratio"]:
        return effect_in_words(second["effect"] - first["effect"], ratio=False)
    return effect_in_words(second["effect"] / first["effect"], ratio=True) if first["effect"] else None


# --- runs ------------------------------------------------------------------------------------------------------------


def _runs(first: Results, second: Results) -> Json:
    """Return the number of shared runs and the differences in the loss and the claims' measures between them.

    The gap of a measure is its largest difference over the shared runs. Its standard deviation over the same runs in
    the first run is given as the scale of comparison.
    """
    done = [results.runs[results.runs["status"].isin(["finished", "diverged"])] for results in (first, second)]
    shared = [run for run in done[0]["run"] if run in set(done[1]["run"])]
    names = dict.fromkeys(["loss", *(name for claim in second.study.claims for name in claim.measures)])
    scalar_names = [name for name in names if _is_scalar(first, name) and _is_scalar(second, name)]
    differences = [_difference(first, second, name, shared) for name in scalar_names]
    status = [rows.set_index("run")["status"].reindex(shared) for rows in done]
    return {
        "finished": [len(rows) for rows in done],
        "shared": len(shared),
        "fates_apart": int((status[0] != status[1]).sum()),
        "measures": [row for row in differences if row],
    }


def _is_scalar(results: Results, name: str) -> bool:
    return name in results.measures and not results.measures[name].listed


def _difference(first: Results, second: Results, name: str, shared: list[str]) -> Json | None:
    values = [
        summarize(results, name, "tail_mean").reindex(shared).to_numpy(dtype=float) for results in (first, second)
    ]
    finite = np.isfinite(values[0]) & np.isfinite(values[1])
    if not finite.any():
        return None
    before, after = (side[finite] for side in values)
    gap, spread = float(np.abs(after - before).max()), float(before.std(ddof=1)) if finite.sum() > 1 else math.nan
    return {
        "measure": first.measures[name].label,
        "runs": int(finite.sum()),
        "equal": int((before == after).sum()),
        "gap": number(gap),
        "spread": number(spread) if math.isfinite(spread) else None,
        "share": percent(gap / spread) if math.isfinite(spread) and spread else None,
    }


# --- provenance ------------------------------------------------------------------------------------------------------


def _provenance(first: tuple[Results, Findings], second: tuple[Results, Findings]) -> list[Json]:
    """Return the provenance of both runs, one row per entry and per package version."""
    sides = [dict(_facts(*side)) for side in (first, second)]
    labels = dict.fromkeys([*sides[0], *sides[1]])
    return [{"label": label, "both": _both(sides, label), "same": len({*_both(sides, label)}) == 1} for label in labels]


def _both(sides: list[dict[str, str]], label: str) -> list[str]:
    return [side.get(label, "–") for side in sides]


def _facts(results: Results, findings: Findings) -> Iterator[tuple[str, str]]:
    for label, value in provenance_rows(results, findings):
        if label == "Versions":
            yield from findings.provenance["versions"].items()
        else:
            yield label, value


def _changes(first: str, second: str, names: tuple[str, str]) -> str | None:
    """Return a unified diff of the two study files; None if they are equal."""
    changed = difflib.unified_diff(first.splitlines(), second.splitlines(), *names, lineterm="", n=2)
    return "\n".join(changed) or None
