"""The replications section of a report: a word for each claim, the table of all verdicts, and missing replications."""

from __future__ import annotations

from stability.analysis import Finding, Findings, Replication
from stability.replication_agreement import RULE
from stability.report.figures.replications import replicated_rows
from stability.report.tables import Json, effect_in_words, interval_in_words, plain

TITLE = "Replications"
LEAD = "The same claims asked again, at the same margins, of other data or seeds, each with runs and tuning of its own."


def replications(findings: Findings) -> Json | None:
    """Return the replications, a word for each claim and the table of verdicts; None without replications."""
    if not findings.replications:
        return None
    claims = sorted(findings.claims, key=lambda claim: not claim.primary)
    rows = replicated_rows(findings)
    return {
        "lead": LEAD,
        "rule": RULE,
        "places": [
            {"name": again.name, "changes": again.changes, "counts": _counts(again), "missing": again.missing or None}
            for again in findings.replications
        ],
        "words": [{"text": claim.text, "word": findings.agreement(claim.id).word} for claim in claims],
        "table": {
            "columns": [
                {"label": label, "note": "", "numeric": label in ("Effect", "Interval", "n")}
                for label in ("Claim", "On", "Verdict", "Effect", "Interval", "n")
            ],
            "rows": [_row(claim, name, finding) for claim in claims for name, finding in rows[claim.id]],
        },
    }


def _counts(again: Replication) -> str:
    if not again.counts:
        return ""
    shown = ", ".join(f"{again.counts[word]:,} {word}" for word in ("planned", "finished", "diverged", "failed"))
    return f"{again.counts['seeds']} seeds; runs: {shown}"


def _row(claim: Finding, name: str, finding: Finding) -> list[Json]:
    tested = finding.verdict != "not-testable"
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
