"""Figures of landscapes: labeled contours of a plane, a line with its parabola, the line between two runs.

Colors and sizes come from matplotlib's settings, so that a report and a notebook each use their own.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, to_hex
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from stability.stats.wording import number

COLUMN = 3.5
"""Width of these figures in inches: one column of a two-column page."""

LEVELS = 11
"""Approximate number of color bands of a plane."""

LOG_SCALE_RATIO = 20.0
"""Values that span more than this factor get bands of equal ratio instead of equal difference."""


@dataclass(frozen=True)
class CenterMarker:
    """The marker at the center of a figure.

    Attributes:
        at: coordinates.
        value: the objective there.
        curvature: d'Hd along each axis.
        name: label in the legend.
    """

    at: tuple[float, ...]
    value: float
    curvature: tuple[float, ...]
    name: str = "the run"


def plane_figure(
    table: pd.DataFrame,
    labels: tuple[str, str],
    value: str,
    title: str,
    center: CenterMarker,
    path: np.ndarray | None = None,
) -> Figure:
    """Plot contours over a plane, with the center and the lowest grid point marked and non-finite points hatched.

    Args:
        table: columns first, second and value (nats).
        labels: of both axes.
        value: name of the plotted value.
        title: of the figure.
        center: the marker at the center.
        path: coordinates of the training trajectory (T, 2).
    """
    grid = table.pivot_table(index="second", columns="first", values="value", dropna=False)
    x, y = grid.columns.to_numpy(float), grid.index.to_numpy(float)
    z = np.ma.masked_invalid(grid.to_numpy(float))
    figure, axes = _canvas(COLUMN * 0.98, title, _notes(center, table))
    axes.grid(False)
    axes.patch.set(hatch="////", edgecolor=mpl.rcParams["grid.color"], facecolor="none")
    if z.count():
        bar = figure.colorbar(_contours(axes, x, y, z), ax=axes, pad=0.03, aspect=28)
        bar.set_label(value)
        bar.outline.set_linewidth(0.4)
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda level, _: number(level)))
        bar.ax.yaxis.set_minor_locator(NullLocator())
    axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), xlabel=labels[0], ylabel=labels[1])
    if path is not None:
        edge = [withStroke(linewidth=1.8, foreground="black")]
        style: dict[str, Any] = {"linewidth": 0.9, "marker": ".", "markersize": 3, "path_effects": edge, "zorder": 4}
        axes.plot(*path.T, color="white", label="training, from its first step", **style)
    _mark(axes, "lowest on the grid", "o", _lowest(table))
    _mark(axes, center.name, "+", (*center.at, center.value))
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.15),
        ncols=2,
        columnspacing=1.0,
        handletextpad=0.4,
        handlelength=1.6,
        fontsize=7,
    )
    return figure


def line_figure(table: pd.DataFrame, label: str, value: str, title: str, center: CenterMarker) -> Figure:
    """Plot the value along a line and the parabola at its center; *table* has columns first, value and model.

    Args:
        table: One row per point, with columns first (the coordinate), value and model (the parabola).
        label: Name of the coordinate.
        value: Name of the value, with its unit.
        title: Title of the figure.
        center: The marker at the center.
    """
    finite = table[np.isfinite(table["value"])]
    figure, axes = _canvas(COLUMN * 0.7, title, _notes(center, table))
    axes.plot(table["first"], table["value"], color=_line_color(0), marker=".", label=value)
    axes.plot(
        table["first"],
        table["model"],
        color=mpl.rcParams["axes.edgecolor"],
        linestyle="--",
        linewidth=1,
        label="parabola",
    )
    if len(finite):
        low, high = finite["value"].min(), finite["value"].max()
        margin = 0.08 * (high - low) or 1.0
        axes.set_ylim(low - margin, high + margin)
    _cross_out(axes, table)
    _mark(axes, center.name, "+", (*center.at, center.value))
    axes.set(xlabel=label, ylabel=value)
    axes.legend(handlelength=1.6)
    return figure


def connectivity_figure(losses: pd.DataFrame, errors: pd.DataFrame, value: str, title: str, note: str) -> Figure:
    """Plot loss and recall along the straight line between two runs, with the chord and the largest gap to it.

    Both tables have columns first, value and chord; *errors* holds 1 - recall.

    Args:
        losses: One row per point of the line, with columns first, value and chord.
        errors: The same for 1 - recall.
        value: Name of the loss, with its unit.
        title: Title of the figure.
        note: Second line of the title.
    """
    recall = errors.assign(value=1 - errors["value"], chord=1 - errors["chord"])
    figure = Figure(figsize=(COLUMN, COLUMN * 1.35), layout="constrained")
    rows = figure.subplots(2, 1, sharex=True)
    figure.suptitle(f"{title}\n{note}", x=0.02, ha="left", fontsize=7)
    names = (value, "recall@1, held out")
    panels = ((losses, 1, 0), (recall, -1, 1))
    for axes, name, (table, sign, index) in zip(rows, names, panels, strict=True):
        axes.plot(table["first"], table["chord"], color=mpl.rcParams["axes.edgecolor"], linestyle="--", linewidth=1)
        axes.plot(table["first"], table["value"], color=_line_color(index), marker=".")
        gap = (sign * (table["value"] - table["chord"])).replace([np.inf, -np.inf], np.nan)
        if gap.max() > 0:
            widest = table.iloc[int(gap.argmax())]
            axes.vlines(
                widest["first"], widest["chord"], widest["value"], color=mpl.rcParams["text.color"], linewidth=1
            )
            words, middle = f" {number(gap.max())}", (widest["chord"] + widest["value"]) / 2
            axes.annotate(words, (widest["first"], middle), (2, 0), textcoords="offset points", va="center")
        _cross_out(axes, table)
        axes.set_ylabel(name)
    rows[1].set(xlabel="share of the way from the first run to the second", xlim=(-0.02, 1.02))
    rows[1].yaxis.set_major_locator(MaxNLocator(5))
    return figure


def _line_color(index: int) -> str:
    return to_hex(mpl.rcParams["axes.prop_cycle"].by_key()["color"][index])


def small_type() -> AbstractContextManager[None]:
    """Return a context with font sizes for a figure of this width; other settings keep the user's values."""
    sizes = dict.fromkeys(("font.size", "axes.labelsize", "legend.fontsize"), 8)
    ticks = dict.fromkeys(("xtick.labelsize", "ytick.labelsize"), 7)
    disabled = dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon", "text.parse_math"), False)
    settings: Any = {**sizes, **ticks, **disabled, "svg.hashsalt": "stability"}
    return mpl.rc_context(settings)


def as_html(draw: Callable[[], Figure], caption: str, alt: str) -> str:
    """Return a self-contained HTML figure with its caption: an SVG inside an ``img``, on white."""
    file = io.BytesIO()
    with small_type():
        draw().savefig(file, format="svg", facecolor="white", metadata={"Date": None})
    source = f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"
    return (
        f'<figure style="margin:0"><img src="{source}" alt="{html.escape(alt)}" style="max-width:100%">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _canvas(height: float, title: str, note: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(COLUMN, height), layout="constrained")
    figure.suptitle(f"{title}\n{note}".lstrip(), x=0.02, ha="left", fontsize=7)
    return figure, figure.subplots()


def _notes(center: CenterMarker, table: pd.DataFrame) -> str:
    """Describe the curvature along the axes and the number of non-finite points."""
    names = ("across", "up") if len(center.curvature) > 1 else ("along the line",)
    words = ", ".join(f"{number(value)} {name}" for value, name in zip(center.curvature, names, strict=True))
    not_finite = int((~np.isfinite(table["value"])).sum())
    return f"curvature d'Hd {words}".replace("-", "−") + (
        f"; {not_finite} of {len(table)} points not finite" if not_finite else ""
    )


def _contours(axes: Axes, x: np.ndarray, y: np.ndarray, z: np.ma.MaskedArray) -> ContourSet:
    """Draw color bands and their labeled edges; return the bands."""
    levels = contour_levels(float(z.min()), float(z.max()))
    norm = BoundaryNorm(levels, mpl.colormaps["cividis"].N)
    filled = axes.contourf(x, y, z, levels=levels, cmap="cividis", norm=norm)
    if z.min() < z.max():
        lines = axes.contour(x, y, z, levels=levels[1:-1], colors="white", linewidths=0.4)
        texts = axes.clabel(lines, levels[1:-1:2], fontsize=6, fmt=number, inline_spacing=2)
        for text in texts:
            text.set_path_effects([withStroke(linewidth=1.2, foreground="black", alpha=0.5)])
    return filled


def contour_levels(low: float, high: float) -> list[float]:
    """Return increasing contour levels from *low* to *high*: round numbers, or a constant ratio for a wide range.

    >>> contour_levels(0.0, 1.0)[:3], [round(edge, 3) for edge in contour_levels(1.0, 2048.0)][:3]
    ([0.0, 0.1, 0.2], [1.0, 2.0, 4.0])
    """
    if not low < high:
        return [low - 0.5, low + 0.5]
    if low > 0 and high / low > LOG_SCALE_RATIO:
        edges = [float(f"{edge:.1e}") for edge in np.geomspace(low, high, LEVELS + 1)]
        return [min(edges[0], low), *edges[1:-1], max(edges[-1], high)]
    return [float(round(edge, 12)) for edge in MaxNLocator(LEVELS).tick_values(low, high)]


def _lowest(table: pd.DataFrame) -> tuple[float, ...] | None:
    finite = table[np.isfinite(table["value"])]
    if finite.empty:
        return None
    row = finite.iloc[int(finite["value"].argmin())]
    return float(row["first"]), float(row["second"]), float(row["value"])


def _mark(axes: Axes, name: str, marker: str, point: Sequence[float] | None) -> None:
    """Mark one point and give its value in the legend; a point outside the axes is omitted.

    *point* holds the coordinates, then the value; None draws nothing.
    """
    if point is None:
        return
    *at, value = point
    x, y = at if len(at) == 2 else (at[0], value)
    if not axes.get_xlim()[0] <= x <= axes.get_xlim()[1]:
        return
    if not (np.isfinite(y) and axes.get_ylim()[0] <= y <= axes.get_ylim()[1]):
        return
    axes.plot(
        x, y, marker=marker, linestyle="", markersize=7 if marker == "+" else 5, markerfacecolor="none",
        markeredgecolor="black", markeredgewidth=1.2, path_effects=[withStroke(linewidth=2.6, foreground="white")],
        label=f"{name} ({number(value)})", clip_on=False, zorder=6,
    )  # fmt: skip


def _cross_out(axes: Axes, table: pd.DataFrame) -> None:
    """Mark non-finite values on the lower edge."""
    not_finite = table.loc[~np.isfinite(table["value"]), "first"]
    transform = axes.get_xaxis_transform()
    if len(not_finite):
        zeros = np.zeros(len(not_finite))
        axes.plot(not_finite, zeros, "x", color=mpl.rcParams["text.color"], transform=transform, clip_on=False)
