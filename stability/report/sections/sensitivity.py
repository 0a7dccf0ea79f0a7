"""The section of sensitivity: each claim's checks next to its primary result."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from stability.analysis import Finding
from stability.report.blocks import Paragraph, Part, Table
from stability.report.sections.registry import Blocks, ReportData, section
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


@section(
    order=170,
    title="Sensitivity",
    lead="Each claim once more under other assumptions, at the same confidence and by the same rules. The primary "
    "result decides; this says what it rests on.",
)
def sensitivity(data: ReportData) -> Blocks:
    """Yield the checks of each tested claim, the primary one first."""
    heads = [{"label": label, "note": None, "numeric": numeric} for label, numeric in HEADS]
    for claim in sorted(data.findings.claims, key=lambda claim: not claim.primary):
        if claim.sensitivity.checks:
            sentence = Paragraph(signs(claim.sensitivity.sentence), "" if claim.sensitivity.agrees else "disagrees")
            rows = [_cells(row, claim.ratio) for row in _rows(claim)]
            yield Part(claim.text, (sentence, Table(f"Checks of the claim {claim.id}", heads, rows, wide="last")))


def _rows(claim: Finding) -> Iterable[_Row]:
    yield _Row("As decided", claim.effect, claim.interval, claim.p_value, claim.verdict)
    for check in claim.sensitivity.checks:
        # The note of leave-one-seed-out already names verdicts: which one, without which seed.
        with_verdict = check.verdict and check.name != "leave-one-seed-out"
        words = f"{check.verdict}: {check.note}" if with_verdict and check.note else check.note or check.verdict
        yield _Row(LABELS[check.name], check.effect, check.interval, check.p_value, words)


def _cells(row: _Row, ratio: bool) -> list[Json]:
    has_interval = not math.isnan(row.interval[0])
    return [
        {"text": row.method, "value": row.method},
        _number(row.effect),
        {"text": minus(between(row.interval, ratio)) if has_interval else "–", "value": None},
        _number(row.p_value),
        {"text": row.words, "value": row.words},
    ]


def _number(value: float) -> Json:
    finite = math.isfinite(value)
    return {"text": minus(number(value)) if finite else "–", "value": float(f"{value:.6g}") if finite else None}
