"""The sheet that most figures share: small panels of one scale, rows by columns, under one legend of the arms."""

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

from stability.analysis import AXES
from stability.report.style import LIGHT, WIDTH, ArmStyle, styled

MAX_READABLE_PANELS = 12
"""Panels beyond which each is too small for more than a few marks."""

CELL = ["arm", *AXES]
"""The columns that name a cell of the grid: all but the seed."""

LEFT, RIGHT, BOTTOM, GAP, LINE = 0.68, 0.3, 0.45, 0.16, 0.2
"""Inches: margins of a sheet, gap between panels, and one line of legend or title."""

LETTERS, HANDLE = 118, 11
"""Letters in a line of legend, and how many of them a line's mark and the gap behind a name take."""

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Sheet:
    """A figure of panels: *axes* by row and column key, and the styles of the arms shown in it."""

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
    """Return a sheet with a panel per row and column, each named by its words; the legend shows *styles*.

    Heights and the *gap* between rows are in inches.
    """
    tall = height or (1.25 if len(columns) > 2 else 1.5 if len(columns) == 2 else 2.0)
    tall = 0.95 if not height and len(rows) > 3 and len(columns) > 2 else tall
    legend = _legend_lines(list(styles))
    lines = len(legend)
    titled = any(columns.values())
    top = LINE * lines + (LINE if titled else 0.06) + 0.02
    total = top + tall * len(rows) + gap * (len(rows) - 1) + BOTTOM
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
                "hspace": gap / tall,
            },
        )
        if styles:
            # Matplotlib fills a legend column by column; it is read line by line.
            columned = [line[place] for place in range(len(legend[0])) for line in legend if place < len(line)]
            figure.legend(
                handles=[_handle(arm, styles[arm]) for arm in columned],
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
    """Return the arms in the fewest lines whose columns, each as wide as its widest name, stand beside each other."""
    for across in range(len(arms), 1, -1):
        widths = [max(map(len, arms[place::across])) + HANDLE for place in range(across)]
        if sum(widths) <= LETTERS:
            return [arms[start : start + across] for start in range(0, len(arms), across)]
    return [[arm] for arm in arms]


def _handle(arm: str, style: ArmStyle) -> Line2D:
    return Line2D([], [], color=style.color, marker=style.marker, linestyle=style.dash, label=arm, markeredgewidth=0)


def name_axes(sheet: Sheet, x: str, y: str) -> None:
    """Name the axes of a sheet once, below and to the left of all panels."""
    boxes = [axes.get_position() for axes in sheet.axes.values()]
    across = (min(box.x0 for box in boxes) + max(box.x1 for box in boxes)) / 2
    with styled():
        sheet.figure.text(across, 0.05 / sheet.figure.get_figheight(), x, ha="center", va="bottom")
        name_rows(sheet, [(min(box.y0 for box in boxes), max(box.y1 for box in boxes), y)])


def name_rows(sheet: Sheet, spans: Iterable[tuple[float, float, str]]) -> None:
    """Write words up the left edge of a sheet, each between two heights (as shares of the figure's)."""
    with styled():
        for low, high, words in spans:
            place = (0.02 / WIDTH, (low + high) / 2)
            sheet.figure.text(*place, words, ha="left", va="center", rotation=90, multialignment="center")


def facets(table: pd.DataFrame) -> tuple[dict[Any, str], dict[Any, str]]:
    """Return row keys (`ROW`) and column keys (corruption, noise) of a table's cells, with their words."""
    varied = {axis: table[axis].nunique() > 1 for axis in AXES}
    named = ["batch_size", *(axis for axis in ROW[1:] if varied[axis])]
    rows, columns = (table[list(pair)].drop_duplicates().sort_values(list(pair)) for pair in (ROW, COLUMN))
    return (
        {
            key: ", ".join(SHORT[axis].format(part) for axis, part in zip(ROW, key, strict=True) if axis in named)
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
    """Return a sheet with a panel per row and column key of a table; a lone column is laid on its side."""
    rows, columns = facets(table)
    if len(columns) > MAX_COLUMNS:
        return _by_corruption(table, rows, columns, styles)
    if len(columns) > 1:
        return sheet(rows, columns, styles)
    if len(rows) > MAX_COLUMNS:
        return _in_lines(rows, next(iter(columns)), styles)
    turned = sheet(columns, rows, styles)
    return Sheet(turned.figure, {(row, column): axes for (column, row), axes in turned.axes.items()}, styles)


MAX_COLUMNS = 6
"""Panels that stand beside each other."""


def _by_corruption(
    table: pd.DataFrame, rows: Mapping[Any, str], columns: Mapping[Any, str], styles: Mapping[str, ArmStyle]
) -> Sheet:
    """Return a sheet with a row for each row key and corruption, and a column for each noise level."""
    named = len(rows) > 1
    corrupted = list(dict.fromkeys(corruption for corruption, _ in columns))
    down = {(row, each): f"{words}, {each}" if named else each for row, words in rows.items() for each in corrupted}
    across = {noise: f"noise {noise:g}" for noise in sorted(table["noise"].unique())}
    whole = sheet(down, across, styles)
    placed = {(row, (each, noise)): axes for ((row, each), noise), axes in whole.axes.items()}
    return Sheet(whole.figure, placed, styles)


def _in_lines(rows: Mapping[Any, str], column: Any, styles: Mapping[str, ArmStyle]) -> Sheet:
    """Return a sheet of a panel a row, several beside each other in lines of equal length, each under its own words."""
    lines = math.ceil(len(rows) / MAX_COLUMNS)
    across = math.ceil(len(rows) / lines)
    whole = sheet(dict.fromkeys(range(lines), ""), dict.fromkeys(range(across), " "), styles, gap=GAP + LINE)
    axes = list(whole.axes.values())
    for spare in axes[len(rows) :]:
        spare.remove()
    for above in axes[len(rows) - across : len(rows)]:
        # The lowest of its column, where the last line is shorter.
        above.tick_params(bottom=True, labelbottom=True)
    named = dict(zip(rows, axes, strict=False))
    with styled():
        for row, words in rows.items():
            named[row].set_title(words)
    return Sheet(whole.figure, {(row, column): panel for row, panel in named.items()}, styles)


ROW, COLUMN = ("batch_size", "train_pairs", "lr", "lr_multiplier"), ("corruption", "noise")

SHORT = {
    "batch_size": "B = {}",
    "train_pairs": "{} pairs",
    "corruption": "{}",
    "noise": "noise {:g}",
    "lr": "lr {:g}",
    "lr_multiplier": "{:g} × lr",
}
"""A value of each axis in few words."""


def grouped(table: pd.DataFrame, *columns: str) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    """Yield the rows of a table for each combination of these columns, in their order."""
    for key, rows in table.groupby(list(columns), sort=True):
        yield cast("tuple[Any, ...]", key), rows


def by_panel(sheet: Sheet, table: pd.DataFrame) -> Iterable[tuple[Axes, pd.DataFrame]]:
    """Yield every panel of a faceted sheet with the rows of the table that belong there."""
    for key, rows in grouped(table, *ROW, *COLUMN):
        yield sheet.axes[key[: len(ROW)], key[len(ROW) :]], rows


def step_axis(sheet: Sheet, last: float) -> None:
    """Give all panels an x axis over the training steps."""
    parts = 2 if len({column for _, column in sheet.axes}) > 4 else 3
    for axes in sheet.axes.values():
        axes.set_xlim(0, last)
        spread = MaxNLocator(parts, integer=True, steps=[1, 1.5, 2, 2.5, 3, 5, 10]).tick_values(0, last)
        places = [float(place) for place in np.asarray(spread) if 0 <= place <= last]
        axes.xaxis.set_major_locator(FixedLocator(places))
        # Neighbours' last and first labels would meet between the panels.
        labels = axes.get_xticklabels()
        for label in labels[:1]:
            label.set_horizontalalignment("left")
        for label in labels[-1:] if places[-1] > 0.9 * last else []:
            label.set_horizontalalignment("right")


def value_axis(sheet: Sheet, scale: str, values: Iterable[float], *, zero: bool = False) -> None:
    """Give all panels a y axis over these values with ticks in plain numbers; *zero* starts a linear one there."""
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
    """Draw the line of every seed, an arm's lines as one broken line: a fraction of the markup of many."""
    for arm, style in styles.items():
        rows = table[table["arm"] == arm]
        path, seed = rows[[x, "value"]].to_numpy(np.float64), rows["seed"].to_numpy()
        order = np.argsort(seed, kind="stable")
        breaks = np.flatnonzero(np.diff(seed[order])) + 1
        broken = np.insert(path[order], breaks, math.nan, axis=0)
        axes.plot(broken[:, 0], broken[:, 1], color=style.color, linewidth=0.5, alpha=0.45)


THIN, BANDED = "Thin: one seed", "Band: from the lowest seed to the highest"
"""What captions say of `thin_lines` and of `bands`."""


def bands(axes: Axes, table: pd.DataFrame, x: str, styles: Mapping[str, ArmStyle]) -> None:
    """Shade each arm from its lowest seed to its highest: what is read of thin lines where they are too many."""
    for arm, style in styles.items():
        rows = table[table["arm"] == arm]
        axes.fill_between(rows[x], rows["lowest"], rows["highest"], color=style.color, alpha=0.2, linewidth=0)


def bold_line(axes: Axes, x: pd.Series, y: pd.Series, style: ArmStyle) -> None:
    """Draw the line that sums up an arm's seeds, with some of its marks, one of them at the end.

    About five, or two where the panels are many and small.
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
"""Inches that a level's label takes on an axis."""


def level_axis(axes: Axes, levels: Sequence[float]) -> None:
    """Give a panel an x axis over the levels of an axis of the grid, named as far as there is room."""
    every = math.ceil(len(levels) * LABEL / (axes.get_position().width * WIDTH))
    # Between the levels of a logarithmic axis no round number is where a reader expects it.
    named = every == 1 or axes.get_xscale() == "log"
    axes.xaxis.set_major_locator(FixedLocator(list(levels[::every])) if named else MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.margins(x=0.06)


def reference(axes: Axes, level: float) -> None:
    """Draw a level that data are held against, such as chance."""
    axes.axhline(level, color=LIGHT["muted"], linewidth=0.8, linestyle=(0, (1, 1.5)), zorder=1)


def cell_words(cell: Mapping[str, Any], varied: Sequence[str]) -> str:
    """Return a cell in words, naming only the axes that vary.

    >>> cell_words({"batch_size": 32, "noise": 0.2, "lr": 1e-3, "corruption": "mismatch"}, ["batch_size", "noise"])
    'batch size 32, noise 0.2'
    """
    words = {
        "batch_size": "batch size {}",
        "train_pairs": "{} pairs",
        "corruption": "{}",
        "noise": "noise {:g}",
        "lr": "learning rate {:g}",
        "lr_multiplier": "{:g} times the rate",
    }
    named = [axis for axis in AXES if axis in varied] or ["batch_size"]
    return ", ".join(words[axis].format(cell[axis]) for axis in named)
