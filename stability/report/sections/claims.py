"""The section of the claims: every verdict in one table, and the forest plot."""

from __future__ import annotations

from collections import Counter

from stability.analysis import Findings
from stability.report.blocks import Fact, Facts, Lead, Paragraph, Part, Table
from stability.report.figures.cells import cell_forest
from stability.report.figures.forest import forest_plot
from stability.report.model import answers
from stability.report.sections.registry import Blocks, ReportData, section
from stability.report.tables import Json
from stability.stats.wording import confidence_in_percent, seeds

NUMBERS = ("Effect", "Interval", "Margin", "n", "Seeds to\nsettle")


@section(order=10, title="The claims")
def claims(data: ReportData) -> Blocks:
    """Yield the table of the claims, what was withdrawn after the runs, and the forest plot."""
    if not data.findings.claims:
        return
    yield Lead(_registration(data.findings))
    yield Table(
        "Claims",
        [{"label": label, "note": None, "numeric": label in NUMBERS} for label in ("Claim", "Verdict", *NUMBERS)],
        [_row(answer) for answer in answers(data)],
        caption=f"Effects with {confidence_in_percent(data.findings.claims[0].confidence)} intervals; n counts seeds. "
        "No difference is a ratio of 1 or a difference of 0; within the margin the study calls two arms equal.",
        size="large",
        wide="first",
    )
    if withdrawn := data.findings.registration.get("withdrawn"):
        facts = [Fact(one["id"], f"{one['was']}, of {one['table']}") for one in withdrawn]
        yield Part(
            "Withdrawn after the runs",
            (
                Paragraph("Registered before the first step, and deleted after runs that test it were begun.", "small"),
                Facts(facts),
            ),
        )
    if figure := forest_plot(data.results, data.findings):
        yield figure
    if figure := cell_forest(data.results, data.findings):
        yield figure


def _registration(findings: Findings) -> str:
    """Return what is recorded of the claims before the runs, in a sentence or two."""
    if not findings.registration["recorded"]:
        return f"Registration not recorded. {findings.registration['note']}"
    counts = Counter(claim.registration for claim in findings.claims)
    registered, total = counts["registered"], len(findings.claims)
    head = "Each claim was" if registered == total else f"{registered} of {total} claims were"
    sentences = [f"{head} recorded, with measure and margin, before the first step of the runs that test it."]
    if counts["exploratory"]:
        sentences.append("The exploratory ones were added or changed later, as is said beside them.")
    if counts["not recorded"]:
        sentences.append(f"Of {counts['not recorded']}, no record was kept.")
    if seeds_then := findings.registration.get("seeds_at_first_look"):
        sentences.append(f"The results were first looked at with {seeds(seeds_then)}.")
    return " ".join(sentences)


def _row(answer: Json) -> list[Json]:
    settle = answer["seeds_to_settle"]
    texts = (answer["effect"], answer["interval"], answer["within"], answer["n"], f"{settle:,}" if settle else None)
    exploratory = ", exploratory" if answer["exploratory"] else ""
    beside = f"; {answer['cells'].rstrip('.')}" if answer.get("cells") else ""
    note = f"{answer['arms']}, {answer['kind']}{exploratory}{beside}"
    claim = {"text": answer["text"], "value": answer["id"], "note": note}
    badge = {"text": answer["word"], "value": answer["verdict"], "verdict": answer["verdict"], "shape": answer["shape"]}
    return [
        claim | ({"tag": "primary"} if answer["primary"] else {}),
        badge,
        *({"text": "–" if text is None else str(text), "value": text} for text in texts),
    ]
