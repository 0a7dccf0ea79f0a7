"""Figures of the loss around the end of training, along lines and over planes, in filter-normalized units."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pyarrow as pa
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stability.analysis import Results
from stability.landscape.figures import contour_levels
from stability.registry import InputError
from stability.report.figures import panels, scales, tables
from stability.report.figures.figure import ReportFigure
from stability.report.style import LIGHT, WIDTH, styled
from stability.results import chance_losses
from stability.stats.wording import number

MOST = 6
"""Maximum number of planes in a report, one per run."""

POINTS = 41
"""Number of points of a slice, for any resolution of its grid."""


def landscapes(results: Results, folder: Path) -> Iterator[ReportFigure]:
    """Yield slices and planes of the runs with a landscape along filter directions, from the grids in *folder*.

    Raises `InputError` for a grid that cannot be read.
    """
    planes = _planes(results, folder)
    if not planes:
        return
    yield _slices(results, planes)
    shown = planes[:MOST]
    table = pd.concat([plane.drop(columns="lr_multiplier") for plane in shown], ignore_index=True)
    more = f" The first {MOST} of {len(planes)}." if len(planes) > MOST else ""
    rises = "; ".join(f"{_title(plane)}: up to {number(plane['value'].max())}" for plane in shown)
    yield ReportFigure(
        id="landscape-planes",
        section="landscape",
        title="The loss over a plane through the run",
        caption="Loss less its value at the run, over its chance level, along two random filter-normalized directions "
        f"(1: every filter moves by its own norm). The cross is the run; white: not finite.{more}",
        alt=f"Contours of the rise of the loss, as a share of chance. {rises}.",
        figure=planes_figure(shown),
        table=tables.shown(table[["arm", "batch_size", "noise", "seed", "first", "second", "value"]]),
    )


def _planes(results: Results, folder: Path) -> list[pd.DataFrame]:
    """Return each run's grid with its cell; "value" is the rise of the loss as a share of chance."""
    chance, cells = chance_losses(results), results.runs.set_index("run")
    planes = []
    for path in sorted(folder.glob("*-filter.parquet")):
        run = path.name.removesuffix("-filter.parquet")
        if run in cells.index and chance[run] > 0:
            grid = _grid(path)
            center = grid["value"].iloc[int(np.abs(grid[["first", "second"]].to_numpy()).sum(axis=1).argmin())]
            cell: dict[str, Any] = {name: cells.at[run, name] for name in (*panels.cell_columns(cells), "seed")}
            planes.append(grid.assign(run=run, value=(grid["value"] - center) / chance[run], **cell))
    order = {arm: index for index, arm in enumerate(results.study.grid.arms)}
    return sorted(planes, key=lambda plane: (plane["seed"][0], plane["batch_size"][0], order[plane["arm"][0]]))


def _grid(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path, columns=["first", "second", "value"]).astype(float)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise InputError(f"{path}: not a grid of `stability landscape` ({error})") from error


def _title(plane: pd.DataFrame) -> str:
    cell = plane.iloc[0]
    noise = f", noise {cell['noise']:g}" if cell["noise"] else ""
    return f"{cell['arm']}, B = {cell['batch_size']}{noise}, seed {cell['seed']}"


def _slices(results: Results, planes: Sequence[pd.DataFrame]) -> ReportFigure:
    thin = pd.concat([line(plane) for plane in planes], ignore_index=True)
    middle = (
        thin.groupby([*panels.cell_columns(thin), "step"], sort=True)["value"]
        .agg(lowest=lambda rise: rise.quantile(0.25), median="median", highest=lambda rise: rise.quantile(0.75))
        .reset_index()
    )
    styles = tables.styles_in(results, thin)
    sheet = panels.faceted(thin, styles)
    with styled():
        panels.draw_lines(sheet, thin, middle, "step", panels.axes_of(thin), banded=True)
        for axes in sheet.axes.values():
            axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        scales.value_axis(sheet, "linear", thin["value"])
        panels.name_axes(sheet, "step along the direction, in filter norms", "rise / chance")
    far_end = middle.groupby(panels.cell_columns(middle), sort=False).tail(1)
    return ReportFigure(
        id="landscape-slices",
        section="landscape",
        title="The loss along a line through the run",
        caption="Loss less its value at the run (0), over its chance level, along a random filter-normalized direction "
        "(1: every filter moves by its own norm). Bold: the median of the runs that were looked at; band: their "
        f"middle half. {len(planes)} {'run' if len(planes) == 1 else 'runs'}.",
        alt="Rise of the loss, as a share of chance, at the far end of the line: "
        f"{tables.in_words(far_end, list(styles), 'median')}.",
        figure=sheet.figure,
        table=tables.shown(middle.rename(columns={"step": "first", "lowest": "quarter", "highest": "three_quarters"})),
    )


def line(plane: pd.DataFrame) -> pd.DataFrame:
    """Return the slice of a plane through its run at `POINTS` evenly spaced steps of the first direction."""
    at = float(plane["second"].iloc[int(np.abs(plane["second"].to_numpy()).argmin())])
    rows = plane[(plane["second"] == at) & np.isfinite(plane["value"])].sort_values("first")
    step = np.linspace(-1.0, 1.0, POINTS)
    step = step[(step >= rows["first"].min() - 1e-9) & (step <= rows["first"].max() + 1e-9)]
    values = np.interp(step, rows["first"], rows["value"])
    return pd.DataFrame({"step": step, "value": values}).assign(
        **{name: plane[name].iloc[0] for name in (*panels.cell_columns(plane), "seed", "run")}
    )


def planes_figure(planes: Sequence[pd.DataFrame]) -> Figure:
    """Return a figure of contours, three planes per row, with shared levels."""
    columns = min(3, len(planes))
    rows = -(-len(planes) // columns)
    finite = np.concatenate([plane["value"][np.isfinite(plane["value"])] for plane in planes])
    edges = contour_levels(float(finite.min()), float(finite.max()))
    norm = BoundaryNorm(edges, mpl.colormaps["cividis"].N)
    with styled():
        figure = Figure(figsize=(WIDTH, 0.35 + rows * 2.15), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes in grid.flat[len(planes) :]:
            axes.set_visible(False)
        for axes, plane in zip(grid.flat, planes, strict=False):
            table = plane.pivot_table(index="second", columns="first", values="value", dropna=False)
            x, y = table.columns.to_numpy(float), table.index.to_numpy(float)
            contours = axes.contourf(x, y, np.ma.masked_invalid(table), levels=edges, cmap="cividis", norm=norm)
            axes.plot(0, 0, marker="+", markersize=6, color=LIGHT["page"], markeredgewidth=1.2)
            axes.set_title(re.sub(r"[^\S ]", " ", _title(plane)), fontsize=7)
            axes.grid(visible=False)
            axes.set_box_aspect(1)
        figure.colorbar(contours, ax=grid, pad=0.02, aspect=30).set_label("rise / chance")
    return figure
