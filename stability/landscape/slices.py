"""Slices of a landscape: an objective along a line or over a plane through a point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stability.curvature.products import Objective
from stability.landscape.evaluation import check_axes, evaluate, taylor
from stability.registry import InputError
from stability.stats.wording import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point = Mapping[str, Tensor]
Span = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Slice1D:
    """The objective along a line, float64 on the CPU, with its derivatives at the center.

    Attributes:
        coordinates: (N,), multiples of the direction d.
        values: the objective (N,), NaN where it is not a number.
        center: the value at coordinate 0.
        slope: first derivative g'd at the center.
        curvature: second derivative d'Hd at the center.
    """

    coordinates: Tensor
    values: Tensor
    center: float
    slope: float
    curvature: float

    @property
    def not_finite(self) -> list[float]:
        """The coordinates at which the objective is NaN or infinite."""
        return self.coordinates[~self.values.isfinite()].tolist()

    def model(self, coordinates: Tensor) -> Tensor:
        """Return the second-order model center + slope a + curvature a^2 / 2 at *coordinates* a."""
        return self.center + self.slope * coordinates + self.curvature * coordinates**2 / 2

    def table(self) -> pd.DataFrame:
        """Return one row per point: coordinate, value, and the value of the second-order model."""
        columns = {"first": self.coordinates, "value": self.values, "model": self.model(self.coordinates)}
        return pd.DataFrame({name: column.numpy() for name, column in columns.items()})

    def figure(self, label: str = "steps along the direction", value: str = "objective", title: str = "") -> Figure:
        """Plot the values and the second-order model with matplotlib's current settings."""
        from stability.landscape.figures import CenterMarker, line_figure

        center = CenterMarker((0.0,), self.center, (self.curvature,), "center")
        return line_figure(self.table(), label, value, title, center)

    def _repr_html_(self) -> str:
        """Return the figure with what it shows in words, for a notebook."""
        from stability.landscape.figures import as_html

        low, high = float(self.coordinates[0]), float(self.coordinates[-1])
        caption = (
            f"An objective at {len(self.values)} points of a line, {number(low)} to {number(high)}: "
            f"{_center_and_lowest(self.center, self.table())}; dashed: the parabola of slope and curvature at 0."
        )
        return as_html(self.figure, caption, caption)


@dataclass(frozen=True, eq=False)
class Slice2D:
    """The objective over a plane, float64 on the CPU, with its derivatives at the center.

    Attributes:
        first: coordinates (N,), multiples of the direction d_1.
        second: coordinates (M,), multiples of the direction d_2.
        values: (N, M), ``values[i, j]`` at first[i] and second[j]; NaN where the objective is not a number.
        center: the value at (0, 0).
        slope: first derivatives g'd_k at the center, (2,).
        curvature: second derivatives d_j' H d_k at the center, (2, 2).
    """

    first: Tensor
    second: Tensor
    values: Tensor
    center: float
    slope: Tensor
    curvature: Tensor

    @property
    def not_finite(self) -> list[tuple[float, float]]:
        """The coordinates at which the objective is NaN or infinite."""
        return [(float(self.first[i]), float(self.second[j])) for i, j in (~self.values.isfinite()).nonzero().tolist()]

    def table(self) -> pd.DataFrame:
        """Return one row per point, the second coordinate innermost: first, second, value."""
        first, second = torch.meshgrid(self.first, self.second, indexing="ij")
        columns = {"first": first, "second": second, "value": self.values}
        return pd.DataFrame({name: column.flatten().numpy() for name, column in columns.items()})

    def figure(
        self,
        labels: tuple[str, str] = ("steps along direction 1", "steps along direction 2"),
        value: str = "objective",
        title: str = "",
    ) -> Figure:
        """Plot contours, the center and the lowest point with matplotlib's current settings."""
        from stability.landscape.figures import CenterMarker, plane_figure

        center = CenterMarker((0.0, 0.0), self.center, tuple(self.curvature.diagonal().tolist()), "center")
        return plane_figure(self.table(), labels, value, title, center)

    def _repr_html_(self) -> str:
        """Return the figure with what it shows in words, for a notebook."""
        from stability.landscape.figures import as_html

        rows, columns = self.values.shape
        caption = (
            f"An objective at {rows} × {columns} points of a plane: {_center_and_lowest(self.center, self.table())}"
            f"{' (hatched)' if self.not_finite else ''}."
        )
        return as_html(self.figure, caption, caption)


def slice1d(
    objective: Objective,
    params: Point,
    direction: Point,
    span: Span = (-1.0, 1.0),
    points: int = 21,
    *,
    batches: Any = None,
    chunk_size: int | None = None,
) -> Slice1D:
    """Evaluate ``objective(params + a direction)`` for *points* evenly spaced a in *span*, and its curvature at a = 0.

    Args:
        objective: ``objective(params) -> scalar``, or ``objective(params, batch)`` with *batches*.
        params: the point; it is not modified.
        direction: like *params*.
        span: lowest and highest a; it may be asymmetric and need not contain 0.
        points: number of points.
        batches: a pytree of tensors of M whole batches (M, ...), over which the objective is averaged.
        chunk_size: points per vmapped call (None: as many as fit in memory).

    Raises:
        InputError: if *direction* does not match *params*, for an empty span, or for fewer than 2 points.

    >>> line = slice1d(lambda p: (3 * p["w"] ** 2).sum(), {"w": torch.zeros(2)}, {"w": torch.ones(2)}, (-1, 2), 4)
    >>> line.coordinates.tolist(), line.values.tolist(), line.curvature
    ([-1.0, 0.0, 1.0, 2.0], [6.0, 0.0, 6.0, 24.0], 12.0)
    """
    check_axes(params, [direction])
    steps = grid_of(span, points)
    center, values = _with_center(objective, params, [direction], steps[:, None], batches, chunk_size)
    slope, curvature = taylor(objective, params, [direction], batches)
    return Slice1D(steps, values, center, float(slope[0]), float(curvature[0, 0]))


def slice2d(
    objective: Objective,
    params: Point,
    directions: Sequence[Point],
    spans: Span | Sequence[Span] = (-1.0, 1.0),
    points: int | Sequence[int] = 21,
    *,
    batches: Any = None,
    chunk_size: int | None = None,
) -> Slice2D:
    """Evaluate ``objective(params + a directions[0] + b directions[1])`` on a grid, and its curvature at (0, 0).

    Args:
        objective: as in `slice1d`.
        params: the parameters at the center.
        directions: two directions like *params*.
        spans: the first and the last step, for both axes or one pair for each.
        points: the number of steps, for both axes or one for each.
        batches: as in `slice1d`.
        chunk_size: as in `slice1d`.

    >>> zero, one = torch.tensor(0.0), torch.tensor(1.0)
    >>> axes = [{"x": one, "y": zero}, {"x": zero, "y": one}]
    >>> bowl = slice2d(lambda p: p["x"] ** 2 + p["x"] * p["y"], {"x": zero, "y": zero}, axes, points=3)
    >>> bowl.values.tolist(), bowl.curvature.tolist()
    ([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 2.0]], [[2.0, 1.0], [1.0, 0.0]])
    """
    if len(directions) != 2:
        raise InputError(f"directions: got {len(directions)}; allowed: 2")
    check_axes(params, directions)
    axis_spans = spans if isinstance(spans[0], Sequence) else (spans, spans)
    counts = (points, points) if isinstance(points, int) else points
    if len(axis_spans) != 2 or len(counts) != 2:
        raise InputError(f"spans and points: got {len(axis_spans)} and {len(counts)}; allowed: one for both axes, or 2")
    first, second = (grid_of(span, count) for span, count in zip(axis_spans, counts, strict=True))  # type: ignore[arg-type]
    steps = torch.cartesian_prod(first, second)
    center, values = _with_center(objective, params, directions, steps, batches, chunk_size)
    slope, curvature = taylor(objective, params, directions, batches)
    return Slice2D(first, second, values.view(len(first), len(second)), center, slope, curvature)


def grid_of(span: Span, points: int) -> Tensor:
    """Return *points* evenly spaced numbers over *span*, (points,) float64; within rounding of 0 it is exactly 0."""
    low, high = (float(bound) for bound in span)
    if not low < high or torch.tensor([low, high]).isinf().any():
        raise InputError(f"span is ({low:g}, {high:g}); allowed: two finite numbers, the lower first")
    if points < 2:
        raise InputError(f"points is {points}; allowed: a whole number of at least 2")
    steps = torch.linspace(low, high, points, dtype=torch.float64)
    return torch.where(steps.abs() < 1e-12 * (high - low), 0.0, steps)


def _center_and_lowest(center: float, table: pd.DataFrame) -> str:
    """Describe the value at the center, the lowest value with its coordinates, and the number of non-finite values."""
    words = f"{number(center)} at the center"
    finite = table[np.isfinite(table["value"])]
    if len(finite):
        row = finite.loc[finite["value"].idxmin()]
        position = ", ".join(number(float(row[axis])) for axis in ("first", "second") if axis in table)
        words += f", lowest {number(float(row['value']))} at {f'({position})' if ', ' in position else position}"
    not_finite = len(table) - len(finite)
    return words + (f", {not_finite} not finite" if not_finite else "")


def _with_center(
    objective: Objective, params: Point, axes: Sequence[Point], steps: Tensor, batches: Any, chunk_size: int | None
) -> tuple[float, Tensor]:
    """Return the objective at the center and at *steps* along *axes*, all from the same vmapped calls."""
    origin = torch.zeros(1, len(axes), dtype=torch.float64)
    values = evaluate(objective, params, axes, torch.cat([origin, steps]), batches, chunk_size)
    return float(values[0]), values[1:]
