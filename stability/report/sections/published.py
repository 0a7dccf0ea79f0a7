"""The section of published numbers next to ours: one table per source, with the quantities that should agree."""

from __future__ import annotations

import math

from stability.report.blocks import Paragraph, Part, Table
from stability.report.sections.registry import Blocks, ReportData, section
from stability.report.tables import minus, number_cell
from stability.reproductions import Reproduction
from stability.stats.wording import between


@section(
    order=150,
    title="Published figures beside ours",
    short="Published figures",
    lead="What papers report of the same settings, next to what came out here. Sizes, data and budgets differ; this "
    "decides no claim.",
)
def published(data: ReportData) -> Blocks:
    """Yield each published table: its subject, source and numbers, and whether its order was reproduced."""
    for reproduction in data.findings.published:
        source = Paragraph(f"{reproduction.heading}. Published: {reproduction.source}", "small")
        sentence = Paragraph(f"{minus(reproduction.sentence)} {reproduction.transfers}")
        yield Part(reproduction.text, (source, _table(reproduction), sentence))


def _table(reproduction: Reproduction) -> Table:
    intervals = any(math.isfinite(row.interval[0]) for row in reproduction.rows)
    heads = [("Setting", None), ("Published", reproduction.unit or None), ("Ours", reproduction.unit or None)]
    heads += [("95% interval", None), ("n", None)] if intervals else [("n", None)]
    rows = []
    for row in reproduction.rows:
        has_interval = math.isfinite(row.interval[0])
        interval = {"text": minus(between(row.interval, False)) if has_interval else "–", "value": None}
        cells = [{"text": row.of, "value": row.of}, number_cell(row.published), number_cell(row.ours)]
        rows.append(
            [*cells, *([interval] if intervals else []), {"text": str(row.n) if row.n else "–", "value": row.n}]
        )
    columns = [{"label": label, "note": note, "numeric": label != "Setting"} for label, note in heads]
    return Table(reproduction.text, columns, rows)
