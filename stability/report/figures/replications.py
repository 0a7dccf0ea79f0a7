"""The forest plot of the replications: each claim in the study and in its replications, on one scale."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stability.analysis import Finding, Findings, Results
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

STUDY = "this study"

Rows = Mapping[str, Sequence[tuple[str, Finding]]]


def replication_plot(results: Results, findings: Findings) -> ReportFigure | None:
    """Return the forest plot of the claims and their replications; None if no replication is finished."""
    rows = replicated_rows(findings)
    claims = sorted(findings.claims, key=lambda claim: not claim.primary)
    if not claims or all(len(rows[claim.id]) == 1 for claim in claims):
        return None
    words = {claim.id: findings.agreement(claim.id).word for claim in claims}
    quantities = {claim.id: quantity_of(claim, results.study, results.measures) for claim in claims}
    return ReportFigure(
        id="replications",
        section="replications",
        title="Every claim, and every claim again",
        caption="Each claim's effect in the study and in its replications, with intervals, line, band and marks as in "
        "the figure before. The word at the right follows from the verdicts by the rule that the method states.",
        alt=" ".join(_describe(claim, rows[claim.id], words[claim.id]) for claim in claims),
        figure=replication_figure(claims, rows, words, quantities),
        table=_table(claims, rows),
    )


def replicated_rows(findings: Findings) -> dict[str, list[tuple[str, Finding]]]:
    """Return the named findings on each claim, in the study and in each finished replication, by claim id."""
    rows: dict[str, list[tuple[str, Finding]]] = {claim.id: [(STUDY, claim)] for claim in findings.claims}
    for again in findings.replications:
        for claim in again.claims:
            rows[claim.id].append((again.name, claim))
    return rows


def replication_figure(
    claims: Sequence[Finding], rows: Rows, words: Mapping[str, str], quantities: Mapping[str, str]
) -> Figure:
    """Return a figure with a group of rows per claim, in panels of one scale each.

    Args:
        claims: The findings of the study.
        rows: The named findings on each claim, by claim id.
        words: The word of agreement on each claim, by claim id.
        quantities: The quantity whose difference a claim tests, in words, by claim id.
    """
    kinds = kinds_of(claims)
    heights = [sum(HEAD + LINE * len(rows[claim.id]) for claim in kind) for kind in kinds]
    with styled():
        figure, panels = stacked(heights, FOOT, left=NAMES, right=0.15)
        for axes, kind, height in zip(panels, kinds, heights, strict=True):
            # The y axis is in inches from the top of the panel.
            axes.set_ylim(height, 0)
            frame(axes, [finding for claim in kind for _, finding in rows[claim.id]], shared_quantity(kind, quantities))
            top = 0.0
            for claim in kind:
                _draw_claim(axes, top, claim, rows[claim.id], words[claim.id])
                top += HEAD + LINE * len(rows[claim.id])
    return figure


def _draw_claim(axes: Axes, top: float, claim: Finding, rows: Sequence[tuple[str, Finding]], word: str) -> None:
    """Draw a claim's text and, below it, a named row for each finding on it."""
    edge = (0.15 - NAMES) / (WIDTH - NAMES - 0.15)
    write_claim(axes, edge, top + 0.2, claim, word, LETTERS)
    band(axes, top + HEAD, top + HEAD + LINE * len(rows), claim)
    beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "clip_on": False}
    for index, (name, finding) in enumerate(rows):
        y = top + HEAD + LINE * (index + 0.5)
        axes.text(edge, y, textwrap.shorten(name, 16, placeholder="…"), color=LIGHT["muted"], **beside)
        mark(axes, y, finding, size=7)
        if not testable(finding):
            # An opaque background, since the band and the line of no difference may be behind it.
            background = {"facecolor": LIGHT["page"], "edgecolor": "none", "pad": 1.0}
            axes.text(1, y, verdict_only(finding), ha="right", bbox=background, **beside)


def _describe(claim: Finding, rows: Sequence[tuple[str, Finding]], word: str) -> str:
    parts = [
        f"{name} {number(finding.effect)}, {between(finding.interval, finding.ratio)}"
        if testable(finding)
        else f"{name} {verdict_only(finding)}"
        for name, finding in rows
    ]
    return f"{claim.id}, {word}: {'; '.join(parts)}."


def _table(claims: Sequence[Finding], rows: Rows) -> pd.DataFrame:
    records = [
        {
            "claim": claim.id,
            "on": name,
            "verdict": finding.verdict,
            "effect": finding.effect if testable(finding) else None,
            **dict(zip(("low", "high"), finding.interval if testable(finding) else (None, None), strict=True)),
            "pairs": finding.n_pairs,
        }
        for claim in claims
        for name, finding in rows[claim.id]
    ]
    return pd.DataFrame(records)
