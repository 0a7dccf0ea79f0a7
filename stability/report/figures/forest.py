"""The claims at a glance: every effect with its intervals, against no difference and the margin."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stability.analysis import Finding, Findings
from stability.report.figures import panels
from stability.report.figures.drawn import Drawn
from stability.report.style import LIGHT, WIDTH, rc
from stability.stats.comparison import margin_region
from stability.stats.wording import between, confidence_in_percent, number

ROW = 0.62
"""Inches that a claim takes."""

VERDICTS = {"supported": "o", "contradicted": "X", "equivalent": "s", "inconclusive": "D", "not-testable": ""}
"""The marker of each verdict; hollow where the claim is open."""


def forest(findings: Findings) -> Drawn | None:
    """Return the forest plot of all claims, or nothing for a study without claims."""
    claims = sorted(findings.claims, key=lambda claim: not claim.primary)
    if not claims:
        return None
    confidence = confidence_in_percent(claims[0].confidence)
    inner = confidence_in_percent(2 * claims[0].confidence - 1)
    return Drawn(
        id="forest",
        section="claims",
        title="Effects, intervals and margins",
        caption=f"Each claim's effect with its {confidence} interval (thin) and the {inner} interval of the equivalence "
        "test (thick). The line marks no difference, the band the margin within which a difference is too small to "
        "matter: an effect is equivalent if the thick interval lies inside the band, and real if the thin one "
        "excludes the line. Disc: supported; cross: contradicted; square: equivalent; hollow: inconclusive.",
        alt=f"Forest plot of {len(claims)} claim{'s' if len(claims) > 1 else ''}. "
        + " ".join(_words(claim) for claim in claims),
        figure=forest_figure(claims),
        table=_table(claims),
    )


def _words(claim: Finding) -> str:
    region = between(margin_region(claim.margin, claim.ratio), claim.ratio)
    what = f"{'ratio' if claim.ratio else 'difference'} {claim.compare[0]} to {claim.compare[1]}"
    if not _testable(claim):
        return f"{claim.id}: not testable."
    return (
        f"{claim.id}: {claim.verdict}, {what} {number(claim.effect)}, interval {between(claim.interval, claim.ratio)}, "
        f"margin {region}."
    )


def _table(claims: Sequence[Finding]) -> pd.DataFrame:
    rows = [
        {
            "claim": claim.id,
            "verdict": claim.verdict,
            "effect": claim.effect,
            "low": claim.interval[0],
            "high": claim.interval[1],
            "equivalence_low": claim.equivalence_interval[0],
            "equivalence_high": claim.equivalence_interval[1],
            "margin_low": margin_region(claim.margin, claim.ratio)[0],
            "margin_high": margin_region(claim.margin, claim.ratio)[1],
            "confidence": claim.confidence,
            "pairs": claim.n_pairs,
        }
        for claim in claims
    ]
    table = pd.DataFrame(rows)
    numbers = table.select_dtypes("floating").columns
    # What is not finite is not known; readers of the data get an empty field.
    return table.assign(**{name: table[name].where(table[name].map(math.isfinite)) for name in numbers})


def _testable(claim: Finding) -> bool:
    return claim.verdict != "not-testable" and all(map(math.isfinite, (claim.effect, *claim.interval)))


def _kinds(claims: Sequence[Finding]) -> list[list[Finding]]:
    """Return the claims in panels of one scale: all ratios together, differences by contrast and measure."""
    kinds: dict[Any, list[Finding]] = {}
    for claim in claims:
        kinds.setdefault("ratio" if claim.ratio else (claim.contrast, claim.measure), []).append(claim)
    return list(kinds.values())


def forest_figure(claims: Sequence[Finding]) -> Figure:
    """Return one row per claim, in panels of one scale each, the claim's words above its interval."""
    kinds = _kinds(claims)
    foot, top = 0.55, 0.05
    total = top + sum(ROW * len(kind) + foot for kind in kinds)
    with mpl.rc_context(rc()):
        figure = Figure(figsize=(WIDTH, total))
        ceiling = total - top
        for kind in kinds:
            height = ROW * len(kind)
            box = (0.15 / WIDTH, (ceiling - height) / total, 1 - 0.3 / WIDTH, height / total)
            _panel(figure.add_axes(box), kind)
            ceiling -= height + foot
    return figure


def _panel(axes: Axes, claims: Sequence[Finding]) -> None:
    ratio = claims[0].ratio
    if ratio:
        axes.set_xscale("log")
    low, high = _span(claims)
    axes.set_xlim(low, high)
    axes.set_ylim(len(claims), 0)
    if ratio:
        panels.log_axis(axes.xaxis, low, high)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_visible(False)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False)
    axes.axvline(1.0 if ratio else 0.0, color=LIGHT["muted"], linewidth=0.8, zorder=1)
    for place, claim in enumerate(claims):
        _row(axes, place, claim)
    pairs = {claim.compare for claim in claims}
    a, b = next(iter(pairs)) if len(pairs) == 1 else ("the first arm", "the second")
    quantity = f"{a} / {b}" if ratio else _quantity(claims[0])
    axes.set_xlabel(f"← {a} lower      {quantity}      {a} higher →")


def _quantity(claim: Finding) -> str:
    kind = "slope difference" if claim.contrast == "slope" else "difference"
    return f"{kind} in {claim.measure.replace('_', ' ')}, {claim.compare[0]} − {claim.compare[1]}"


def _span(claims: Sequence[Finding]) -> tuple[float, float]:
    """Return an axis range that holds every margin twice and every interval."""
    ratio = claims[0].ratio
    ends = [end for claim in claims if _testable(claim) for end in (*claim.interval, claim.effect)]
    for claim in claims:
        low, high = margin_region(claim.margin, ratio)
        ends += [low**2, high**2] if ratio else [2 * low, 2 * high]
    if not ratio:
        room = 0.04 * (max(ends) - min(ends))
        return min(ends) - room, max(ends) + room
    positive = [end for end in ends if end > 0]
    room = (max(positive) / min(positive)) ** 0.04
    return min(positive) / room, max(positive) * room


def _row(axes: Axes, place: int, claim: Finding) -> None:
    line = place + 0.68
    band = margin_region(claim.margin, claim.ratio)
    axes.fill_betweenx([place + 0.44, place + 0.92], *band, color=LIGHT["band"], linewidth=0, zorder=0)
    text = "".join(letter if letter.isprintable() else " " for letter in claim.text)
    axes.text(
        0,
        place + 0.22,
        textwrap.shorten(text, 74, placeholder=" …"),
        transform=axes.get_yaxis_transform(),
        va="center",
        fontweight="bold" if claim.primary else "normal",
    )
    if not _testable(claim):
        told = "not testable"
    else:
        told = f"{claim.verdict}: {number(claim.effect)} [{between(claim.interval, False).replace(' to ', ', ')}]"
        colour = LIGHT["ink"]
        axes.plot(claim.interval, [line, line], color=colour, linewidth=1)
        if all(map(math.isfinite, claim.equivalence_interval)):
            axes.plot(claim.equivalence_interval, [line, line], color=colour, linewidth=3, solid_capstyle="butt")
        axes.plot(
            claim.effect,
            line,
            VERDICTS[claim.verdict],
            color=colour,
            markersize=7,
            markeredgewidth=1.2,
            markerfacecolor="white" if claim.verdict == "inconclusive" else colour,
            zorder=4,
        )
    axes.text(1, place + 0.22, told.replace("-", "−"), transform=axes.get_yaxis_transform(), ha="right", va="center")
