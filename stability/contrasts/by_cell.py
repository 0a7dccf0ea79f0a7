"""A contrast in each cell of the grid by itself, as `stability.stats.verdict` takes the cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stability import stats
from stability.contrasts.registry import compare
from stability.stats import CellEffect
from stability.stats.comparison import Array

Levels = tuple[tuple[str, str], ...]
"""Axis and level of a cell in words, for each axis in which cells differ."""


def in_each_cell(
    name: str, a: Array, b: Array, *, supplied: Mapping[str, Any], cells: Sequence[Levels], where: str = "contrast"
) -> tuple[CellEffect, ...]:
    """Return the effect of a contrast in each cell; empty if there is only one.

    Args:
        name: Name of the contrast.
        a: Values of the first arm, (seeds, levels, cells).
        b: Values of the second arm, same shape.
        supplied: Values of the keys of `SUPPLIED`, with the confidence of the claim.
        cells: The levels of each cell in words, in the order of the arrays.
        where: Location in the study for error messages.
    """
    if len(cells) < 2:
        return ()
    together = {**supplied, "confidence": stats.shared_confidence(len(cells), supplied["confidence"])}
    found = []
    for index, levels in enumerate(cells):
        arms = (a[:, :, [index]], b[:, :, [index]])
        own, shared = (compare(name, *arms, supplied=words, where=where) for words in (supplied, together))
        found.append(
            CellEffect(
                name=", ".join(level for _, level in levels),
                levels=levels,
                effect=own.effect,
                interval=shared.interval,
                equivalence_interval=own.equivalence_interval,
                sd=own.sd,
                problem=own.problem,
            )
        )
    return tuple(found)
