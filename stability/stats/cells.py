"""The effect of a claim in each cell of the grid, and when cells say the opposite of each other or of their mean.

The mean over cells that a study chose says nothing of a single cell: equal and opposite effects cancel. A claim of
equality therefore has to hold in every cell (an intersection-union test: each cell is tested at the claim's own level
and none needs a correction; Berger 1982, Technometrics 24:295), and a direction must not be reversed in any.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stability.stats.comparison import UNBOUNDED, Interval
from stability.stats.wording import between, enumerated, signed_effect


@dataclass(frozen=True)
class CellEffect:
    """The effect of a claim in one cell of the grid.

    Attributes:
        name: Levels of the cell in words.
        levels: Axis and level in words, for each axis in which the cells differ.
        effect: Effect on the scale of the claim.
        interval: Interval at the claim's confidence shared among the cells (Bonferroni): all cells hold together.
        equivalence_interval: The 1 - 2 alpha interval at the claim's own confidence.
        sd: Standard deviation of the seeds' differences.
        problem: Why the cell could not be tested; empty if it was.
    """

    name: str
    levels: tuple[tuple[str, str], ...]
    effect: float
    interval: Interval = UNBOUNDED
    equivalence_interval: Interval = UNBOUNDED
    sd: float = math.nan
    problem: str = ""

    def in_words(self, ratio: bool) -> str:
        """Return effect, interval and cell, as in *"+7% (1.04 to 1.1) at noise 0"*."""
        if self.problem:
            return f"not tested at {self.name} ({self.problem})"
        return f"{signed_effect(self.effect, ratio)} ({between(self.interval, ratio)}) at {self.name}"


@dataclass(frozen=True)
class Disagreement:
    """Two cells that disagree, and the axes in which they differ, in words."""

    axes: str
    first: CellEffect
    second: CellEffect


def inside(interval: Interval, region: Interval) -> bool:
    """Return whether an interval lies strictly inside a region."""
    return region[0] < interval[0] and interval[1] < region[1]


def cells_beyond(cells: Sequence[CellEffect], region: Interval) -> tuple[list[CellEffect], list[CellEffect]]:
    """Return the cells whose interval, at the level shared among the cells, lies below and above a region."""
    below = [cell for cell in cells if not cell.problem and cell.interval[1] < region[0]]
    above = [cell for cell in cells if not cell.problem and cell.interval[0] > region[1]]
    return below, above


def disagreement(
    interval: Interval, cells: Sequence[CellEffect], region: Interval, no_effect: float, equal: bool
) -> Disagreement | None:
    """Return two cells that say the opposite of each other or of the mean, or None if the cells do not disagree.

    They do if one lies below no effect and another above; if one lies on the other side of no effect than the mean;
    and, if the mean is *equal*, if one lies beyond the margin. The two named differ in as few axes as possible.

    Args:
        interval: The interval of the mean, which decides on its direction.
        cells: The cells.
        region: The margin.
        no_effect: The effect of equal arms.
        equal: Whether the mean lies inside the margin.
    """
    below, above = cells_beyond(cells, (no_effect, no_effect))
    tested = [cell for cell in cells if not cell.problem]
    if below and above:
        return _nearest_pair(below, above, cells)
    if interval[0] > no_effect and below:
        return _nearest_pair(
            below, [cell for cell in tested if cell.effect > no_effect] or _others(tested, below), cells
        )
    if interval[1] < no_effect and above:
        return _nearest_pair(
            [cell for cell in tested if cell.effect < no_effect] or _others(tested, above), above, cells
        )
    if equal and any(outside := cells_beyond(cells, region)):
        low, high = outside
        others = [cell for cell in tested if region[0] < cell.effect < region[1]] or _others(tested, low + high)
        return _nearest_pair(low, others, cells) if low else _nearest_pair(others, high, cells)
    return None


def _others(tested: Sequence[CellEffect], cells: Sequence[CellEffect]) -> list[CellEffect]:
    return [cell for cell in tested if cell not in cells] or list(tested)


def _nearest_pair(low: Sequence[CellEffect], high: Sequence[CellEffect], cells: Sequence[CellEffect]) -> Disagreement:
    """Return the two cells that differ in the fewest axes, and of those the two furthest apart, in the grid's order."""
    pairs = [(first, second) for first in low for second in high if first != second] or [(low[0], high[0])]
    pair = min(pairs, key=lambda pair: (len(_differing(*pair)), pair[0].effect - pair[1].effect))
    first, second = sorted(pair, key=list(cells).index)
    return Disagreement(enumerated(_differing(first, second)), first, second)


def _differing(first: CellEffect, second: CellEffect) -> list[str]:
    """Return the axes in which two cells differ."""
    return [axis for (axis, level), (_, other) in zip(first.levels, second.levels, strict=True) if level != other]
