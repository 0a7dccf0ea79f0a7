"""The sensitivity appendix as JSON data: each claim's checks next to its primary result."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from stability.analysis import Finding, Findings
from stability.report.tables import Json, minus, signs
from stability.stats.wording import between, number

HEADS = (("Method", False), ("Effect", True), ("Interval", True), ("p", True), ("Verdict", False))

LABELS = {
    "sign-flips": "Sign flips",
    "ranks": "Ranks (Hodges–Lehmann)",
    "mixed-model": "Mixed model",
    "leave-one-seed-out": "Without one seed (range)",
}


@dataclass(frozen=True)
class _Row:
    method: str
    effect: float
    interval: tuple[float, float]
    p_value: float
    words: str


def appendix(findings: Findings) -> list[Json]:
    """Return one entry per tested claim: its id, its text, and the sentence and table of its checks."""
    return [
        {
            "id": claim.id,
            "text": claim.text,
            "agrees": claim.sensitivity.agrees,
            "sentence": signs(claim.sensitivity.sentence),
            "table": _table(claim),
        }
        for claim in sorted(findings.claims, key=lambda claim: not claim.primary)
        if claim.sensitivity.checks
    ]


def _table(claim: Finding) -> Json:
    heads = [{"label": label, "note": None, "numeric": numeric} for label, numeric in HEADS]
    return {"columns": heads, "rows": [_cells(row, claim.ratio) for row in _rows(claim)]}


def _rows(claim: Finding) -> Iterable[_Row]:
    yield _Row("As decided", claim.effect, claim.interval, claim.p_value, claim.verdict)
    for check in claim.sensitivity.checks:
        # The note of leave-one-seed-out already names verdicts: which one, without which seed.
        with_verdict = check.verdict and check.name != "leave-one-seed-out"
        words = f"{check.verdict}: {check.note}" if with_verdict and check.note else check.note or check.verdict
        yield _Row(LABELS[check.name], check.effect, check.interval, check.p_value, words)


def _cells(row: _Row, ratio: bool) -> list[dict[str, Any]]:
    has_interval = not math.isnan(row.interval[0])
    return [
        {"text": row.method, "value": row.method},
        _number(row.effect),
        {"text": minus(between(row.interval, ratio)) if has_interval else "–", "value": None},
        _number(row.p_value),
        {"text": row.words, "value": row.words},
    ]


def _number(value: float) -> dict[str, Any]:
    finite = math.isfinite(value)
    return {"text": minus(number(value)) if finite else "–", "value": float(f"{value:.6g}") if finite else None}
