"""Published figures beside ours as JSON data: a table for each, with what may be expected to agree."""

from __future__ import annotations

import math

from stability.analysis import Findings
from stability.report.tables import Json, minus
from stability.reproductions import Reproduction
from stability.stats.wording import between, number


def reproduced(findings: Findings) -> list[Json]:
    """Return one entry a published table: what it is of, its source, the table, and what came of its order."""
    return [
        {
            "text": found.text,
            "source": found.source,
            "transfers": found.transfers,
            "sentence": minus(found.sentence),
            "heading": found.heading,
            "table": _table(found),
        }
        for found in findings.published
    ]


def _table(found: Reproduction) -> Json:
    intervals = any(math.isfinite(row.interval[0]) for row in found.rows)
    heads = [("Setting", None), ("Published", found.unit or None), ("Ours", found.unit or None)]
    heads += [("95% interval", None), ("n", None)] if intervals else [("n", None)]
    rows = []
    for row in found.rows:
        known = math.isfinite(row.interval[0])
        interval = {"text": minus(between(row.interval, False)) if known else "–", "value": None}
        cells = [{"text": row.of, "value": row.of}, _number(row.published), _number(row.ours)]
        rows.append(
            [*cells, *([interval] if intervals else []), {"text": str(row.n) if row.n else "–", "value": row.n}]
        )
    columns = [{"label": label, "note": note, "numeric": label != "Setting"} for label, note in heads]
    return {"columns": columns, "rows": rows}


def _number(value: float) -> Json:
    finite = math.isfinite(value)
    return {"text": minus(number(value)) if finite else "–", "value": float(f"{value:.6g}") if finite else None}
