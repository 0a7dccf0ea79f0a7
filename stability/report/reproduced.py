"""Published numbers next to ours as JSON data: one table per source, with the quantities that should agree."""

from __future__ import annotations

import math

from stability.analysis import Findings
from stability.report.tables import Json, minus
from stability.reproductions import Reproduction
from stability.stats.wording import between, number


def reproduced(findings: Findings) -> list[Json]:
    """Return one entry per published table: its subject, source and numbers, and whether its order was reproduced."""
    return [
        {
            "text": reproduction.text,
            "source": reproduction.source,
            "transfers": reproduction.transfers,
            "sentence": minus(reproduction.sentence),
            "heading": reproduction.heading,
            "table": _table(reproduction),
        }
        for reproduction in findings.published
    ]


def _table(reproduction: Reproduction) -> Json:
    intervals = any(math.isfinite(row.interval[0]) for row in reproduction.rows)
    heads = [("Setting", None), ("Published", reproduction.unit or None), ("Ours", reproduction.unit or None)]
    heads += [("95% interval", None), ("n", None)] if intervals else [("n", None)]
    rows = []
    for row in reproduction.rows:
        has_interval = math.isfinite(row.interval[0])
        interval = {"text": minus(between(row.interval, False)) if has_interval else "–", "value": None}
        cells = [{"text": row.of, "value": row.of}, _number(row.published), _number(row.ours)]
        rows.append(
            [*cells, *([interval] if intervals else []), {"text": str(row.n) if row.n else "–", "value": row.n}]
        )
    columns = [{"label": label, "note": note, "numeric": label != "Setting"} for label, note in heads]
    return {"columns": columns, "rows": rows}


def _number(value: float) -> Json:
    finite = math.isfinite(value)
    return {"text": minus(number(value)) if finite else "–", "value": float(f"{value:.6g}") if finite else None}
