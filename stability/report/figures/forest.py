"""The forest plot of the claims: every effect with its intervals, the line of no difference and the margin."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stability.analysis import Finding, Findings, Results
from stability.contrasts import contrast
from stability.probes import Measure
from stability.report.figures import scales
from stability.report.figures.figure import ReportFigure
from stability.report.figures.panels import RELATIVE
from stability.report.style import LIGHT, WIDTH, styled
from stability.stats.comparison import margin_region
from stability.stats.wording import between, confidence_in_percent, number
from stability.study import Claim, Study
from stability.vocabulary import NOT_TESTABLE, TRANSFORMS, VERDICTS, axis_of

ROW, FOOT, TOP = 0.62, 0.55, 0.05
"""Heights in inches: of a claim's row, of the axis below a panel, and of the space above the first."""

LETTERS = 102
"""Maximum number of characters of a claim and its annotation in one line."""

LETTERS_AN_INCH = 14
"""Approximate number of characters per inch of text."""


def forest_plot(results: Results, findings: Findings) -> ReportFigure | None:
    """Return the forest plot of all claims; None for a study without claims."""
    claims = sorted(findings.claims, key=lambda claim: not claim.primary)
    if not claims:
        return None
    quantities = {claim.id: quantity_of(claim, results.study, results.measures) for claim in claims}
    confidence = confidence_in_percent(claims[0].confidence)
    inner = confidence_in_percent(2 * claims[0].confidence - 1)
    return ReportFigure(
        id="forest",
        section="claims",
        title="Effects, intervals and margins",
        caption=f"Each claim's effect with its {confidence} interval (thin) and the {inner} interval of the test of "
        "equivalence (thick). The line marks no difference, the band the margin within which a difference is too "
        "small to matter: an effect is equivalent if the thick interval lies inside the band, and real if the thin one "
        "excludes the line. Disc: supported; cross: contradicted; square: equivalent; "
        "plus: mixed, cells disagree; hollow: inconclusive.",
        alt=f"Forest plot of {len(claims)} claim{'s' if len(claims) > 1 else ''}. "
        + " ".join(_describe(claim) for claim in claims),
        figure=forest_figure(claims, quantities),
        table=_table(claims),
    )


def _describe(claim: Finding) -> str:
    if not testable(claim):
        return f"{claim.id}: {verdict_only(claim)}."
    sides = (f"{claim.compare[0]}'s {claim.measure}", claim.against_measure) if claim.against_measure else claim.compare
    return (
        f"{claim.id}: {claim.verdict}, {'ratio' if claim.ratio else 'difference'} {' to '.join(sides)} "
        f"{number(claim.effect)}, interval {between(claim.interval, claim.ratio)}, "
        f"margin {between(margin_region(claim.margin, claim.ratio), claim.ratio)}."
    )


def _table(claims: Sequence[Finding]) -> pd.DataFrame:
    rows = [
        {
            "claim": claim.id,
            "verdict": claim.verdict,
            "effect": claim.effect,
            **_ends("", claim.interval),
            **_ends("equivalence_", claim.equivalence_interval),
            **_ends("margin_", margin_region(claim.margin, claim.ratio)),
            "confidence": claim.confidence,
            "pairs": claim.n_pairs,
        }
        for claim in claims
    ]
    # Values that are not finite become empty fields in the data.
    return pd.DataFrame(rows).replace([math.inf, -math.inf], math.nan)


def _ends(prefix: str, interval: tuple[float, float]) -> dict[str, float]:
    return {f"{prefix}low": interval[0], f"{prefix}high": interval[1]}


def testable(claim: Finding) -> bool:
    """Return whether a claim has a finite effect and interval, which can be drawn."""
    return claim.verdict != NOT_TESTABLE and all(map(math.isfinite, (claim.effect, *claim.interval)))


def kinds_of(claims: Sequence[Finding]) -> list[list[Finding]]:
    """Group the claims by scale, one panel each: all ratios together, differences by contrast and measure."""
    kinds: dict[Any, list[Finding]] = {}
    for claim in claims:
        kinds.setdefault("ratio" if claim.ratio else (claim.contrast, *claim.measures), []).append(claim)
    return list(kinds.values())


def forest_figure(claims: Sequence[Finding], quantities: Mapping[str, str]) -> Figure:
    """Return a figure with one row per claim, in panels of one scale each, the claim's text above its interval.

    *quantities* is the quantity whose difference a claim tests, in words, by claim id.
    """
    kinds = kinds_of(claims)
    with styled():
        figure, panels = stacked([ROW * len(kind) for kind in kinds], FOOT, left=0.15, right=0.15)
        for axes, kind in zip(panels, kinds, strict=True):
            _panel(axes, kind, shared_quantity(kind, quantities))
    return figure


def stacked(heights: Sequence[float], foot: float, left: float, right: float) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels below one another, and the panels; all sizes are in inches.

    Args:
        heights: The height of each panel.
        foot: The height of the axis below each panel.
        left: The width of the margin at the left.
        right: The width of the margin at the right.
    """
    total = TOP + sum(heights) + foot * len(heights)
    figure = Figure(figsize=(WIDTH, total))
    floors = total - TOP - np.cumsum(heights) - foot * np.arange(len(heights))
    boxes = [
        (left / WIDTH, floor / total, 1 - (left + right) / WIDTH, height / total)
        for floor, height in zip(floors, heights, strict=True)
    ]
    return figure, [figure.add_axes(box) for box in boxes]


def shared_quantity(kind: Sequence[Finding], quantities: Mapping[str, str]) -> str:
    """Return the quantity of a panel's differences in words; it names no arms if the panel has several pairs."""
    if kind[0].ratio:
        return ""
    quantity = quantities[kind[0].id]
    several = len({claim.compare for claim in kind}) > 1
    return f"first − second: {quantity.partition(': ')[2]}" if several else quantity


def _panel(axes: Axes, claims: Sequence[Finding], quantity: str) -> None:
    axes.set_ylim(len(claims), 0)
    frame(axes, claims, quantity)
    for row, claim in enumerate(claims):
        band(axes, row + 0.43, row + 0.93, claim)
        write_claim(axes, 0, row + 0.22, claim, annotation(claim), LETTERS)
        mark(axes, row + 0.68, claim)


def write_claim(axes: Axes, x: float, y: float, claim: Finding, result: str, letters: int) -> None:
    """Write the text of a claim and its result in one line above its intervals.

    Args:
        axes: The panel.
        x: The start of the text as a share of the panel's width; the result ends at its right edge.
        y: The height of the line.
        claim: The finding on the claim, whose text is bold if it is primary.
        result: The text at the right.
        letters: The maximum number of characters of the line.
    """
    weight = "bold" if claim.primary else "normal"
    text = "".join(letter if letter.isprintable() else " " for letter in claim.text)
    text = textwrap.shorten(text, max(30, letters - len(result)), placeholder=" …")
    across = axes.get_yaxis_transform()
    # Unclipped, since the text may start outside the axes.
    axes.text(x, y, text, transform=across, va="center", fontweight=weight, clip_on=False)
    axes.text(1, y, result, transform=across, va="center", ha="right")


def band(axes: Axes, low: float, high: float, claim: Finding) -> None:
    """Draw a claim's margin as a band and the line of no difference.

    Args:
        axes: The panel.
        low: The lower end of both on the y axis.
        high: Their upper end.
        claim: The finding on the claim.
    """
    axes.fill_betweenx(
        [low, high], *margin_region(claim.margin, claim.ratio), color=LIGHT["band"], linewidth=0, zorder=0
    )
    axes.vlines(1.0 if claim.ratio else 0.0, low, high, color=LIGHT["muted"], linewidth=0.8, zorder=1)


def frame(axes: Axes, claims: Sequence[Finding], quantity: str) -> None:
    """Set a panel's x axis to a range that holds all of *claims*, and label its two directions."""
    ratio = claims[0].ratio
    low, high = _span(claims)
    if ratio:
        scales.log_axis(axes, "x", low, high)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlim(low, high)
    axes.yaxis.set_visible(False)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False)
    pairs = {claim.compare for claim in claims}
    a, b = next(iter(pairs)) if len(pairs) == 1 else ("the first arm", "the second arm")
    if any(claim.against_measure for claim in claims):
        a, b = "the first", "the second"
    quantity = f"{a} / {b}" if ratio else quantity
    directions = (f"← {a} lower", f"{a} higher →")
    if len(quantity.join(directions)) + 4 > LETTERS_AN_INCH * axes.get_position().width * WIDTH:
        directions = ("← lower", "higher →")
    for x, side, text, color in zip(
        (0.0, 0.5, 1.0),
        ("left", "center", "right"),
        (directions[0], quantity, directions[1]),
        (LIGHT["muted"], LIGHT["ink"], LIGHT["muted"]),
        strict=True,
    ):
        axes.annotate(text, (x, 0), (0, -23), **RELATIVE, ha=side, va="center", color=color)


def quantity_of(finding: Finding, study: Study, measures: Mapping[str, Measure]) -> str:
    """Return the quantity whose difference a claim tests, in words."""
    claim = next(claim for claim in study.claims if claim.id == finding.id)
    first, other = (_scaled(finding, claim, measures[name]) for name in finding.measures)
    axis = axis_of(claim.axis) if claim.axis else None
    unit = "per doubling of" if axis and axis.doubling and finding.contrast == "slope" else "over"
    along = f"{finding.contrast} {unit} {axis.label} of " if axis else ""
    if finding.against_measure:
        return f"{finding.compare[0]}: {along}{first} − {other}"
    return f"{' − '.join(finding.compare)}: {along}{first}"


def _scaled(finding: Finding, claim: Claim, measure: Measure) -> str:
    """Return a measure on its claim's scale, in words."""
    if contrast[finding.contrast].traits.on_events:
        return f"share of {contrast[finding.contrast].traits.on} runs"
    if contrast[claim.contrast].traits.on != "transform":
        return measure.inline_label
    return TRANSFORMS[claim.transform or measure.transform].phrase.format(measure.inline_label)


def _span(claims: Sequence[Finding]) -> tuple[float, float]:
    """Return an axis range that holds every interval and twice every margin."""
    ratio = claims[0].ratio
    values = [value for claim in claims if testable(claim) for value in (*claim.interval, claim.effect)]
    for claim in claims:
        low, high = margin_region(claim.margin, ratio)
        values += [low**2, high**2] if ratio else [2 * low, 2 * high]
    if not ratio:
        padding = 0.04 * (max(values) - min(values))
        return min(values) - padding, max(values) + padding
    positive = [value for value in values if value > 0]
    padding = (max(positive) / min(positive)) ** 0.04
    return min(positive) / padding, max(positive) * padding


def annotation(claim: Finding) -> str:
    """Return a claim's verdict, effect and interval, the text at the right of its row."""
    if not testable(claim):
        return verdict_only(claim)
    low, high = map(scales.signed, claim.interval)
    return f"{claim.verdict}: {scales.signed(claim.effect)} [{low}, {high}]"


def verdict_only(claim: Finding) -> str:
    """Return the verdict in words of a claim without an interval to draw."""
    suffix = "" if claim.verdict == NOT_TESTABLE else ", interval unbounded"
    return f"{claim.verdict.replace('-', ' ')}{suffix}"


def mark(axes: Axes, y: float, claim: Finding, size: float = 9) -> None:
    """Draw a claim's intervals and verdict marker; nothing if it could not be tested.

    Args:
        axes: The panel.
        y: The height on the y axis.
        claim: The finding on the claim.
        size: The size of the marker in points.
    """
    if not testable(claim):
        return
    color = LIGHT["ink"]
    axes.plot(claim.interval, [y, y], color=color, linewidth=1)
    if all(map(math.isfinite, claim.equivalence_interval)):
        axes.plot(claim.equivalence_interval, [y, y], color=color, linewidth=3, solid_capstyle="butt")
    hollow = claim.verdict == "inconclusive"
    axes.plot(
        claim.effect,
        y,
        VERDICTS[claim.verdict].marker,
        markersize=size - 2 if hollow else size,
        markerfacecolor=LIGHT["page"] if hollow else color,
        markeredgecolor=color if hollow else LIGHT["page"],
        markeredgewidth=1.2,
        zorder=4,
    )
