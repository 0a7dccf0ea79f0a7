"""The section of the replications: their changes and numbers, each claim again, and the table of all verdicts."""

from __future__ import annotations

from stability.analysis import Finding, Replication
from stability.report.blocks import Fact, Facts, Table
from stability.report.figures.replications import replicated_rows, replication_plot
from stability.report.sections.registry import Blocks, ReportData, section
from stability.report.tables import Json, effect_in_words, interval_in_words, plain
from stability.vocabulary import NOT_TESTABLE

HEADS = ("Claim", "On", "Verdict", "Effect", "Interval", "n")


@section(
    order=20,
    title="Replications",
    lead="The same claims asked again, at the same margins, of other data or seeds, each with runs and tuning of its "
    "own.",
)
def replications(data: ReportData) -> Blocks:
    """Yield the replications, and the plot and table of all verdicts if one of them is finished."""
    findings = data.findings
    if not findings.replications:
        return
    yield Facts([Fact(again.name, _counts(again), again.changes, again.missing) for again in findings.replications])
    if figure := replication_plot(data.results, findings):
        rows = replicated_rows(findings)
        claims = sorted(findings.claims, key=lambda claim: not claim.primary)
        yield figure
        yield Table(
            "Verdicts in study and replications",
            [{"label": label, "note": "", "numeric": label in ("Effect", "Interval", "n")} for label in HEADS],
            [_row(claim, name, finding) for claim in claims for name, finding in rows[claim.id]],
            size="small",
        )


def _counts(again: Replication) -> str:
    if not again.counts:
        return ""
    shown = ", ".join(f"{again.counts[word]:,} {word}" for word in ("planned", "finished", "diverged", "failed"))
    return f"{again.counts['seeds']} seeds; runs: {shown}"


def _row(claim: Finding, name: str, finding: Finding) -> list[Json]:
    tested = finding.verdict != NOT_TESTABLE
    effect = effect_in_words(finding.effect, finding.ratio) if tested else "–"
    interval = interval_in_words(finding.interval, finding.ratio) if tested else "–"
    values = (
        (claim.id, claim.id),
        (name, name),
        (finding.verdict.replace("-", " "), finding.verdict),
        (effect, finding.effect),
        (interval, finding.interval[0]),
        (str(finding.n_pairs), finding.n_pairs),
    )
    return [{"text": text, "value": plain(value)} for text, value in values]
