"""Two runs of one study side by side: before and after a change, on two devices, with two versions."""

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
from stability.report.model import answer_of, interim, provenance_rows
from stability.report.tables import Json, effect_in_words
from stability.stats.wording import number, percent
from stability.store import write_atomically

FILES = {"html": "index.html", "json": "comparison.json"}


def write_comparison(first: str | Path, second: str | Path, out: str | Path | None = None) -> dict[str, Path]:
    """Return the paths (html, json) of two run directories side by side, written to *out*, by default beside *second*.

    Claims are tested in both; nothing is run. Raises `InputError` for runs of two studies, and where nothing can be
    written.
    """
    before, after = Path(first), Path(second)
    if before.resolve() == after.resolve():
        raise InputError(f"{after}: given twice; allowed: two runs of one study")
    folder = Path(out) if out else after.resolve().parent / f"{after.resolve().name}-against-{before.resolve().name}"
    compared = compare(analysis.load_results(before), analysis.load_results(after), (before.name, after.name))
    files = {"html": page(compared), "json": json.dumps(compared, indent=1, allow_nan=False) + "\n"}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for kind, text in files.items():
            write_atomically(folder / FILES[kind], text.encode())
    except OSError as error:
        raise InputError(f"{folder}: the comparison cannot be written ({error.strerror or error})") from error
    return {kind: folder / name for kind, name in FILES.items()}


def page(compared: Mapping[str, Any]) -> str:
    """Return the page of a comparison."""
    return environment().get_template("comparison.html").render(compared=compared)


def compare(first: Results, second: Results, names: tuple[str, str] = ("A", "B")) -> Json:
    """Return two runs of one study as JSON data: claims, numbers of the runs that both have, provenance, study text.

    Raises `InputError` if they are of two studies.
    """
    both = (first, second)
    if first.study.name != second.study.name:
        raise InputError(
            f"{names[1]}: a run of the study {second.study.name!r}; allowed: {first.study.name!r}, as {names[0]}"
        )
    found = tuple(analysis.analyze(results) for results in both)
    return {
        "schema": 1,
        "study": first.study.name,
        "title": second.study.title,
        "names": list(names),
        "interim": [interim(results) for results in both],
        "claims": _claims(*found),
        "runs": _runs(first, second),
        "provenance": _provenance(*zip(both, found, strict=True)),
        "study_changes": _changes(first.study.text, second.study.text, names),
    }


# --- claims ----------------------------------------------------------------------------------------------------------


def _claims(first: Findings, second: Findings) -> list[Json]:
    """Return the claims of either run, the primary one first: both answers, and how far the effect moved."""
    sides = [{claim["id"]: claim for claim in found.to_json()["claims"]} for found in (first, second)]
    ids = dict.fromkeys([*sides[1], *sides[0]])
    rows = [_claim(sides[0].get(name), sides[1].get(name)) for name in ids]
    return sorted(rows, key=lambda row: not row["primary"])


def _claim(first: Mapping[str, Any] | None, second: Mapping[str, Any] | None) -> Json:
    known = second or first
    assert known is not None
    answers = [answer_of(claim) if claim else None for claim in (first, second)]
    verdicts = [answer["verdict"] if answer else None for answer in answers]
    return {
        "id": known["id"],
        "primary": known["primary"],
        "text": known["text"],
        "answers": answers,
        "same": verdicts[0] == verdicts[1],
        "moved": _moved(first, second) if all(answer and answer["effect"] for answer in answers) else None,
    }


def _moved(first: Mapping[str, Any] | None, second: Mapping[str, Any] | None) -> str | None:
    """Return how far an effect moved from the first run to the second: a factor of ratios, else a difference."""
    if not first or not second or first["ratio"] != second["ratio"]:
        return None
    if not first["ratio"]:
        return effect_in_words(second["effect"] - first["effect"], ratio=False)
    return effect_in_words(second["effect"] / first["effect"], ratio=True) if first["effect"] else None


# --- runs ------------------------------------------------------------------------------------------------------------


def _runs(first: Results, second: Results) -> Json:
    """Return how many runs both have, and how far apart the claims' measures and the loss end in them.

    The gap of a measure is the largest over those runs; beside it stands its standard deviation over all of them in
    the first run, so that it can be judged.
    """
    done = [results.runs[results.runs["status"].isin(["finished", "diverged"])] for results in (first, second)]
    shared = [run for run in done[0]["run"] if run in set(done[1]["run"])]
    names = dict.fromkeys(["loss", *(name for claim in second.study.claims for name in claim.measures)])
    apart = [_apart(first, second, name, shared) for name in names if _number(first, name) and _number(second, name)]
    status = [rows.set_index("run")["status"].reindex(shared) for rows in done]
    return {
        "finished": [len(rows) for rows in done],
        "shared": len(shared),
        "fates_apart": int((status[0] != status[1]).sum()),
        "measures": [row for row in apart if row],
    }


def _number(results: Results, name: str) -> bool:
    return name in results.measures and not results.measures[name].listed


def _apart(first: Results, second: Results, name: str, shared: list[str]) -> Json | None:
    values = [
        summarize(results, name, "tail_mean").reindex(shared).to_numpy(dtype=float) for results in (first, second)
    ]
    known = np.isfinite(values[0]) & np.isfinite(values[1])
    if not known.any():
        return None
    before, after = (side[known] for side in values)
    gap, spread = float(np.abs(after - before).max()), float(before.std(ddof=1)) if known.sum() > 1 else math.nan
    return {
        "measure": first.measures[name].label,
        "runs": int(known.sum()),
        "equal": int((before == after).sum()),
        "gap": number(gap),
        "spread": number(spread) if math.isfinite(spread) else None,
        "share": percent(gap / spread) if math.isfinite(spread) and spread else None,
    }


# --- provenance ------------------------------------------------------------------------------------------------------


def _provenance(first: tuple[Results, Findings], second: tuple[Results, Findings]) -> list[Json]:
    """Return where both runs come from, a row a fact, versions one by one."""
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
    """Return how the study file differs, as a unified diff; None where it does not."""
    changed = difflib.unified_diff(first.splitlines(), second.splitlines(), *names, lineterm="", n=2)
    return "\n".join(changed) or None
