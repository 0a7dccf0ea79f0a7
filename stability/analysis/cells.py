"""A claim's effect in each cell of the grid that its verdict averages over, and whether these effects agree."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from stability import contrasts, stats
from stability.analysis.pairing import ContrastInputs, contrast_inputs
from stability.contrasts import contrast
from stability.results import AXES, Results
from stability.stats.wording import between, number
from stability.study import Claim

NAMES = {
    "batch_size": "batch size {}",
    "train_pairs": "{} pairs",
    "corruption": "{}",
    "noise": "noise {:g}",
    "lr": "learning rate {:g}",
    "lr_multiplier": "{:g} times the rate",
}
"""A value of each axis in words."""

FEW = 4
"""Up to so many cells are named one by one, else the two furthest apart."""


@dataclass(frozen=True)
class Cell:
    """The effect of a claim in one cell of the grid, with an interval that holds for all its cells together."""

    name: str
    effect: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Heterogeneity:
    """How the cells of a claim disagree: the effect *turns* its direction, or *differs* by more than the margin."""

    how: Literal["turns", "differs"]
    sentence: str


def by_cell(results: Results, claim: Claim, asked: ContrastInputs | None = None) -> list[Cell]:
    """Return a claim's effect in each cell, intervals at 95% for all cells together; nothing if it has only one.

    Cells are the values of every axis of the grid but the one that the claim goes over. A cell in which nothing can be
    tested is left out. *asked* is what `asked_of` returns of the claim, found here unless given.
    """
    names = _names(results, claim)
    if len(names) < 2 or contrast[claim.contrast].traits["on"] == "diverged":
        return []
    (own, other), supplied = asked or contrast_inputs(results, claim, 0.95)
    supplied = supplied | {"confidence": stats.shared_confidence(len(names))}
    found = []
    for place, name in enumerate(names):
        one = (own[:, :, [place]], other[:, :, [place]])
        made = contrasts.compare(claim.contrast, *one, supplied=supplied, where=f"claims.{claim.id}")
        if made.testable and all(map(math.isfinite, made.interval)):
            found.append(Cell(name, made.effect, made.interval))
    return found


def apart(cells: list[Cell], ratio: bool, margin: float) -> Heterogeneity | None:
    """Return how the cells of a claim disagree, None where they do not.

    Two cells disagree where their intervals do not meet, and they lie on different sides of no difference (it turns) or
    further apart than the *margin* (it differs).

    >>> apart([Cell("noise 0", 1.1, (1.05, 1.15)), Cell("noise 0.4", 0.9, (0.86, 0.94))], True, 0.5).sentence
    '1.1× (1.05 to 1.15) at noise 0; 0.9× (0.86 to 0.94) at noise 0.4'
    >>> apart([Cell("noise 0", 1.1, (1.05, 1.15)), Cell("noise 0.4", 1.2, (1.16, 1.24))], True, 0.5)
    """
    if len(cells) < 2:
        return None
    nothing = 1.0 if ratio else 0.0
    low, high = min(cells, key=lambda cell: cell.effect), max(cells, key=lambda cell: cell.effect)
    first, last = min(cell.interval[1] for cell in cells), max(cell.interval[0] for cell in cells)
    turns = first < nothing < last
    gap, limit = (high.effect / low.effect, 1 + margin) if ratio else (high.effect - low.effect, margin)
    if not turns and not (low.interval[1] < high.interval[0] and gap > limit):
        return None
    return Heterogeneity("turns" if turns else "differs", _told(cells, low, high, nothing, ratio))


def _told(cells: list[Cell], low: Cell, high: Cell, nothing: float, ratio: bool) -> str:
    """Return the effects of a few cells, or those furthest apart and on which side of no difference the others lie."""
    if len(cells) <= FEW:
        return "; ".join(_shown(cell, ratio) for cell in cells)
    sides = {
        "above": sum(cell.interval[0] > nothing for cell in cells),
        "below": sum(cell.interval[1] < nothing for cell in cells),
    }
    counted = " and ".join(f"{count} {side} {nothing:g}" for side, count in sides.items() if count)
    where = f"; of {len(cells)} cells, {counted}" if counted else ""
    return f"from {_shown(low, ratio)} to {_shown(high, ratio)}{where}"


def _shown(cell: Cell, ratio: bool) -> str:
    return f"{number(cell.effect)}{'×' if ratio else ''} ({between(cell.interval, ratio)}) at {cell.name}"


def _names(results: Results, claim: Claim) -> list[str]:
    """Return the cells of a claim in words, in the order of its arrays."""
    over = results.study.grid.column(claim.axis)
    axes = [axis for axis in AXES if axis != over]
    runs = results.runs[results.runs["arm"] == claim.compare[0]]
    cells = runs[axes].drop_duplicates().sort_values(axes)
    varied = [axis for axis in axes if cells[axis].nunique() > 1]
    rows = cells[varied].itertuples(index=False, name=None)
    return [", ".join(NAMES[axis].format(value) for axis, value in zip(varied, row, strict=True)) for row in rows]
