"""The figure of Hessian spectra: densities on a symmetric logarithmic axis with both extreme eigenvalues."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stability.analysis import Results
from stability.report.figures import panels, scales, tables
from stability.report.figures.figure import ReportFigure
from stability.report.style import LIGHT, ArmStyle, styled
from stability.vocabulary import axes_in, cell_title

WIDTH = 0.12
"""Standard deviation of the Gaussian that replaces a quadrature node, in decades of the symmetric log axis."""

CROWDED = 150
"""Number of curves above which each has half as many points, still denser than the width of a node."""

LOWEST = 1e-4
"""Lower end of the density axis: mass per decade."""

EXTREMES = {"hessian_min_eigenvalue": "lowest", "hessian_max_eigenvalue": "highest"}
"""The columns of the extreme eigenvalues, and their names in a panel."""


def spectral_densities(results: Results) -> Iterator[ReportFigure]:
    """Yield the spectra at the last measured step of each run."""
    nodes = "hessian_nodes"
    if nodes not in results.steps:
        return
    measured = results.steps[results.steps[nodes].notna() & results.steps["hessian_max_eigenvalue"].notna()]
    last = measured.sort_values("step", kind="stable").groupby("run", sort=False).tail(1)
    columns = ["run", "step", nodes, "hessian_weights", *EXTREMES]
    table = results.runs[["run", *panels.cell_columns(results.runs), "seed"]].merge(
        last[columns], on="run", how="inner"
    )
    table = table[[_usable(row) for row in table[nodes]]]
    if not len(table):
        return
    styles = tables.styles_in(results, table)
    extremes = table.groupby(panels.cell_columns(table), sort=False)[list(EXTREMES)].median().reset_index()
    highest, lowest = (
        tables.in_words(extremes, list(styles), name) for name in ("hessian_max_eigenvalue", "hessian_min_eigenvalue")
    )
    yield ReportFigure(
        id="spectra",
        section="curvature",
        title="Hessian spectra at the end of training",
        caption="Spectral density of the Hessian of the training loss over all parameters, by Lanczos quadrature, each "
        f"node widened to {WIDTH:g} decades, on a symmetric logarithmic axis. "
        f"{panels.BANDED if tables.banded(table) else panels.THIN}; bold: their mean; "
        "triangles and numbers: the lowest and the highest eigenvalue (median of the seeds). Eigenvalues scale with "
        "the loss, so compare shapes and signs between arms, not sizes.",
        alt=f"Hessian spectral densities, one row per arm. Median over seeds of the highest "
        f"eigenvalue: {highest}; lowest: {lowest}.",
        figure=spectra_figure(table, styles),
        table=tables.shown(_long(table)),
    )


def _usable(nodes: Any) -> bool:
    return bool(np.ndim(nodes) and len(nodes) and np.isfinite(np.asarray(nodes, float)).all())


def _long(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per quadrature node, largest first to be read."""
    long = table.explode(["hessian_nodes", "hessian_weights"], ignore_index=True)
    renamed = long.rename(columns={"hessian_nodes": "eigenvalue", "hessian_weights": "mass"})
    return renamed.drop(columns=list(EXTREMES)).astype({"eigenvalue": float, "mass": float})


def symmetric_log(x: np.ndarray | float, linear: float) -> np.ndarray:
    """Return arcsinh(x / 2c) / log 10, c = *linear*: decades on both sides of zero, linear within about c of it."""
    return np.asarray(np.arcsinh(np.asarray(x, float) / (2 * linear)) / math.log(10))


def density(nodes: np.ndarray, weights: np.ndarray, grid: np.ndarray, linear: float) -> np.ndarray:
    """Return the mass per decade of the symmetric log axis, as a sum of one Gaussian per node.

    Args:
        nodes: The quadrature nodes (eigenvalues), shape (nodes,).
        weights: Their weights, shape (nodes,).
        grid: The positions on the axis, in decades, shape (grid,).
        linear: The size below which the axis is linear.

    Returns:
        The density at *grid*, shape (grid,).
    """
    distance = (grid[:, None] - symmetric_log(nodes, linear)) / WIDTH
    return np.asarray(np.exp(-0.5 * distance**2) @ weights / (WIDTH * math.sqrt(2 * math.pi)))


def linear_width(table: pd.DataFrame) -> float:
    """Return the size below which the axis is linear: a power of ten, four decades below the largest eigenvalue."""
    largest = max(table["hessian_max_eigenvalue"].abs().max(), table["hessian_min_eigenvalue"].abs().max())
    return 10.0 ** (math.ceil(math.log10(largest)) - 4) if largest > 0 else 1.0


def spectra_figure(table: pd.DataFrame, styles: Mapping[str, ArmStyle]) -> Figure:
    """Return a figure of densities with both extreme eigenvalues: a row per arm, a column per combination of axes."""
    varied = [axis for axis in axes_in(table.columns) if table[axis].nunique() > 1] or ["batch_size"]
    columns = {key: cell_title(dict(zip(varied, key, strict=True))) for key in tables.levels_of(table, varied)}
    linear = linear_width(table)
    reach = symmetric_log(
        np.array([table["hessian_min_eigenvalue"].min(), table["hessian_max_eigenvalue"].max()]), linear
    )
    grid = np.linspace(reach[0] - 0.5, reach[1] + 0.5, 160 if len(table) <= CROWDED else 80)
    sheet = panels.crossed({(arm,): "" for arm in styles}, columns, styles, height=1.1)
    with styled():
        for key, seeds in panels.grouped(table, "arm", *varied):
            axes, color = sheet.axes[key], styles[key[0]].color
            curves = [
                density(np.asarray(nodes, float), np.asarray(weights, float), grid, linear)
                for nodes, weights in zip(seeds["hessian_nodes"], seeds["hessian_weights"], strict=True)
            ]
            _curves(axes, grid, np.maximum(curves, LOWEST / 10), color, tables.banded(table))
            for (name, label), corner, side in zip(EXTREMES.items(), (0.01, 0.99), ("left", "right"), strict=True):
                eigenvalue = float(seeds[name].median())
                x = float(symmetric_log(eigenvalue, linear))
                axes.plot([x], [LOWEST], marker="^", markersize=5, color=LIGHT["ink"], clip_on=False, zorder=5)
                text = f"{label} {scales.signed(eigenvalue)}"
                axes.text(corner, 0.97, text, transform=axes.transAxes, ha=side, va="top", fontsize=7)
        for axes in sheet.axes.values():
            scales.log_axis(axes, "y", LOWEST, 10)
            axes.set_ylim(LOWEST, 10)
            _symmetric_axis(axes, reach, linear, stride=1 if len(columns) <= 3 else 2)
            axes.axvline(0, color=LIGHT["rule"], linewidth=0.8, zorder=0)
        panels.name_axes(sheet, "eigenvalue", "mass per decade")
    return sheet.figure


def _curves(axes: Axes, grid: np.ndarray, curves: np.ndarray, color: str, banded: bool) -> None:
    """Draw the densities of a cell's seeds, as thin lines or as a band, and their mean."""
    mean = curves.mean(axis=0)
    if banded:
        axes.fill_between(grid, curves.min(axis=0), curves.max(axis=0), color=color, alpha=0.25, linewidth=0)
    else:
        # One broken line needs much less markup than many lines.
        broken = np.concatenate([piece for curve in curves for piece in (curve, [math.nan])])
        axes.plot(np.tile([*grid, math.nan], len(curves)), broken, color=color, linewidth=0.5, alpha=0.5)
        axes.fill_between(grid, LOWEST / 10, mean, color=color, alpha=0.15, linewidth=0)
    axes.plot(grid, mean, color=color, linewidth=1.3)


def _symmetric_axis(axes: Axes, reach: np.ndarray, linear: float, stride: int) -> None:
    """Set the x axis to a symmetric logarithm with a tick at 0 and at every *stride*-th power of ten."""
    first = round(math.log10(linear)) + 1
    powers = [10.0**exponent for exponent in range(first + stride - 1, first + 8, stride)]
    low, high = reach[0] - 0.3, reach[1] + 0.3
    ticks = {float(symmetric_log(value, linear)): value for value in (0.0, *powers, *(-power for power in powers))}
    shown = {x: scales.tick(value) for x, value in sorted(ticks.items()) if low <= x <= high}
    axes.set_xlim(low, high)
    axes.set_xticks(list(shown), list(shown.values()))
