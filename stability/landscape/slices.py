"""The objective along a line and over a plane through a point."""

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
    """The objective along a line: float64 on the CPU, NaN where it is not a number.

    *values* (N,) belong to *coordinates* (N,), multiples of the direction d; *centre* is the value at 0, *slope* g'd
    and *curvature* d'Hd are its derivatives there.
    """

    coordinates: Tensor
    values: Tensor
    centre: float
    slope: float
    curvature: float

    @property
    def not_finite(self) -> list[float]:
        """The coordinates at which the objective is NaN or infinite."""
        return self.coordinates[~self.values.isfinite()].tolist()

    def model(self, coordinates: Tensor) -> Tensor:
        """Return the second-order model centre + slope a + curvature a^2 / 2 at some coordinates a."""
        return self.centre + self.slope * coordinates + self.curvature * coordinates**2 / 2

    def table(self) -> pd.DataFrame:
        """Return one row per point: coordinate, value, and the value of the second-order model."""
        columns = {"first": self.coordinates, "value": self.values, "model": self.model(self.coordinates)}
        return pd.DataFrame({name: column.numpy() for name, column in columns.items()})

    def figure(self, label: str = "steps along the direction", value: str = "objective", title: str = "") -> Figure:
        """Return the values with the second-order model at the centre, drawn in matplotlib's present settings."""
        from stability.landscape.figures import Place, line_figure

        centre = Place((0.0,), self.centre, (self.curvature,), "centre")
        return line_figure(self.table(), label, value, title, centre)

    def _repr_html_(self) -> str:
        """Return the figure with what it shows in words, for a notebook."""
        from stability.landscape.figures import as_html

        low, high = float(self.coordinates[0]), float(self.coordinates[-1])
        caption = (
            f"An objective at {len(self.values)} points of a line, {number(low)} to {number(high)}: "
            f"{_centre_and_lowest(self.centre, self.table())}; dashed: the parabola of slope and curvature at 0."
        )
        return as_html(self.figure, caption, caption)


@dataclass(frozen=True, eq=False)
class Slice2D:
    """The objective over a plane: float64 on the CPU, NaN where it is not a number.

    ``values[i, j]`` (N, M) belongs to first[i] and second[j], multiples of the directions d_1 and d_2; *centre* is the
    value at (0, 0), *slope* (2,) g'd_k and *curvature* (2, 2) d_j' H d_k are its derivatives there.
    """

    first: Tensor
    second: Tensor
    values: Tensor
    centre: float
    slope: Tensor
    curvature: Tensor

    @property
    def not_finite(self) -> list[tuple[float, float]]:
        """The places at which the objective is NaN or infinite."""
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
        """Return the contours with the centre and the lowest point, drawn in matplotlib's present settings."""
        from stability.landscape.figures import Place, plane_figure

        centre = Place((0.0, 0.0), self.centre, tuple(self.curvature.diagonal().tolist()), "centre")
        return plane_figure(self.table(), labels, value, title, centre)

    def _repr_html_(self) -> str:
        """Return the figure with what it shows in words, for a notebook."""
        from stability.landscape.figures import as_html

        rows, columns = self.values.shape
        caption = (
            f"An objective at {rows} × {columns} points of a plane: {_centre_and_lowest(self.centre, self.table())}"
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
    chunk: int | None = None,
) -> Slice1D:
    """Return ``objective(params + a direction)`` at *points* even steps a over *span*, and its curvature at a = 0.

    - *span* may be asymmetric and need not hold 0.
    - *batches*: a pytree of tensors of M whole batches (M, ...); then the objective is called with (params, batch) and
      averaged over them.
    - *chunk* points are evaluated in one vmapped call (None: as many as a bound on memory allows).

    Raises `InputError` for a direction that does not fit *params*, an empty span or fewer than 2 points. *params* are
    read only.

    >>> line = slice1d(lambda p: (3 * p["w"] ** 2).sum(), {"w": torch.zeros(2)}, {"w": torch.ones(2)}, (-1, 2), 4)
    >>> line.coordinates.tolist(), line.values.tolist(), line.curvature
    ([-1.0, 0.0, 1.0, 2.0], [6.0, 0.0, 6.0, 24.0], 12.0)
    """
    check_axes(params, [direction])
    steps = grid_of(span, points)
    centre, values = _with_centre(objective, params, [direction], steps[:, None], batches, chunk)
    slope, curvature = taylor(objective, params, [direction], batches)
    return Slice1D(steps, values, centre, float(slope[0]), float(curvature[0, 0]))


def slice2d(
    objective: Objective,
    params: Point,
    directions: Sequence[Point],
    spans: Span | Sequence[Span] = (-1.0, 1.0),
    points: int | Sequence[int] = 21,
    *,
    batches: Any = None,
    chunk: int | None = None,
) -> Slice2D:
    """Return ``objective(params + a directions[0] + b directions[1])`` on a grid, and its curvature at (0, 0).

    *spans* and *points* are one for both axes or one for each; the rest is as of `slice1d`.

    >>> zero, one = torch.tensor(0.0), torch.tensor(1.0)
    >>> axes = [{"x": one, "y": zero}, {"x": zero, "y": one}]
    >>> bowl = slice2d(lambda p: p["x"] ** 2 + p["x"] * p["y"], {"x": zero, "y": zero}, axes, points=3)
    >>> bowl.values.tolist(), bowl.curvature.tolist()
    ([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 2.0]], [[2.0, 1.0], [1.0, 0.0]])
    """
    if len(directions) != 2:
        raise InputError(f"directions: got {len(directions)}; allowed: 2")
    check_axes(params, directions)
    both = spans if isinstance(spans[0], Sequence) else (spans, spans)
    counts = (points, points) if isinstance(points, int) else points
    if len(both) != 2 or len(counts) != 2:
        raise InputError(f"spans and points: got {len(both)} and {len(counts)}; allowed: one for both axes, or 2")
    first, second = (grid_of(span, count) for span, count in zip(both, counts, strict=True))  # type: ignore[arg-type]
    places = torch.cartesian_prod(first, second)
    centre, values = _with_centre(objective, params, directions, places, batches, chunk)
    slope, curvature = taylor(objective, params, directions, batches)
    return Slice2D(first, second, values.view(len(first), len(second)), centre, slope, curvature)


def grid_of(span: Span, points: int) -> Tensor:
    """Return *points* even steps over *span*, (points,) float64; 0 is exactly 0 where a step falls on it."""
    low, high = (float(end) for end in span)
    if not low < high or torch.tensor([low, high]).isinf().any():
        raise InputError(f"span is ({low:g}, {high:g}); allowed: two finite numbers, the lower first")
    if points < 2:
        raise InputError(f"points is {points}; allowed: a whole number of at least 2")
    steps = torch.linspace(low, high, points, dtype=torch.float64)
    return torch.where(steps.abs() < 1e-12 * (high - low), 0.0, steps)


def _centre_and_lowest(centre: float, table: pd.DataFrame) -> str:
    """Return in words the value at the centre, the lowest value and where it lies, and how many are not finite."""
    words = f"{number(centre)} at the centre"
    finite = table[np.isfinite(table["value"])]
    if len(finite):
        row = finite.loc[finite["value"].idxmin()]
        place = ", ".join(number(float(row[axis])) for axis in ("first", "second") if axis in table)
        words += f", lowest {number(float(row['value']))} at {f'({place})' if ', ' in place else place}"
    broken = len(table) - len(finite)
    return words + (f", {broken} not finite" if broken else "")


def _with_centre(
    objective: Objective, params: Point, axes: Sequence[Point], places: Tensor, batches: Any, chunk: int | None
) -> tuple[float, Tensor]:
    """Return the objective at the centre and at *places*, all from the same vmapped calls."""
    origin = torch.zeros(1, len(axes), dtype=torch.float64)
    values = evaluate(objective, params, axes, torch.cat([origin, places]), batches, chunk)
    return float(values[0]), values[1:]
