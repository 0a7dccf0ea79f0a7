"""The section of the claims: every verdict in one table, and the forest plot."""

from __future__ import annotations

from stability.report.blocks import Table
from stability.report.figures.cells import cell_forest
from stability.report.figures.forest import forest_plot
from stability.report.model import answers
from stability.report.sections.registry import Blocks, ReportData, section
from stability.report.tables import Json
from stability.stats.wording import confidence_in_percent

NUMBERS = ("Effect", "Interval", "Margin", "n", "Seeds to\nsettle")


@section(
    order=10,
    title="The claims",
    lead="Each claim was written down, with its measure and margin, before any run.",
)
def claims(data: ReportData) -> Blocks:
    """Yield the table of the claims and their forest plot."""
    if not data.findings.claims:
        return
    yield Table(
        "Claims",
        [{"label": label, "note": None, "numeric": label in NUMBERS} for label in ("Claim", "Verdict", *NUMBERS)],
        [_row(answer) for answer in answers(data)],
        caption=f"Effects with {confidence_in_percent(data.findings.claims[0].confidence)} intervals; n counts seeds. "
        "No difference is a ratio of 1 or a difference of 0; within the margin the study calls two arms equal.",
        size="large",
        wide="first",
    )
    if figure := forest_plot(data.results, data.findings):
        yield figure
    if figure := cell_forest(data.results, data.findings):
        yield figure


def _row(answer: Json) -> list[Json]:
    settle = answer["seeds_to_settle"]
    texts = (answer["effect"], answer["interval"], answer["within"], answer["n"], f"{settle:,}" if settle else None)
    beside = f"; {answer['cells'].rstrip('.')}" if answer.get("cells") else ""
    note = f"{answer['arms']}, {answer['kind']}{beside}"
    claim = {"text": answer["text"], "value": answer["id"], "note": note}
    badge = {"text": answer["word"], "value": answer["verdict"], "verdict": answer["verdict"], "shape": answer["shape"]}
    return [
        claim | ({"tag": "primary"} if answer["primary"] else {}),
        badge,
        *({"text": "–" if text is None else str(text), "value": text} for text in texts),
    ]
