"""The effect of a claim in each cell of the grid that its verdict averages over, and their heterogeneity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from stability import contrasts, stats
from stability.analysis.pairing import ContrastInputs, contrast_inputs
from stability.contrasts import contrast
from stability.results import Results
from stability.stats.wording import between, number
from stability.study import Claim
from stability.vocabulary import axes_in, cell_in_words

FEW = 4
"""Up to this many cells are listed individually, otherwise only the two extremes."""


@dataclass(frozen=True)
class Cell:
    """The effect of a claim in one cell of the grid, with an interval that is simultaneous over its cells."""

    name: str
    effect: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Heterogeneity:
    """How the cells of a claim disagree: the effect changes sign ("turns") or varies by more than the margin."""

    how: Literal["turns", "differs"]
    sentence: str


def by_cell(results: Results, claim: Claim, inputs: ContrastInputs | None = None) -> list[Cell]:
    """Return a claim's effect in each cell, with simultaneous 95% intervals; empty if there is only one cell.

    A cell is a combination of values of all axes of the grid except the claim's own. Cells that cannot be tested are
    left out. *inputs* is the result of `contrast_inputs` for the claim; it is computed here if not given.
    """
    names = _names(results, claim)
    if len(names) < 2 or contrast[claim.contrast].traits.on_events:
        return []
    (a, b), supplied = inputs or contrast_inputs(results, claim, 0.95)
    supplied = supplied | {"confidence": stats.shared_confidence(len(names))}
    cells = []
    for index, name in enumerate(names):
        arms = (a[:, :, [index]], b[:, :, [index]])
        comparison = contrasts.compare(claim.contrast, *arms, supplied=supplied, where=f"claims.{claim.id}")
        if comparison.testable and all(map(math.isfinite, comparison.interval)):
            cells.append(Cell(name, comparison.effect, comparison.interval))
    return cells


def heterogeneity_of(cells: list[Cell], ratio: bool, margin: float) -> Heterogeneity | None:
    """Return the heterogeneity of a claim's cells, or None if they agree.

    Two cells disagree if their intervals do not overlap and they lie either on different sides of no difference
    ("turns") or further apart than the *margin* ("differs").

    >>> heterogeneity_of([Cell("noise 0", 1.1, (1.05, 1.15)), Cell("noise 0.4", 0.9, (0.86, 0.94))], True, 0.5).sentence
    '1.1× (1.05 to 1.15) at noise 0; 0.9× (0.86 to 0.94) at noise 0.4'
    >>> heterogeneity_of([Cell("noise 0", 1.1, (1.05, 1.15)), Cell("noise 0.4", 1.2, (1.16, 1.24))], True, 0.5)
    """
    if len(cells) < 2:
        return None
    no_effect = 1.0 if ratio else 0.0
    low, high = min(cells, key=lambda cell: cell.effect), max(cells, key=lambda cell: cell.effect)
    first, last = min(cell.interval[1] for cell in cells), max(cell.interval[0] for cell in cells)
    turns = first < no_effect < last
    gap, limit = (high.effect / low.effect, 1 + margin) if ratio else (high.effect - low.effect, margin)
    if not turns and not (low.interval[1] < high.interval[0] and gap > limit):
        return None
    return Heterogeneity("turns" if turns else "differs", _sentence(cells, low, high, no_effect, ratio))


def _sentence(cells: list[Cell], low: Cell, high: Cell, no_effect: float, ratio: bool) -> str:
    """Return the effects of all cells if they are few, else the two extremes and the number on each side of 0 or 1."""
    if len(cells) <= FEW:
        return "; ".join(_cell_text(cell, ratio) for cell in cells)
    sides = {
        "above": sum(cell.interval[0] > no_effect for cell in cells),
        "below": sum(cell.interval[1] < no_effect for cell in cells),
    }
    counted = " and ".join(f"{count} {side} {no_effect:g}" for side, count in sides.items() if count)
    where = f"; of {len(cells)} cells, {counted}" if counted else ""
    return f"from {_cell_text(low, ratio)} to {_cell_text(high, ratio)}{where}"


def _cell_text(cell: Cell, ratio: bool) -> str:
    return f"{number(cell.effect)}{'×' if ratio else ''} ({between(cell.interval, ratio)}) at {cell.name}"


def _names(results: Results, claim: Claim) -> list[str]:
    """Return the names of a claim's cells, in the order of its arrays."""
    over = results.study.grid.column(claim.axis)
    axes = [axis for axis in axes_in(results.runs.columns) if axis != over]
    runs = results.runs[results.runs["arm"] == claim.compare[0]]
    cells = runs[axes].drop_duplicates().sort_values(axes)
    varied = [axis for axis in axes if cells[axis].nunique() > 1]
    rows = cells[varied].itertuples(index=False, name=None)
    return [cell_in_words(dict(zip(varied, row, strict=True))) for row in rows]
