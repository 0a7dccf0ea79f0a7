"""The effect of a claim in each cell of the grid that its verdict averages over, and their heterogeneity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stability.contrasts.by_cell import Levels
from stability.results import Results
from stability.stats import CellEffect
from stability.study import Claim
from stability.vocabulary import axes_in, axis_of

FEW = 4
"""Up to this many cells are listed individually, otherwise only the two extremes."""


@dataclass(frozen=True)
class Heterogeneity:
    """How the cells of a claim disagree: the effect changes sign ("turns") or varies by more than the margin."""

    how: Literal["turns", "differs"]
    sentence: str


def heterogeneity_of(cells: Sequence[CellEffect], ratio: bool, margin: float) -> Heterogeneity | None:
    """Return the heterogeneity of a claim's cells, or None if they agree.

    Two cells disagree if their intervals do not overlap and they lie either on different sides of no difference
    ("turns") or further apart than the *margin* ("differs"). Cells without a bounded interval are left out.

    >>> clean, noisy = (CellEffect("noise 0", (), 1.1, (1.05, 1.15)), CellEffect("noise 0.4", (), 0.9, (0.86, 0.94)))
    >>> heterogeneity_of([clean, noisy], True, 0.5).sentence
    '+10% (1.05 to 1.15) at noise 0; -10% (0.86 to 0.94) at noise 0.4'
    >>> heterogeneity_of([clean, CellEffect("noise 0.4", (), 1.2, (1.16, 1.24))], True, 0.5)
    """
    cells = [cell for cell in cells if not cell.problem and all(map(math.isfinite, cell.interval))]
    if len(cells) < 2:
        return None
    no_effect = 1.0 if ratio else 0.0
    low, high = min(cells, key=lambda cell: cell.effect), max(cells, key=lambda cell: cell.effect)
    first, last = min(cell.interval[1] for cell in cells), max(cell.interval[0] for cell in cells)
    turns = first < no_effect < last
    gap, limit = (high.effect / low.effect, 1 + margin) if ratio else (high.effect - low.effect, margin)
    if not turns and not (low.interval[1] < high.interval[0] and gap > limit):
        return None
    return Heterogeneity("turns" if turns else "differs", cells_in_words(cells, ratio))


def cells_in_words(cells: Sequence[CellEffect], ratio: bool) -> str:
    """Return the effects of all cells if they are few, else the two extremes and the number on each side of 0 or 1.

    Empty for a claim without cells.
    """
    tested = [cell for cell in cells if not cell.problem]
    if len(cells) <= FEW or not tested:
        return "; ".join(cell.in_words(ratio) for cell in cells[:FEW])
    no_effect = 1.0 if ratio else 0.0
    low, high = min(tested, key=lambda cell: cell.effect), max(tested, key=lambda cell: cell.effect)
    sides = {
        "above": sum(cell.interval[0] > no_effect for cell in tested),
        "below": sum(cell.interval[1] < no_effect for cell in tested),
    }
    counted = " and ".join(f"{count} {side} {no_effect:g}" for side, count in sides.items() if count)
    where = f"; of {len(cells)} cells, {counted or 'no interval excludes ' + format(no_effect, 'g')}"
    return f"from {low.in_words(ratio)} to {high.in_words(ratio)}{where}"


def cells_of(results: Results, claim: Claim) -> list[Levels]:
    """Return the axes and levels of a claim's cells in words, in the order of its arrays.

    A cell is a combination of values of all axes of the grid except the claim's own.
    """
    over = results.study.grid.column(claim.axis)
    axes = [axis for axis in axes_in(results.runs.columns) if axis != over]
    runs = results.runs[results.runs["arm"] == claim.compare[0]]
    cells = runs[axes].drop_duplicates().sort_values(axes)
    varied = [axis_of(axis) for axis in axes if cells[axis].nunique() > 1]
    rows = cells[[axis.name for axis in varied]].itertuples(index=False, name=None)
    return [
        tuple((axis.label, axis.phrase.format(level)) for axis, level in zip(varied, row, strict=True)) for row in rows
    ]
