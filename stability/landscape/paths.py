"""Linear mode connectivity: an objective along the straight line between two sets of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from stability.curvature.products import Objective
from stability.landscape.directions import directions
from stability.landscape.evaluation import evaluate
from stability.landscape.slices import grid_of

Point = Mapping[str, Tensor]

STABLE = 0.02
"""Instability of the error below which two networks count as linearly connected (Frankle et al. 2020, Sec. 3.1)."""


def chord_of(values: Tensor, coordinates: Tensor) -> Tensor:
    """Return the straight line between the first and the last of *values* (N,) at *coordinates* (N,) from 0 to 1."""
    return torch.lerp(values[0], values[-1], coordinates)


def barrier_of(values: Tensor, coordinates: Tensor) -> Tensor:
    """Return the highest rise of *values* (N,) above their `chord_of`, at least 0."""
    return (values - chord_of(values, coordinates)).max()


def instability_of(values: Tensor) -> Tensor:
    """Return the highest of *values* (N,) minus the mean of the first and the last.

    >>> values = torch.tensor([0.2, 0.7, 0.4])
    >>> instability_of(values), barrier_of(values, torch.linspace(0, 1, 3))
    (tensor(0.4000), tensor(0.4000))
    """
    return values.max() - (values[0] + values[-1]) / 2


@dataclass(frozen=True, eq=False)
class Connectivity:
    """An objective along the line (1 - a) A + a B, float64 on the CPU.

    Attributes:
        coordinates: a (N,), from 0 to 1.
        values: the objective L(a) (N,).
    """

    coordinates: Tensor
    values: Tensor

    @property
    def chord(self) -> Tensor:
        """The straight line between the values at both ends, (N,): (1 - a) L(0) + a L(1)."""
        return chord_of(self.values, self.coordinates)

    @property
    def barrier(self) -> float:
        """The highest rise above the straight line between both ends: max_a [L(a) - ((1 - a) L(0) + a L(1))].

        At least 0, which is its value at both ends; NaN if the objective is NaN anywhere on the line.
        """
        return float(barrier_of(self.values, self.coordinates))

    @property
    def instability(self) -> float:
        """The highest value on the line minus the mean of both ends: sup_a E(a) - (E(0) + E(1)) / 2.

        Defined for an error rate in Frankle et al. (2020), "Linear mode connectivity and the lottery ticket
        hypothesis", arXiv:1912.05671, Sec. 2 and 3.1. NaN if the objective is NaN anywhere on the line.
        """
        return float(instability_of(self.values))

    @property
    def stable(self) -> bool:
        """Whether the instability is below 2%, the published rule; it is meaningful only if values are error rates."""
        return self.instability < STABLE

    @property
    def not_finite(self) -> list[float]:
        """The coordinates at which the objective is NaN or infinite."""
        return self.coordinates[~self.values.isfinite()].tolist()

    def table(self) -> pd.DataFrame:
        """Return one row per point: coordinate, value, and the straight line between both ends."""
        columns = {"first": self.coordinates, "value": self.values, "chord": self.chord}
        return pd.DataFrame({name: column.numpy() for name, column in columns.items()})


def connectivity(
    objective: Objective, a: Point, b: Point, points: int = 31, *, batches: Any = None, chunk_size: int | None = None
) -> Connectivity:
    """Evaluate *objective* at *points* evenly spaced points on the line from *a* to *b*, both ends included.

    Args:
        objective: as in `slice1d`.
        a: the parameters at one end.
        b: the parameters at the other end.
        points: number of points; the paper takes 30, and one more puts a point in the middle.
        batches: as in `slice1d`.
        chunk_size: as in `slice1d`.

    Raises:
        InputError: if *a* and *b* differ in names or shapes, or for fewer than 2 points.

    >>> hill = connectivity(lambda p: -(p["w"] ** 2) + p["w"], {"w": torch.tensor(0.0)}, {"w": torch.tensor(1.0)}, 5)
    >>> hill.barrier, hill.instability, hill.stable
    (0.25, 0.25, False)
    """
    (line,) = directions(a, "interpolation", 1, end=b)
    steps = grid_of((0.0, 1.0), points)
    return Connectivity(steps, evaluate(objective, a, [line], steps[:, None], batches, chunk_size))
