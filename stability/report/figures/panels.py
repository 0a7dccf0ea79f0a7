"""The layout of most figures: a grid of small panels with shared scales under one legend of the arms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from stability.report.style import LIGHT, WIDTH, ArmStyle, styled
from stability.vocabulary import AXES, cell_title

MAX_READABLE_PANELS = 12
"""Number of panels above which each is too small for more than a few marks."""

CELL = ["arm", *AXES]
"""The columns that identify a cell of the grid: the arm and all axes, but not the seed."""

LEFT, RIGHT, BOTTOM, GAP, LINE = 0.68, 0.3, 0.45, 0.16, 0.2
"""Sizes in inches: margins of a sheet, gap between panels, and one line of legend or title."""

LETTERS, HANDLE = 118, 11
"""Width of a legend line in characters, and the characters taken by an arm's handle and spacing."""

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Sheet:
    """A figure of panels.

    Attributes:
        figure: The figure.
        axes: The panels by row key and column key.
        styles: The plot styles of the arms in it.
    """

    figure: Figure
    axes: dict[tuple[Any, Any], Axes]
    styles: Mapping[str, ArmStyle]


def sheet(
    rows: Mapping[Any, str],
    columns: Mapping[Any, str],
    styles: Mapping[str, ArmStyle],
    *,
    height: float | None = None,
    share_y: bool | str = True,
    gap: float = GAP,
) -> Sheet:
    """Return a sheet with a panel per row and column.

    Args:
        rows: The row keys and their titles.
        columns: The column keys and their titles.
        styles: The plot styles of the arms, shown in the legend.
        height: The height of a panel in inches; by default it depends on the number of panels.
        share_y: Which panels share a y axis, as in `matplotlib.figure.Figure.subplots`.
        gap: The gap between rows in inches.
    """
    panel_height = height or (1.25 if len(columns) > 2 else 1.5 if len(columns) == 2 else 2.0)
    panel_height = 0.95 if not height and len(rows) > 3 and len(columns) > 2 else panel_height
    legend = _legend_lines(list(styles))
    lines = len(legend)
    titled = any(columns.values())
    top = LINE * lines + (LINE if titled else 0.06) + 0.02
    total = top + panel_height * len(rows) + gap * (len(rows) - 1) + BOTTOM
    inner = (WIDTH - LEFT - RIGHT - 0.1 * (len(columns) - 1)) / len(columns)
    with styled():
        figure = Figure(figsize=(WIDTH, total))
        grid = figure.subplots(
            len(rows),
            len(columns),
            squeeze=False,
            sharex=True,
            sharey=share_y,  # type: ignore[arg-type]
            gridspec_kw={
                "left": LEFT / WIDTH,
                "right": 1 - RIGHT / WIDTH,
                "bottom": BOTTOM / total,
                "top": 1 - top / total,
                "wspace": 0.1 / inner,
                "hspace": gap / panel_height,
            },
        )
        if styles:
            # Matplotlib fills a legend by columns; reorder the arms so that they read by lines.
            by_column = [line[i] for i in range(len(legend[0])) for line in legend if i < len(line)]
            figure.legend(
                handles=[_handle(arm, styles[arm]) for arm in by_column],
                loc="upper left",
                bbox_to_anchor=((LEFT - 0.08) / WIDTH, 1.0),
                ncols=len(legend[0]),
                handlelength=2.4,
                columnspacing=1.6,
                borderpad=0.1,
                borderaxespad=0.1,
            )
        if grid.size > MAX_READABLE_PANELS:
            for axes in grid[:, 1:].flat:
                axes.tick_params(left=False)
            for axes in grid[:-1].flat:
                axes.tick_params(bottom=False)
        for axes, words in zip(grid[0], columns.values(), strict=True):
            axes.set_title(words)
        for axes, words in zip(grid[:, -1], rows.values(), strict=True):
            axes.annotate(
                words,
                (1, 0.5),
                (5, 0),
                xycoords="axes fraction",
                textcoords="offset points",
                rotation=270,
                ha="left",
                va="center",
                annotation_clip=False,
            )
    keys = [(row, column) for row in rows for column in columns]
    return Sheet(figure, dict(zip(keys, grid.flat, strict=True)), styles)


def _legend_lines(arms: Sequence[str]) -> list[Sequence[str]]:
    """Split the arms into the fewest legend lines that fit, each column being as wide as its widest name."""
    for columns in range(len(arms), 1, -1):
        widths = [max(map(len, arms[column::columns])) + HANDLE for column in range(columns)]
        if sum(widths) <= LETTERS:
            return [arms[start : start + columns] for start in range(0, len(arms), columns)]
    return [[arm] for arm in arms]


def _handle(arm: str, style: ArmStyle) -> Line2D:
    return Line2D([], [], color=style.color, marker=style.marker, linestyle=style.dash, label=arm, markeredgewidth=0)


def name_axes(sheet: Sheet, x: str, y: str) -> None:
    """Label the axes of a sheet once, below and to the left of all panels."""
    boxes = [axes.get_position() for axes in sheet.axes.values()]
    middle = (min(box.x0 for box in boxes) + max(box.x1 for box in boxes)) / 2
    with styled():
        sheet.figure.text(middle, 0.05 / sheet.figure.get_figheight(), x, ha="center", va="bottom")
        name_rows(sheet, [(min(box.y0 for box in boxes), max(box.y1 for box in boxes), y)])


def name_rows(sheet: Sheet, spans: Iterable[tuple[float, float, str]]) -> None:
    """Write vertical labels at the left edge of a sheet, each between two heights (in figure coordinates)."""
    with styled():
        for low, high, words in spans:
            position = (0.02 / WIDTH, (low + high) / 2)
            sheet.figure.text(*position, words, ha="left", va="center", rotation=90, multialignment="center")


def facets(table: pd.DataFrame) -> tuple[dict[Any, str], dict[Any, str]]:
    """Return the row keys (`ROW`) and column keys (`COLUMN`) of a table's cells with their titles."""
    varied = {axis: table[axis].nunique() > 1 for axis in AXES}
    named = ["batch_size", *(axis for axis in ROW[1:] if varied[axis])]
    rows, columns = (table[list(key)].drop_duplicates().sort_values(list(key)) for key in (ROW, COLUMN))
    return (
        {
            key: cell_title({axis: value for axis, value in zip(ROW, key, strict=True) if axis in named})
            for key in rows.itertuples(index=False, name=None)
        },
        {
            (corruption, noise): f"{corruption if varied['corruption'] else 'noise'} {noise:g}"
            if varied["corruption"] or varied["noise"] or noise
            else ""
            for corruption, noise in columns.itertuples(index=False)
        },
    )


def faceted(table: pd.DataFrame, styles: Mapping[str, ArmStyle]) -> Sheet:
    """Return a sheet with a panel per row and column key of a table; a single column is laid out horizontally."""
    rows, columns = facets(table)
    if len(columns) > MAX_COLUMNS:
        return _by_corruption(table, rows, columns, styles)
    if len(columns) > 1:
        return sheet(rows, columns, styles)
    if len(rows) > MAX_COLUMNS:
        return _wrapped(rows, next(iter(columns)), styles)
    transposed = sheet(columns, rows, styles)
    return Sheet(transposed.figure, {(row, column): axes for (column, row), axes in transposed.axes.items()}, styles)


MAX_COLUMNS = 6
"""Maximum number of panels side by side."""


def _by_corruption(
    table: pd.DataFrame, rows: Mapping[Any, str], columns: Mapping[Any, str], styles: Mapping[str, ArmStyle]
) -> Sheet:
    """Return a sheet with a row for each row key and corruption, and a column for each noise level."""
    named = len(rows) > 1
    corruptions = list(dict.fromkeys(corruption for corruption, _ in columns))
    sheet_rows = {
        (row, name): f"{words}, {name}" if named else name for row, words in rows.items() for name in corruptions
    }
    sheet_columns = {noise: f"noise {noise:g}" for noise in sorted(table["noise"].unique())}
    inner = sheet(sheet_rows, sheet_columns, styles)
    axes_by_key = {(row, (name, noise)): axes for ((row, name), noise), axes in inner.axes.items()}
    return Sheet(inner.figure, axes_by_key, styles)


def _wrapped(rows: Mapping[Any, str], column: Any, styles: Mapping[str, ArmStyle]) -> Sheet:
    """Return a sheet with one panel per row key, wrapped into lines of equal length, each panel with its own title."""
    lines = math.ceil(len(rows) / MAX_COLUMNS)
    per_line = math.ceil(len(rows) / lines)
    inner = sheet(dict.fromkeys(range(lines), ""), dict.fromkeys(range(per_line), " "), styles, gap=GAP + LINE)
    axes = list(inner.axes.values())
    for spare in axes[len(rows) :]:
        spare.remove()
    for lowest in axes[len(rows) - per_line : len(rows)]:
        # The last line may be shorter, so mark the lowest panel of each column.
        lowest.tick_params(bottom=True, labelbottom=True)
    by_row = dict(zip(rows, axes, strict=False))
    with styled():
        for row, words in rows.items():
            by_row[row].set_title(words)
    return Sheet(inner.figure, {(row, column): panel for row, panel in by_row.items()}, styles)


ROW, COLUMN = (tuple(axis.name for axis in AXES.values() if axis.facet == facet) for facet in ("row", "column"))
"""The axes whose levels are the rows of panels, and those whose levels are the columns."""


def grouped(table: pd.DataFrame, *columns: str) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    """Yield the rows of a table for each combination of values of *columns*, sorted by them."""
    for key, rows in table.groupby(list(columns), sort=True):
        yield cast("tuple[Any, ...]", key), rows


def by_panel(sheet: Sheet, table: pd.DataFrame) -> Iterable[tuple[Axes, pd.DataFrame]]:
    """Yield the panels of a faceted sheet with their rows of the table."""
    for key, rows in grouped(table, *ROW, *COLUMN):
        yield sheet.axes[key[: len(ROW)], key[len(ROW) :]], rows


def step_axis(sheet: Sheet, last: float) -> None:
    """Set the x axis of all panels to the training steps."""
    intervals = 2 if len({column for _, column in sheet.axes}) > 4 else 3
    for axes in sheet.axes.values():
        axes.set_xlim(0, last)
        spread = MaxNLocator(intervals, integer=True, steps=[1, 1.5, 2, 2.5, 3, 5, 10]).tick_values(0, last)
        ticks = [float(step) for step in np.asarray(spread) if 0 <= step <= last]
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        # Otherwise the last label of a panel and the first of its neighbor would overlap.
        labels = axes.get_xticklabels()
        for label in labels[:1]:
            label.set_horizontalalignment("left")
        for label in labels[-1:] if ticks[-1] > 0.9 * last else []:
            label.set_horizontalalignment("right")


def value_axis(sheet: Sheet, scale: str, values: Iterable[float], *, zero: bool = False) -> None:
    """Set the y axis of all panels to these values, with plain-number ticks; *zero* starts a linear axis at 0."""
    shown = np.array([value for value in values if math.isfinite(value)])
    for axes in sheet.axes.values():
        if scale == "log" and (shown > 0).any():
            low, high = shown[shown > 0].min(), shown.max()
            log_axis(axes, "y", low, high)
            axes.set_ylim(low / 1.15, high * 1.15)
        else:
            axes.yaxis.set_major_locator(MaxNLocator(4))
            if zero:
                axes.set_ylim(0, max(shown.max() * 1.06, 1e-9) if len(shown) else 1)


def log_axis(axes: Axes, which: Literal["x", "y"], low: float, high: float) -> None:
    """Make an axis of a panel logarithmic with three to seven ticks in plain numbers between two positive values."""
    if which == "x":
        axes.set_xscale("log", nonpositive="mask")
    else:
        axes.set_yscale("log", nonpositive="mask")
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(log_ticks(low, high)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda x, _: tick(x)))


DENSITIES = (
    (1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9),
    (1, 1.25, 1.5, 2, 3, 4, 6, 8),
    (1, 1.5, 2, 3, 4, 5, 7),
    (1, 1.5, 2, 3, 5, 7),
    (1, 2, 5),
    (1, 3),
)
"""Leading digits of a logarithmic axis's ticks, from dense to sparse."""


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers from *low* to *high*, evenly spread on a logarithmic axis, as dense as *most* allows.

    >>> log_ticks(0.02, 0.9), log_ticks(1e-6, 3), log_ticks(0.8, 1.3)
    ([0.02, 0.05, 0.1, 0.2, 0.5], [1e-06, 0.0001, 0.01, 1.0], [0.8, 0.9, 1.0, 1.1, 1.2, 1.3])
    """
    low, high = low * (1 - 1e-9), high * (1 + 1e-9)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for mantissas in DENSITIES:
        ticks = [float(f"{m}e{e}") for e in range(first, last + 1) for m in mantissas if low <= m * 10.0**e <= high]
        if len(ticks) <= most:
            return ticks
    stride = math.ceil((last - first) / most)
    return [10.0**e for e in range(first, last + 1) if e % stride == 0 and low <= 10.0**e <= high]


def tick(x: float) -> str:
    """Return a number for an axis.

    >>> tick(0.02), tick(-1000.0), tick(3e-6), tick(1e5)
    ('0.02', '−1000', '3×10⁻⁶', '10⁵')
    """
    if x == 0 or 1e-3 <= abs(x) < 1e5:
        return f"{x:.4g}".replace("-", "−")
    exponent = math.floor(math.log10(abs(x)) + 1e-9)
    mantissa = f"{x / 10.0**exponent:.3g}".replace("-", "−")
    power = "10" + str(exponent).translate(SUPERSCRIPTS)
    return power if mantissa == "1" else f"−{power}" if mantissa == "−1" else f"{mantissa}×{power}"


def thin_lines(axes: Axes, table: pd.DataFrame, x: str, styles: Mapping[str, ArmStyle]) -> None:
    """Draw one line per seed; an arm's lines form one broken line, which needs much less markup."""
    for arm, style in styles.items():
        rows = table[table["arm"] == arm]
        path, seed = rows[[x, "value"]].to_numpy(np.float64), rows["seed"].to_numpy()
        order = np.argsort(seed, kind="stable")
        breaks = np.flatnonzero(np.diff(seed[order])) + 1
        broken = np.insert(path[order], breaks, math.nan, axis=0)
        axes.plot(broken[:, 0], broken[:, 1], color=style.color, linewidth=0.5, alpha=0.45)


THIN, BANDED = "Thin: one seed", "Band: from the lowest seed to the highest"
"""The words of captions for `thin_lines` and for `bands`."""


def bands(axes: Axes, table: pd.DataFrame, x: str, styles: Mapping[str, ArmStyle]) -> None:
    """Shade each arm from its lowest to its highest seed, in place of too many thin lines."""
    for arm, style in styles.items():
        rows = table[table["arm"] == arm]
        axes.fill_between(rows[x], rows["lowest"], rows["highest"], color=style.color, alpha=0.2, linewidth=0)


def bold_line(axes: Axes, x: pd.Series, y: pd.Series, style: ArmStyle) -> None:
    """Draw an arm's summary line with a few markers, one of them at the end.

    There are about five markers, or two if there are many small panels.
    """
    figure = axes.get_figure()
    every = max(1, len(x) // (2 if figure is not None and len(figure.axes) > MAX_READABLE_PANELS else 5))
    axes.plot(
        x,
        y,
        color=style.color,
        linestyle=style.dash,
        marker=style.marker,
        markevery=(max(0, len(x) - 1) % every, every),
        markersize=3.5,
        markeredgewidth=0,
        zorder=3,
    )


LABEL = 0.3
"""Width of a level's axis label in inches."""


def level_axis(axes: Axes, levels: Sequence[float]) -> None:
    """Set a panel's x axis to the levels of a grid axis, with as many tick labels as fit."""
    every = math.ceil(len(levels) * LABEL / (axes.get_position().width * WIDTH))
    # On a logarithmic axis only the levels get ticks: readers misplace round numbers between them.
    at_levels = every == 1 or axes.get_xscale() == "log"
    axes.xaxis.set_major_locator(FixedLocator(list(levels[::every])) if at_levels else MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.margins(x=0.06)


def reference(axes: Axes, level: float) -> None:
    """Draw a reference level, such as chance, as a dotted line."""
    axes.axhline(level, color=LIGHT["muted"], linewidth=0.8, linestyle=(0, (1, 1.5)), zorder=1)
