"""The figure of the search: the tuning measure over the learning rate, with each run and the chosen setting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stability.analysis import Results
from stability.report.figures import panels, scales, tables
from stability.report.figures.figure import ReportFigure
from stability.report.style import ArmStyle, arm_styles, styled
from stability.stats.wording import number
from stability.study import settings_of
from stability.vocabulary import cell_title


def tuning_curves(results: Results) -> Iterator[ReportFigure]:
    """Yield the tuning curves of a study with a search: a panel per batch size, a line per arm and options."""
    if results.tuning is None:
        return
    table, styles, measure = tried_table(results), arm_styles(results.study.grid.arms), results.tuning.measure
    label, scale = measure.inline_label, "log" if measure.transform == "log" else "linear"
    best = table[table["chosen"]].groupby(["batch_size", "arm"], sort=False)
    chosen = [
        f"{arm} at batch size {size}: {number(rows['lr'].iloc[0])} ({label} {number(rows['value'].mean())})"
        for (size, arm), rows in best
    ]
    others = "Thin lines: other initial values or options. " if table["other"].any() else ""
    crosses = "Crosses diverged, and stand at chance. " if table["diverged"].any() else ""
    yield ReportFigure(
        id="tuning",
        section="tuning",
        title=f"{measure.label} over the learning rate",
        caption=f"{measure.label} of the tuning runs, mean over the last fifth of their steps, at each learning rate "
        "(logarithmic axis). Each dot is one seed; lines join the means over seeds, and a ring marks the setting "
        f"chosen. {others}{crosses}No run of the search enters a test.",
        alt=f"{measure.label} of the tuning runs against the learning rate. Chosen: {'; '.join(chosen)}.",
        figure=tuning_figure(table, styles, label, scale, bool(measure.chance)),
        table=tables.shown(table.drop(columns=["setting", "other", "score"]).rename(columns={"value": measure.name})),
    )


def tried_table(results: Results) -> pd.DataFrame:
    """Return the tuning runs with added columns on their settings.

    The columns are "options" (as text), "chosen" (whether it is the chosen setting) and "other" (whether its options
    differ from the chosen ones).
    """
    assert results.tuning is not None
    tuning = results.tuning
    settings = {arm: settings_of(results.study, arm) for arm in results.study.grid.arms}
    cells = list(tuning.tried[["arm", "batch_size", "setting"]].itertuples(index=False, name=None))
    tried = [settings[arm][index] for arm, _, index in cells]
    chosen = [tuning.chosen[arm, size] for arm, size, _ in cells]
    return tuning.tried.assign(
        options=[setting.words for setting in tried],
        chosen=[setting == best for setting, best in zip(tried, chosen, strict=True)],
        other=[setting.options != best.options for setting, best in zip(tried, chosen, strict=True)],
    )


def tuning_figure(table: pd.DataFrame, styles: Mapping[str, ArmStyle], label: str, scale: str, zero: bool) -> Figure:
    """Return a figure of values against the learning rate, a panel per batch size.

    Args:
        table: The tuning runs, from `tried_table`.
        styles: The plot style of each arm.
        label: The label of the y axis.
        scale: The scale of the y axis, "log" or "linear".
        zero: Whether a linear y axis starts at 0.
    """
    sheet = panels.wrapped(
        {size: cell_title({"batch_size": size}) for size in sorted(table["batch_size"].unique())}, styles, height=2.0
    )
    # Shift the arms slightly, so that equal rates do not overlap.
    shifts = {arm: 1.02 ** (index - (len(styles) - 1) / 2) for index, arm in enumerate(styles)}
    with styled():
        for (size,), rows in panels.grouped(table.assign(lr=table["lr"] * table["arm"].map(shifts)), "batch_size"):
            _panel(sheet.axes[size], rows, styles)
        low, high = table["lr"].min(), table["lr"].max()
        for axes in sheet.axes.values():
            scales.log_axis(axes, "x", low, high)
            axes.set_xlim(low / 1.2, high * 1.2)
        scales.value_axis(sheet, scale, table["value"], zero=zero)
        panels.name_axes(sheet, "learning rate", label)
    return sheet.figure


def _panel(axes: Axes, rows: pd.DataFrame, styles: Mapping[str, ArmStyle]) -> None:
    """Draw the runs of a batch size: their means as lines, and those with other options thinner and paler."""
    for (arm, other, _), line in panels.grouped(rows, "arm", "other", "options"):
        style, width, size = styles[arm], 0.7 if other else 1.6, 2 if other else 3.5
        look: dict[str, Any] = {"color": style.color, "alpha": 0.45 if other else 1.0, "zorder": 1.9 if other else 2}
        means = line.groupby("lr")["value"].mean()
        axes.plot(means.index, means, linestyle=style.dash, linewidth=width, **look)
        for diverged, runs in line.groupby("diverged"):
            look |= {"marker": "x" if diverged else style.marker, "markeredgewidth": 0.6 * width if diverged else 0}
            axes.plot(runs["lr"], runs["value"], linestyle="none", markersize=size, **look)
    chosen = rows[rows["chosen"]].groupby("arm", as_index=False)[["lr", "value"]].mean()
    ring: dict[str, Any] = {
        "facecolors": "none",
        "edgecolors": [styles[arm].color for arm in chosen["arm"]],
        "linewidths": 1.2,
        "zorder": 4,
    }
    axes.scatter(chosen["lr"], chosen["value"], s=100, **ring)
