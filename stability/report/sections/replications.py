"""The section of the replications: their changes and numbers, each claim again, and the table of all verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterator

from stability.analysis import Finding, Replication
from stability.replication_agreement import Agreement
from stability.report.blocks import Fact, Facts, Table
from stability.report.figures.replications import JOINED, replicated_rows, replication_plot
from stability.report.sections.registry import Blocks, ReportData, section
from stability.report.tables import Json, effect_in_words, interval_in_words, plain
from stability.stats.wording import number
from stability.vocabulary import NOT_TESTABLE

HEADS = ("Claim", "On", "Verdict", "Effect", "Interval", "n", "Against the study", "Difference")
NUMBERS = ("Effect", "Interval", "n", "Difference")


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
        agreements = {claim.id: findings.agreement(claim.id) for claim in findings.claims}
        claims = sorted(findings.claims, key=lambda claim: not claim.primary)
        yield figure
        yield Table(
            "Verdicts in study and replications",
            [{"label": label, "note": "", "numeric": label in NUMBERS} for label in HEADS],
            [
                row
                for claim in claims
                for row in (
                    *(_row(claim, name, finding, agreements[claim.id]) for name, finding in rows[claim.id]),
                    *_joined(claim, agreements[claim.id]),
                )
            ],
            caption="The difference of two ratios is their ratio. Joined: the random-effects mean of all sites.",
            size="small",
        )


def _counts(again: Replication) -> str:
    if not again.counts:
        return ""
    shown = ", ".join(f"{again.counts[word]:,} {word}" for word in ("planned", "finished", "diverged", "failed"))
    return f"{again.counts['seeds']} seeds; runs: {shown}"


def _joined(claim: Finding, agreement: Agreement) -> Iterator[list[Json]]:
    """Yield the row of the joined effect, if there is one."""
    if (mean := agreement.joined) is None:
        return
    values = (
        (claim.id, claim.id),
        (f"joined, {mean.sites} sites", JOINED),
        (f"tau {number(mean.tau)}", mean.tau),
        (effect_in_words(mean.effect, claim.ratio), mean.effect),
        (interval_in_words(mean.interval, claim.ratio), mean.interval[0]),
        *[("–", None)] * 3,
    )
    yield [{"text": text, "value": plain(value)} for text, value in values]


def _row(claim: Finding, name: str, finding: Finding, agreement: Agreement) -> list[Json]:
    tested = finding.verdict != NOT_TESTABLE
    effect = effect_in_words(finding.effect, finding.ratio) if tested else "–"
    interval = interval_in_words(finding.interval, finding.ratio) if tested else "–"
    site = next((site for site in agreement.sites if site.name == name), None)
    known = site is not None and math.isfinite(site.difference) and math.isfinite(site.interval[1])
    difference = (
        f"{effect_in_words(site.difference, claim.ratio)} ({interval_in_words(site.interval, claim.ratio)})"
        if site and known
        else "–"
    )
    values = (
        (claim.id, claim.id),
        (name, name),
        (finding.verdict.replace("-", " "), finding.verdict),
        (effect, finding.effect),
        (interval, finding.interval[0]),
        (str(finding.n_pairs), finding.n_pairs),
        (site.word if site else "–", site.word if site else None),
        (difference, site.difference if site and known else None),
    )
    return [{"text": text, "value": plain(value)} for text, value in values]
