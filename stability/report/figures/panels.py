"""The layout of most figures: small panels with shared scales under one legend of the arms, and its lines."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from stability.report.style import WIDTH, ArmStyle, styled
from stability.vocabulary import AXES, axes_in, axis_of, cell_title

MAX_READABLE_PANELS = 12
"""Number of panels above which each is too small for more than a few marks."""

MAX_COLUMNS = 6
"""Maximum number of panels side by side."""

LEFT, RIGHT, BOTTOM, GAP, LINE = 0.68, 0.3, 0.45, 0.16, 0.2
"""Sizes in inches: margins of a sheet, gap between panels, and one line of legend or title."""

LETTERS_AN_INCH = 15
"""Characters of a panel's title in an inch."""

LETTERS, HANDLE = 118, 11
"""Width of a legend line in characters, and the characters taken by an arm's handle and spacing."""


@dataclass(frozen=True)
class Sheet:
    """A figure of panels.

    Attributes:
        figure: The figure.
        axes: The panels by key; the key is a tuple of levels.
        styles: The plot styles of the arms in it.
        columns: The number of panels side by side.
    """

    figure: Figure
    axes: dict[Any, Axes]
    styles: Mapping[str, ArmStyle]
    columns: int


# --- layout ----------------------------------------------------------------------------------------------------------


def sheet(
    lines: Sequence[Sequence[Any]],
    titles: Mapping[Any, str],
    styles: Mapping[str, ArmStyle],
    *,
    sides: Iterable[str] = (),
    height: float | None = None,
    share_y: bool | Literal["row"] = True,
) -> Sheet:
    """Return a sheet of panels with a legend of the arms.

    Args:
        lines: The keys of the panels, line by line; the last line may be shorter.
        titles: The title above a panel, by key.
        styles: The plot styles of the arms, shown in the legend.
        sides: The title at the right of each line.
        height: The height of a panel in inches; by default it depends on the number of panels.
        share_y: Which panels share a y axis, as in `matplotlib.figure.Figure.subplots`.
    """
    rows, columns = len(lines), len(lines[0])
    panel_height = height or (0.95 if rows > 3 and columns > 2 else {1: 2.0, 2: 1.5}.get(columns, 1.25))
    legend = _legend_lines(list(styles))
    inner = (WIDTH - LEFT - RIGHT - 0.1 * (columns - 1)) / columns
    titles = {key: textwrap.fill(title, int(LETTERS_AN_INCH * inner)) for key, title in titles.items()}
    title_lines = [max(len(titles.get(key, "").splitlines()) for key in line) for line in lines]
    gap = GAP + LINE * max(title_lines[1:], default=0)
    top = LINE * len(legend) + (LINE * title_lines[0] or 0.06) + 0.02
    total = top + panel_height * rows + gap * (rows - 1) + BOTTOM
    box = {"left": LEFT / WIDTH, "right": 1 - RIGHT / WIDTH, "bottom": BOTTOM / total, "top": 1 - top / total}
    spacing = {"wspace": 0.1 / inner, "hspace": gap / panel_height}
    with styled():
        figure = Figure(figsize=(WIDTH, total))
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=share_y, gridspec_kw=box | spacing)
        if styles:
            _draw_legend(figure, legend, styles)
        if grid.size > MAX_READABLE_PANELS:
            for index, axes in np.ndenumerate(grid):
                axes.tick_params(left=index[1] == 0, bottom=index[0] == rows - 1)
        for spare in grid[-1, len(lines[-1]) :]:
            spare.remove()
        # The last line may be shorter, so the lowest panel of a column may lie above it.
        for axes in grid[-2:-1, len(lines[-1]) :].flat:
            axes.tick_params(bottom=True, labelbottom=True)
        panels = {
            key: axes for line, row in zip(lines, grid, strict=True) for key, axes in zip(line, row, strict=False)
        }
        for key, axes in panels.items():
            axes.set_title(titles.get(key, ""))
        for axes, side in zip(grid[:, -1], sides, strict=False):
            text = textwrap.fill(side, max(12, int(LETTERS_AN_INCH * panel_height)))
            axes.annotate(text, (1, 0.5), (5, 0), **RELATIVE, rotation=270, ha="left", va="center")
    return Sheet(figure, panels, styles, columns)


RELATIVE: Any = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
"""Arguments of an annotation that is placed relative to its panel."""


def wrapped(
    titles: Mapping[Any, str],
    styles: Mapping[str, ArmStyle],
    *,
    side: str = "",
    height: float | None = None,
    most: int = MAX_COLUMNS,
) -> Sheet:
    """Return a sheet with one panel per title, in lines of equal length.

    Args:
        titles: The title of each panel, by key, in reading order.
        styles: The plot styles of the arms, shown in the legend.
        side: The title at the right of each line.
        height: The height of a panel in inches; by default it depends on the number of panels.
        most: The maximum number of panels in a line.
    """
    keys = list(titles)
    lines = math.ceil(len(keys) / most)
    length = math.ceil(len(keys) / lines)
    layout = [keys[start : start + length] for start in range(0, len(keys), length)]
    return sheet(layout, titles, styles, sides=[side] * len(layout), height=height)


def crossed(
    rows: Mapping[tuple[Any, ...], str],
    columns: Mapping[tuple[Any, ...], str],
    styles: Mapping[str, ArmStyle],
    *,
    height: float | None = None,
    share_y: bool | Literal["row"] = True,
) -> Sheet:
    """Return a sheet with a panel per row and column, whose key is that of the row followed by that of the column.

    Args:
        rows: The title at the right of each row, by key.
        columns: The title above each column, by key.
        styles: The plot styles of the arms, shown in the legend.
        height: The height of a panel in inches; by default it depends on the number of panels.
        share_y: Which panels share a y axis, as in `matplotlib.figure.Figure.subplots`.
    """
    layout = [[(*row, *column) for column in columns] for row in rows]
    titles = dict(zip(layout[0], columns.values(), strict=True))
    return sheet(layout, titles, styles, sides=rows.values(), height=height, share_y=share_y)


def _draw_legend(figure: Figure, lines: Sequence[Sequence[str]], styles: Mapping[str, ArmStyle]) -> None:
    # Matplotlib fills a legend by columns; reorder the arms so that they read by lines.
    arms = [line[i] for i in range(len(lines[0])) for line in lines if i < len(line)]
    figure.legend(
        handles=[Line2D([], [], label=arm, **styles[arm].line) for arm in arms],
        loc="upper left",
        bbox_to_anchor=((LEFT - 0.08) / WIDTH, 1.0),
        ncols=len(lines[0]),
        handlelength=2.4,
        columnspacing=1.6,
        borderpad=0.1,
        borderaxespad=0.1,
    )


def _legend_lines(arms: Sequence[str]) -> list[Sequence[str]]:
    """Split the arms into the fewest legend lines that fit, each column being as wide as its widest name."""
    for columns in range(len(arms), 1, -1):
        widths = [max(map(len, arms[column::columns])) + HANDLE for column in range(columns)]
        if sum(widths) <= LETTERS:
            return [arms[start : start + columns] for start in range(0, len(arms), columns)]
    return [[arm] for arm in arms]


def name_axes(sheet: Sheet, x: str, y: str) -> None:
    """Label the axes of a sheet once, below and to the left of all panels."""
    boxes = [axes.get_position() for axes in sheet.axes.values()]
    middle = (min(box.x0 for box in boxes) + max(box.x1 for box in boxes)) / 2
    with styled():
        sheet.figure.text(middle, 0.05 / sheet.figure.get_figheight(), x, ha="center", va="bottom")
    name_row(sheet, (min(box.y0 for box in boxes), max(box.y1 for box in boxes)), y)


def name_row(sheet: Sheet, span: tuple[float, float], label: str) -> None:
    """Write a vertical label at the left edge of a sheet, in the middle of a span of heights in figure coordinates."""
    with styled():
        position = (0.02 / WIDTH, sum(span) / 2)
        sheet.figure.text(*position, label, ha="left", va="center", rotation=90, multialignment="center")


def cell_columns(table: pd.DataFrame) -> list[str]:
    """Return the columns of a table that identify a cell of the grid: the arm and all axes, but not the seed."""
    return ["arm", *axes_in(table.columns)]


def axes_of(table: pd.DataFrame) -> list[str]:
    """Return the columns of a table that are axes of the grid; their levels are the key of a panel of `faceted`."""
    return [*axes_in(table.columns)]


def facets(table: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Return the axes whose levels are the rows of panels, and those whose levels are the columns.

    Corruption and noise are columns; if neither varies, so is the key of another table with the most levels.
    """
    row, column = ([axis for axis in axes_of(table) if axis_of(axis).facet == facet] for facet in ("row", "column"))
    levels = {axis: table[axis].nunique() for axis in row if axis not in AXES}
    if levels and all(table[axis].nunique() == 1 for axis in column):
        most = max(levels, key=lambda axis: levels[axis])
        row, column = [axis for axis in row if axis != most], [*column, most]
    return row, column


def titles_of(table: pd.DataFrame, axes: Sequence[str]) -> dict[tuple[Any, ...], str]:
    """Return the combinations of levels of some axes in a table, sorted, with the titles of their panels."""
    varied = [axis for axis in axes if table[axis].nunique() > 1]
    titles = {}
    for key in table[list(axes)].drop_duplicates().sort_values(list(axes)).itertuples(index=False, name=None):
        cell = dict(zip(axes, key, strict=True))
        named = [axis for axis in axes if axis in varied or _is_always_named(axis, cell, varied)]
        titles[key] = cell_title({axis: cell[axis] for axis in named})
        if "noise" in named and "corruption" in named:
            titles[key] = f"{cell['corruption']} {cell['noise']:g}"
    return titles


def _is_always_named(axis: str, cell: Mapping[str, Any], varied: Sequence[str]) -> bool:
    """Return whether the title of a panel names a level that does not vary: the batch size, and noise if there is any.

    Beside a key of another table, space is short.
    """
    return (axis == "batch_size" and all(name in AXES for name in varied)) or (axis == "noise" and bool(cell["noise"]))


def faceted(table: pd.DataFrame, styles: Mapping[str, ArmStyle]) -> Sheet:
    """Return a sheet with a panel per cell of a table, whose key are the levels of `axes_of`.

    A single column is laid out horizontally. Where the columns are too many, each corruption has its own rows.
    """
    row, column = facets(table)
    rows, columns = titles_of(table, row), titles_of(table, column)
    if len(columns) == 1:
        ((last, side),) = columns.items()
        drawn = wrapped({(*key, *last): title for key, title in rows.items()}, styles, side=side)
    elif len(columns) <= MAX_COLUMNS or column != ["corruption", "noise"]:
        drawn = crossed(rows, columns, styles)
    else:
        corruptions = list(dict.fromkeys(corruption for corruption, _ in columns))
        lines = {
            (*key, corruption): f"{title}, {corruption}" if len(rows) > 1 else corruption
            for key, title in rows.items()
            for corruption in corruptions
        }
        drawn = crossed(lines, {(noise,): f"noise {noise:g}" for noise in sorted(table["noise"].unique())}, styles)
    order = [[*row, *column].index(axis) for axis in axes_of(table)]
    return replace(drawn, axes={tuple(key[index] for index in order): axes for key, axes in drawn.axes.items()})


def grouped(table: pd.DataFrame, *columns: str) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    """Yield the rows of a table for each combination of values of *columns*, sorted by them."""
    for key, rows in table.groupby(list(columns), sort=True):
        yield cast("tuple[Any, ...]", key), rows


# --- lines -----------------------------------------------------------------------------------------------------------


THIN, BANDED = "Thin: one seed", "Band: from the lowest seed to the highest"
"""The words of captions for the lines and for the bands that show the seeds."""


def draw_lines(
    sheet: Sheet, seeds: pd.DataFrame, medians: pd.DataFrame, x: str, keys: Sequence[str], *, banded: bool = False
) -> None:
    """Draw a thin line per seed and a bold line per cell in every panel.

    Args:
        sheet: The panels.
        seeds: One row per run and x.
        medians: One row per cell and x: the "median" over the seeds, and "lowest" and "highest" if *banded*.
        x: The column of the x axis.
        keys: The columns that identify a panel.
        banded: Shade each cell from the lowest to the highest seed instead of drawing thin lines.
    """
    others = [name for name in cell_columns(medians) if name not in (x, *keys, "arm")]
    if not banded:
        for (*key, arm), rows in grouped(seeds, *keys, "arm"):
            # Along an axis of the grid, a line joins the runs of one seed.
            index = rows.groupby([*others, "seed"], sort=False).ngroup()
            broken = broken_line(rows.assign(line=index).sort_values(["line", x]), "line", [x, "value"])
            sheet.axes[tuple(key)].plot(*broken, color=sheet.styles[arm].color, linewidth=0.5, alpha=0.45)
    for cell, rows in grouped(medians, *keys, "arm", *others):
        axes, style, line = sheet.axes[cell[: len(keys)]], sheet.styles[cell[len(keys)]], rows.sort_values(x)
        if banded:
            axes.fill_between(line[x], line["lowest"], line["highest"], color=style.color, alpha=0.2, linewidth=0)
        # About five markers, or two in small panels, one of them at the end.
        every = max(1, len(line) // (2 if len(sheet.axes) > MAX_READABLE_PANELS else 5))
        axes.plot(
            line[x], line["median"], **style.line, markevery=((len(line) - 1) % every, every), markersize=3.5, zorder=3
        )


def broken_line(rows: pd.DataFrame, by: str, columns: Sequence[str]) -> np.ndarray:
    """Return the points of several lines as one line with gaps, which needs much less markup.

    Args:
        rows: The points, sorted by line.
        by: The column that identifies a line.
        columns: The columns of the coordinates.

    Returns:
        The coordinates, of shape (len(columns), points), with NaN between lines.
    """
    ends = np.flatnonzero(rows[by].ne(rows[by].shift(-1))) + 1
    return np.insert(rows[list(columns)].to_numpy(np.float64), ends, math.nan, axis=0).T
