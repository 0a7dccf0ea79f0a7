"""The forest plot of cells: the pooled effect of each claim, and below it the effect in each cell of the grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

from stability.analysis import Finding, Findings, Results
from stability.report.figures.figure import ReportFigure
from stability.report.figures.forest import annotation, band, frame, mark, quantity_of, stacked, testable
from stability.report.style import LIGHT, styled
from stability.stats import CellEffect
from stability.stats.wording import confidence_in_percent

HEAD, LINE, FOOT = 0.55, 0.2, 0.55
"""Heights in inches: of the pooled row with its text, of a cell's row, and of the axis below a panel."""

NAMES = 2.1
"""Width in inches of the names of the cells."""

MOST = 24
"""Number of cells up to which all are drawn; of more, the lowest and the highest are."""


def cell_forest(results: Results, findings: Findings) -> ReportFigure | None:
    """Return the forest plot of the cells of each tested claim that has several; None if none has."""
    ordered = sorted(findings.claims, key=lambda claim: not claim.primary)
    claims = [claim for claim in ordered if testable(claim) and claim.cells]
    if not claims:
        return None
    drawn = {claim.id: drawn_cells(claim.cells) for claim in claims}
    with styled():
        heights = [HEAD + LINE * len(drawn[claim.id]) for claim in claims]
        figure, panels = stacked(heights, FOOT, left=NAMES, right=0.15)
        for axes, claim in zip(panels, claims, strict=True):
            _panel(axes, claim, drawn[claim.id], quantity_of(claim, results.study, results.measures))
    left_out = any(len(drawn[claim.id]) < len(claim.cells) for claim in claims)
    confidence = confidence_in_percent(claims[0].confidence)
    return ReportFigure(
        id="cells",
        section="claims",
        title="Cell by cell",
        caption=f"The effect of each claim over all cells (first row, {confidence} interval) and in each cell of the "
        "grid. Thin: intervals that hold for all cells of a claim together; thick: the interval of the test of "
        "equivalence. A claim is equivalent only if every thick interval lies inside the band, and mixed if thin "
        "intervals lie on both sides of the line."
        + (f" Of more than {MOST} cells, the lowest and the highest are drawn." if left_out else ""),
        alt="Forest plot of the cells of "
        + ", ".join(f"{claim.id} ({claim.verdict}, {len(claim.cells)} cells)" for claim in claims)
        + ".",
        figure=figure,
        table=_table(claims),
    )


def drawn_cells(cells: Sequence[CellEffect]) -> list[CellEffect]:
    """Return the cells that are drawn: all, or of many the lowest and the highest, in the order of the grid."""
    if len(cells) <= MOST:
        return list(cells)
    by_effect = sorted((cell for cell in cells if not cell.problem), key=lambda cell: cell.effect)
    extremes = [*by_effect[: MOST // 2], *by_effect[-(MOST // 2) :]]
    return [cell for cell in cells if cell in extremes]


def _panel(axes: Axes, claim: Finding, cells: Sequence[CellEffect], quantity: str) -> None:
    bottom = HEAD + LINE * len(cells)
    axes.set_ylim(bottom, 0)
    frame(axes, [claim], quantity)
    low, high = axes.get_xlim()
    ends = [end for cell in cells for end in _drawable(cell, claim.ratio)]
    axes.set_xlim(min([low, *ends]), max([high, *ends]))
    band(axes, 0.22, bottom, claim)
    across = axes.get_yaxis_transform()
    axes.text(1, 0.1, annotation(claim), transform=across, va="center", ha="right")
    axes.text(-0.02, 0.4, claim.id, transform=across, va="center", ha="right", fontweight="bold", clip_on=False)
    mark(axes, 0.4, claim)
    for row, cell in enumerate(cells):
        y = HEAD + LINE * (row + 0.5)
        axes.text(-0.02, y, cell.name, transform=across, va="center", ha="right", fontsize=7, clip_on=False)
        _mark_cell(axes, y, cell, claim.ratio)


def _drawable(cell: CellEffect, ratio: bool) -> list[float]:
    """Return effect and bounds of a cell that an axis can hold."""
    values = (cell.effect, *cell.interval)
    return [value for value in values if not cell.problem and math.isfinite(value) and (value > 0 or not ratio)]


def _mark_cell(axes: Axes, y: float, cell: CellEffect, ratio: bool) -> None:
    if len(_drawable(cell, ratio)) < 3:
        return
    color = LIGHT["ink"]
    axes.plot(cell.interval, [y, y], color=color, linewidth=0.8)
    if all(map(math.isfinite, cell.equivalence_interval)):
        axes.plot(cell.equivalence_interval, [y, y], color=color, linewidth=2.2, solid_capstyle="butt")
    axes.plot(cell.effect, y, "o", markersize=4, markerfacecolor=color, markeredgecolor=LIGHT["page"], zorder=4)


def _table(claims: Sequence[Finding]) -> pd.DataFrame:
    rows = []
    for claim in claims:
        shown: list[tuple[str, Finding | CellEffect]] = [("all cells", claim)]
        shown += [(cell.name, cell) for cell in claim.cells]
        rows += [
            {
                "claim": claim.id,
                "cell": name,
                "effect": effect.effect,
                "low": effect.interval[0],
                "high": effect.interval[1],
                "equivalence_low": effect.equivalence_interval[0],
                "equivalence_high": effect.equivalence_interval[1],
            }
            for name, effect in shown
        ]
    # Values that are not finite become empty fields in the data.
    return pd.DataFrame(rows).replace([math.inf, -math.inf], math.nan)
