"""The forest plot of the replications: each claim in the study and in its replications, on one scale."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stability.analysis import Finding, Findings, Results
from stability.replication_agreement import Agreement, JoinedEffect
from stability.report.figures.figure import ReportFigure
from stability.report.figures.forest import (
    band,
    frame,
    kinds_of,
    mark,
    quantity_of,
    shared_quantity,
    stacked,
    testable,
    verdict_only,
    write_claim,
)
from stability.report.style import LIGHT, WIDTH, styled
from stability.stats.wording import between, number

HEAD, LINE, FOOT = 0.34, 0.24, 0.6
"""Heights in inches: of a claim's text, of each interval below it, and of the axis below a panel."""

NAMES = 1.15
"""Width in inches of the names of study and replications at the left."""

LETTERS = 90
"""Maximum number of characters of a claim and its word in one line."""

STUDY, JOINED = "this study", "joined"

Rows = Mapping[str, Sequence[tuple[str, Finding]]]


def replication_plot(results: Results, findings: Findings) -> ReportFigure | None:
    """Return the forest plot of the claims and their replications; None if no replication is finished."""
    rows = replicated_rows(findings)
    claims = sorted(findings.claims, key=lambda claim: not claim.primary)
    if not claims or all(len(rows[claim.id]) == 1 for claim in claims):
        return None
    agreements = {claim.id: findings.agreement(claim.id) for claim in claims}
    quantities = {claim.id: quantity_of(claim, results.study, results.measures) for claim in claims}
    return ReportFigure(
        id="replications",
        section="replications",
        title="Every claim, and every claim again",
        caption="Each claim's effect in the study and in its replications, with intervals, line, band and marks as in "
        "the figure before. The diamond is the joined effect, a random-effects mean with the interval of Hartung and "
        "Knapp; tau is the spread of true effects between sites. The words at the right follow from the intervals of "
        "the differences from this study, by the rule that the method states.",
        alt=" ".join(_describe(claim, rows[claim.id], agreements[claim.id]) for claim in claims),
        figure=replication_figure(claims, rows, agreements, quantities),
        table=_table(claims, rows, agreements),
    )


def replicated_rows(findings: Findings) -> dict[str, list[tuple[str, Finding]]]:
    """Return the named findings on each claim, in the study and in each finished replication, by claim id."""
    rows: dict[str, list[tuple[str, Finding]]] = {claim.id: [(STUDY, claim)] for claim in findings.claims}
    for again in findings.replications:
        for claim in again.claims:
            rows[claim.id].append((again.name, claim))
    return rows


def replication_figure(
    claims: Sequence[Finding], rows: Rows, agreements: Mapping[str, Agreement], quantities: Mapping[str, str]
) -> Figure:
    """Return a figure with a group of rows per claim, in panels of one scale each.

    Args:
        claims: The findings of the study.
        rows: The named findings on each claim, by claim id.
        agreements: How the replications agree with the study on each claim, by claim id.
        quantities: The quantity whose difference a claim tests, in words, by claim id.
    """
    kinds = kinds_of(claims)

    def height_of(claim: Finding) -> float:
        return HEAD + LINE * (len(rows[claim.id]) + (agreements[claim.id].joined is not None))

    heights = [sum(map(height_of, kind)) for kind in kinds]
    with styled():
        figure, panels = stacked(heights, FOOT, left=NAMES, right=0.15)
        for axes, kind, height in zip(panels, kinds, heights, strict=True):
            # The y axis is in inches from the top of the panel.
            axes.set_ylim(height, 0)
            # The interval of a joined effect may be far longer than all others, so it does not set the axis.
            frame(axes, [finding for claim in kind for _, finding in rows[claim.id]], shared_quantity(kind, quantities))
            top = 0.0
            for claim in kind:
                _draw_claim(axes, top, claim, rows[claim.id], agreements[claim.id])
                top += height_of(claim)
    return figure


def _draw_claim(
    axes: Axes, top: float, claim: Finding, rows: Sequence[tuple[str, Finding]], agreement: Agreement
) -> None:
    """Draw a claim's text and, below it, a named row for each finding on it and one for the joined effect."""
    edge = (0.15 - NAMES) / (WIDTH - NAMES - 0.15)
    write_claim(axes, edge, top + 0.2, claim, agreement.word, LETTERS)
    band(axes, top + HEAD, top + HEAD + LINE * (len(rows) + (agreement.joined is not None)), claim)
    beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "clip_on": False}
    for index, (name, finding) in enumerate(rows):
        y = top + HEAD + LINE * (index + 0.5)
        axes.text(edge, y, textwrap.shorten(name, 16, placeholder="…"), color=LIGHT["muted"], **beside)
        mark(axes, y, finding, size=7)
        if not testable(finding):
            # An opaque background, since the band and the line of no difference may be behind it.
            background = {"facecolor": LIGHT["page"], "edgecolor": "none", "pad": 1.0}
            axes.text(1, y, verdict_only(finding), ha="right", bbox=background, **beside)

    if agreement.joined:
        y = top + HEAD + LINE * (len(rows) + 0.5)
        axes.text(edge, y, f"joined, tau {number(agreement.joined.tau)}", color=LIGHT["muted"], **beside)
        _mark_joined(axes, y, agreement.joined)


def _mark_joined(axes: Axes, y: float, joined: JoinedEffect) -> None:
    """Draw a joined effect as a diamond with its interval, cut at the panel's ends, an arrow there."""
    limits = axes.get_xlim()
    low, high = (min(max(end, limits[0]), limits[1]) for end in joined.interval)
    axes.plot([low, high], [y, y], color=LIGHT["ink"], linewidth=1)
    for end, cut, marker in ((joined.interval[0], low, "<"), (joined.interval[1], high, ">")):
        if end != cut:
            axes.plot(cut, y, marker, color=LIGHT["ink"], markersize=4, clip_on=False)
    if limits[0] <= joined.effect <= limits[1]:
        axes.plot(joined.effect, y, "D", color=LIGHT["ink"], markersize=5, zorder=4)


def _describe(claim: Finding, rows: Sequence[tuple[str, Finding]], agreement: Agreement) -> str:
    parts = [
        f"{name} {number(finding.effect)}, {between(finding.interval, finding.ratio)}"
        if testable(finding)
        else f"{name} {verdict_only(finding)}"
        for name, finding in rows
    ]
    if mean := agreement.joined:
        parts.append(f"joined {number(mean.effect)}, {between(mean.interval, claim.ratio)}, tau {number(mean.tau)}")
    return f"{claim.id}, {agreement.word}: {'; '.join(parts)}."


def _table(claims: Sequence[Finding], rows: Rows, agreements: Mapping[str, Agreement]) -> pd.DataFrame:
    """Return the data of the figure, with the joined effect of each claim after the findings on it."""
    records: list[dict[str, Any]] = []
    for claim in claims:
        words = {site.name: site.word for site in agreements[claim.id].sites}
        for name, finding in rows[claim.id]:
            low, high = finding.interval if testable(finding) else (None, None)
            records.append(
                {
                    "claim": claim.id,
                    "on": name,
                    "verdict": finding.verdict,
                    "effect": finding.effect if testable(finding) else None,
                    "low": low,
                    "high": high,
                    "pairs": finding.n_pairs,
                    "against_study": words.get(name),
                    "tau": None,
                }
            )
        if mean := agreements[claim.id].joined:
            low, high = (end if math.isfinite(end) else None for end in mean.interval)
            joined = {"claim": claim.id, "on": JOINED, "effect": mean.effect, "low": low, "high": high, "tau": mean.tau}
            records.append(joined)
    return pd.DataFrame(records)
