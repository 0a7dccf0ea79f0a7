"""The section of sensitivity: each claim's checks next to its primary result."""

from __future__ import annotations

import math
from collections.abc import Iterable

from stability.analysis import Finding
from stability.report.blocks import Paragraph, Part, Table
from stability.report.sections.registry import Blocks, ReportData, section
from stability.report.tables import Json, minus, number_cell, signs
from stability.sensitivity import Check
from stability.stats.wording import between

HEADS = (("Method", False), ("Effect", True), ("Interval", True), ("p", True), ("Verdict", False))

LABELS = {
    "sign-flips": "Sign flips",
    "ranks": "Ranks (Hodges–Lehmann)",
    "mixed-model": "Mixed model",
    "leave-one-seed-out": "Without one seed (range)",
}


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
            table = Table(f"Checks of the claim {claim.id}", heads, [*_rows(claim)], wide="last")
            yield Part(claim.text, (sentence, table))


def _rows(claim: Finding) -> Iterable[list[Json]]:
    yield _row("As decided", claim, claim.ratio, claim.verdict)
    for check in claim.sensitivity.checks:
        # The note of leave-one-seed-out already names verdicts: which one, without which seed.
        with_verdict = check.verdict and check.name != "leave-one-seed-out"
        words = f"{check.verdict}: {check.note}" if with_verdict and check.note else check.note or check.verdict
        yield _row(LABELS[check.name], check, claim.ratio, words)


def _row(method: str, result: Finding | Check, ratio: bool, words: str) -> list[Json]:
    interval = "–" if math.isnan(result.interval[0]) else minus(between(result.interval, ratio))
    return [
        {"text": method, "value": method},
        number_cell(result.effect),
        {"text": interval, "value": None},
        number_cell(result.p_value),
        {"text": words, "value": words},
    ]
