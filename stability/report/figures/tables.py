"""The data of figures: one value per run and step, statistics over the seeds of a cell, and their text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from stability.analysis import Results
from stability.report.figures import panels
from stability.report.style import ArmStyle, arm_styles
from stability.stats.wording import number
from stability.vocabulary import axes_in, cell_in_words

POINTS = 6000
"""Maximum total number of points of a figure's lines: more would enlarge the page without a visible gain."""

LINES = 750
"""Number of lines above which a figure shows the seeds as a band, since more would blur and slow the page."""


def of_steps(results: Results, values: pd.Series) -> pd.DataFrame:
    """Return one row per run and measured step (cell, seed, run, step, value) of a series aligned with the steps."""
    rows = pd.DataFrame({"run": results.steps["run"], "step": results.steps["step"], "value": values.astype(float)})
    rows = rows[rows["value"].map(math.isfinite)]
    named = results.runs[["run", *panels.cell_columns(results.runs), "seed"]]
    return rows.merge(named, on="run", how="inner", sort=False)


def of_runs(results: Results, values: pd.Series) -> pd.DataFrame:
    """Return one row per run (cell, seed, run, value) of a series indexed by run, without non-finite values."""
    table = results.runs[["run", *panels.cell_columns(results.runs), "seed"]]
    table = table.assign(value=values.reindex(table["run"]).to_numpy(dtype=float))
    return table[table["value"].map(math.isfinite)]


def styles_in(results: Results, table: pd.DataFrame) -> dict[str, ArmStyle]:
    """Return the plot styles of the arms in a table, in the study's order."""
    present = set(table["arm"])
    return {arm: style for arm, style in arm_styles(results.study.grid.arms).items() if arm in present}


def levels_of(table: pd.DataFrame, axes: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return the sorted combinations of levels of some axes in a table; one empty combination if there are no axes."""
    if not axes:
        return [()]
    columns = list(axes)
    return list(table[columns].drop_duplicates().sort_values(columns).itertuples(index=False, name=None))


def window_of(table: pd.DataFrame) -> int:
    """Return the number of steps to average so that the lines of a table have at most about `POINTS` points.

    Only a measure taken at every step is averaged; for one that a probe takes at some steps the result is 1.
    """
    longest = int(table.groupby("run", sort=False)["step"].size().max())
    if longest < 0.9 * (table["step"].max() - table["step"].min()):
        return 1
    return max(1, math.ceil(longest / _points_a_line(table)))


def banded(table: pd.DataFrame) -> bool:
    """Return whether a table has too many runs to show each as a line."""
    return int(table["run"].nunique()) > LINES


def _lines(table: pd.DataFrame) -> int:
    """Return the number of lines that show a table: one per run, or two edges and a median per cell."""
    return (
        3 * len(table[panels.cell_columns(table)].drop_duplicates()) if banded(table) else int(table["run"].nunique())
    )


def _points_a_line(table: pd.DataFrame) -> int:
    return min(60, max(8, POINTS // _lines(table)))


def sparse(table: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Return every k-th row of each run with its last row, and k, so that the lines have at most about `POINTS` points.

    If nothing needs to be dropped, k is 1 and the table is returned unchanged.
    """
    longest = int(table.groupby("run", sort=False).size().max())
    k = math.ceil(longest / _points_a_line(table)) if longest * _lines(table) > 2 * POINTS else 1
    if k == 1:
        return table, 1
    index = table.groupby("run", sort=False).cumcount()
    last = ~table.duplicated("run", keep="last")
    return table[(index % k == 0) | last], k


def windowed(table: pd.DataFrame, window: int) -> pd.DataFrame:
    """Return the table with each run's values averaged over windows of *window* steps; "step" is a window's middle."""
    if window == 1:
        return table
    start = table["step"] // window * window
    keys = [*panels.cell_columns(table), "seed", "run"]
    means = table.assign(step=start).groupby([*keys, "step"], sort=False)["value"].mean().reset_index()
    last = int(table["step"].max())
    window_ends = (means["step"] + window - 1).clip(upper=last)
    return means.assign(step=(means["step"] + window_ends) / 2)


def across_seeds(table: pd.DataFrame, *keys: str) -> pd.DataFrame:
    """Return per cell, and per value of the columns *keys*, the number of seeds, their median, lowest and highest."""
    grouped = table.groupby([*panels.cell_columns(table), *keys], sort=True)["value"]
    summary = grouped.agg(seeds="count", median="median", lowest="min", highest="max").reset_index()
    order = {arm: index for index, arm in enumerate(dict.fromkeys(table["arm"]))}
    return summary.sort_values(
        [*axes_in(table.columns), "arm", *keys], key=lambda c: c.map(order) if c.name == "arm" else c
    )


def shown(table: pd.DataFrame, digits: int = 4) -> pd.DataFrame:
    """Return a table for readers: numbers rounded to *digits* significant digits, without constant axes."""
    constant = [axis for axis in axes_in(table.columns) if axis != "batch_size" and table[axis].nunique() == 1]
    rounded = {
        name: [float(f"{value:.{digits}g}") for value in table[name]]
        for name in table.columns
        if name not in axes_in(table.columns) and table[name].dtype.kind == "f"
    }
    return table.assign(**rounded).drop(columns=[*constant, *({"run"} & set(table.columns))]).reset_index(drop=True)


def in_words(
    table: pd.DataFrame,
    arms: Sequence[str],
    value: str,
    to_text: Callable[[float], str] = number,
    *,
    of: pd.DataFrame | None = None,
    most: int = 9,
) -> str:
    """Return one number per cell and arm as text for screen readers; a range per arm if there are many cells.

    Args:
        table: One row per cell and arm.
        arms: The arms in order.
        value: The column of the numbers.
        to_text: Formats a number.
        of: The larger table that *table* is a part of; cells are named by the axes that vary in it.
        most: Number of cells above which ranges are given.
    """
    whole = table if of is None else of
    varied = [axis for axis in axes_in(whole.columns) if whole[axis].nunique() > 1]
    axes = list(axes_in(table.columns))
    cells = table[axes].drop_duplicates().sort_values(axes)
    if len(cells) > most:
        spans = (table[table["arm"] == arm][value] for arm in arms)
        return "; ".join(
            f"{arm} from {to_text(span.min())} to {to_text(span.max())} over {len(cells)} cells"
            for arm, span in zip(arms, spans, strict=True)
            if len(span)
        )
    parts = []
    for key, rows in panels.grouped(table, *axes):
        values = rows.set_index("arm")[value]
        names = ", ".join(f"{arm} {to_text(float(values[arm]))}" for arm in arms if arm in values.index)
        cell = (
            f"{cell_in_words({axis: level for axis, level in zip(axes, key, strict=True) if axis in varied})}: "
            if varied
            else ""
        )
        parts.append(cell + names)
    return "; ".join(parts)
