"""The forest plot of the replications: each claim in the study and in its replications, on one scale."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stability.analysis import Finding, Findings, Results
from stability.report.figures.drawn import ReportFigure
from stability.report.figures.forest import frame, kinds_of, mark, quantity_of, shared_quantity, testable, verdict_only
from stability.report.style import LIGHT, WIDTH, styled
from stability.stats.comparison import margin_region
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
        alt=" ".join(_words(claim, rows[claim.id], words[claim.id]) for claim in claims),
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
    total = 0.05 + sum(heights) + FOOT * len(kinds)
    with styled():
        figure = Figure(figsize=(WIDTH, total))
        ceiling = total - 0.05
        for kind, height in zip(kinds, heights, strict=True):
            box = (NAMES / WIDTH, (ceiling - height) / total, 1 - (NAMES + 0.15) / WIDTH, height / total)
            _panel(figure.add_axes(box), kind, rows, words, shared_quantity(kind, quantities), height)
            ceiling -= height + FOOT
    return figure


def _panel(
    axes: Axes, claims: Sequence[Finding], rows: Rows, words: Mapping[str, str], quantity: str, height: float
) -> None:
    """Draw the claims of one scale; y is in inches from the top of the panel, whose height is *height*."""
    axes.set_ylim(height, 0)
    frame(axes, [finding for claim in claims for _, finding in rows[claim.id]], quantity)
    across, left = axes.get_yaxis_transform(), 0.15 - NAMES
    edge = left / (WIDTH - NAMES - 0.15)
    top = 0.0
    for claim in claims:
        text = "".join(letter if letter.isprintable() else " " for letter in claim.text)
        weight = "bold" if claim.primary else "normal"
        # Names and words lie outside the axes, which would clip them.
        text_style: dict[str, Any] = {"transform": across, "va": "center", "clip_on": False}
        word = words[claim.id]
        width = max(30, LETTERS - len(word))
        axes.text(edge, top + 0.2, textwrap.shorten(text, width, placeholder=" …"), fontweight=weight, **text_style)
        axes.text(1, top + 0.2, word, ha="right", fontweight=weight, **text_style)
        low, high = top + HEAD, top + HEAD + LINE * len(rows[claim.id])
        axes.fill_betweenx([low, high], *margin_region(claim.margin, claim.ratio), color=LIGHT["band"], linewidth=0)
        nothing = 1.0 if claim.ratio else 0.0
        axes.plot([nothing, nothing], [low, high], color=LIGHT["muted"], linewidth=0.8, zorder=1)
        for index, (name, finding) in enumerate(rows[claim.id]):
            y = low + LINE * (index + 0.5)
            shown = textwrap.shorten(name, 16, placeholder="…")
            axes.text(edge, y, shown, color=LIGHT["muted"], **text_style)
            mark(axes, y, finding, size=7)
            if not testable(finding):
                # An opaque background, since the band and the line of no difference may be behind it.
                background = {"facecolor": LIGHT["page"], "edgecolor": "none", "pad": 1.0}
                axes.text(1, y, verdict_only(finding), ha="right", bbox=background, **text_style)
        top = high


def _words(claim: Finding, rows: Sequence[tuple[str, Finding]], word: str) -> str:
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
            "low": finding.interval[0] if testable(finding) else None,
            "high": finding.interval[1] if testable(finding) else None,
            "pairs": finding.n_pairs,
        }
        for claim in claims
        for name, finding in rows[claim.id]
    ]
    return pd.DataFrame(records)
