"""The section of the controls: whether each claim's measure moved where a difference was planted."""

from __future__ import annotations

from collections.abc import Iterator

from stability.analysis import Finding
from stability.report.blocks import Table
from stability.report.sections.registry import Blocks, ReportData, section
from stability.report.tables import Json, effect_in_words, interval_in_words, plain

HEADS = ("Claim", "Control", "Planted", "Effect", "Interval", "Found")


@section(
    order=15,
    title="Controls",
    lead="Differences planted on purpose, compared exactly as each claim compares its arms. A measure that does not "
    "show them beyond the claim's margin could not have shown a difference, so that the claim's equality would be "
    "uninformative (assay sensitivity, ICH E10).",
)
def controls(data: ReportData) -> Blocks:
    """Yield the table of the controls, one row for each claim and control."""
    rows = [row for claim in data.findings.claims for row in _rows(claim)]
    if rows:
        heads = [{"label": label, "note": None, "numeric": label in ("Effect", "Interval")} for label in HEADS]
        yield Table("Controls", heads, rows, size="small", wide="first")


def _rows(claim: Finding) -> Iterator[list[Json]]:
    for control in claim.controls:
        tested = not control.problem
        alone = f" ({control.cells_found} of {control.cells} cells alone)" if control.cells else ""
        values = (
            (claim.id, claim.id),
            (f"{control.id}: {' against '.join(control.compare)}", control.id),
            (control.expect, control.expect),
            (effect_in_words(control.effect, control.ratio) if tested else "–", control.effect),
            (interval_in_words(control.interval, control.ratio) if tested else control.problem, control.interval[0]),
            (f"{'yes' if control.found else 'no'}{alone}", control.found),
        )
        yield [{"text": text, "value": plain(value)} for text, value in values]
