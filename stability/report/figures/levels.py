"""Figures of one number per run against the axes of the grid, such as recall under noise or time to a threshold."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from stability.analysis import Results, steps_to_threshold, summarize, transformed
from stability.report.figures import panels, tables
from stability.report.figures.drawn import ReportFigure
from stability.report.style import ArmStyle, arm_styles, styled
from stability.stats.wording import percent
from stability.vocabulary import AXES, REDUCTIONS, cell_title


def per_run(results: Results, values: pd.Series) -> pd.DataFrame:
    """Return one row per run (cell, seed, run, value) of a series indexed by run, without non-finite values."""
    table = results.runs[["run", *panels.CELL, "seed"]].copy()
    table["value"] = values.reindex(table["run"]).to_numpy(dtype=float)
    finite: pd.DataFrame = table[np.isfinite(table["value"])]
    return finite


def medians(table: pd.DataFrame) -> pd.DataFrame:
    """Return per cell the number of seeds, their median, lowest and highest value."""
    return tables.across_seeds(table.assign(step=0)).drop(columns="step")


def styles_in(results: Results, table: pd.DataFrame) -> dict[str, ArmStyle]:
    """Return the plot styles of the arms in a table, in the study's order."""
    present = set(table["arm"])
    return {arm: style for arm, style in arm_styles(results.study.grid.arms).items() if arm in present}


# --- decline under noise ---------------------------------------------------------------------------------------------


def decline(results: Results) -> Iterator[ReportFigure]:
    """Yield recall against the noise level, if the study has several noise levels."""
    name = "recall_at_1"
    if len(results.study.grid.noise) < 2 or name not in results.steps or name not in results.measures:
        return
    reduction = next(
        (claim.reduction for claim in results.study.claims if claim.axis == "noise" and claim.reduction), "tail_mean"
    )
    above = np.exp(transformed(results, name, summarize(results, name, reduction), "log_above_chance"))
    table = per_run(results, above)
    if not len(table):
        return
    styles, middle = styles_in(results, table), medians(table)
    yield ReportFigure(
        id="noise-decline",
        section="noise",
        title="Retrieval as pairs are corrupted",
        caption="Recall@1 above chance, (x − chance) / (1 − chance), of each run "
        f"({REDUCTIONS[reduction].of_run}) against the share of corrupted pairs, on a logarithmic axis: "
        "parallel lines lose the same proportion. Thin: one seed; bold: the median of the seeds.",
        alt=f"Recall@1 above chance against the noise level. Median over seeds: "
        f"{tables.in_words(middle, list(styles), 'median', most=18)}.",
        figure=level_figure(table, middle, styles, "noise", "recall@1 above chance", "log"),
        table=tables.shown(middle),
    )


LINE_AXES = ("batch_size", "train_pairs", "lr_multiplier", "lr", "noise")
"""The axes that can be the x axis of a figure, from the one that is preferred where measures are drawn over levels."""


def level_figure(
    table: pd.DataFrame,
    middle: pd.DataFrame,
    styles: Mapping[str, ArmStyle],
    axis: str,
    label: str,
    scale: str,
    level: float | None = None,
) -> Figure:
    """Return a figure of values against an axis of the grid: thin lines per seed, bold medians, a panel per batch size.

    Args:
        table: One row per run, with its value.
        middle: The medians over seeds, one row per cell.
        styles: The plot style of each arm.
        axis: The axis of the grid on the x axis.
        label: The label of the y axis.
        scale: The scale of the y axis, "log" or "linear".
        level: A reference level, drawn as a dotted line.
    """
    others = [name for name in AXES if name not in (axis, "batch_size") and table[name].nunique() > 1]
    rows = {
        key: cell_title(dict(zip(others, key, strict=True)))
        for key in (table[others].drop_duplicates().itertuples(index=False, name=None) if others else [()])
    }
    by_size = axis != "batch_size"
    sizes = {size: f"B = {size}" for size in sorted(table["batch_size"].unique())} if by_size else {0: ""}
    table, middle = (frame.assign(panel=frame["batch_size"] if by_size else 0) for frame in (table, middle))
    if len(sizes) == 1 and len(rows) in range(2, panels.MAX_COLUMNS + 1):
        transposed = panels.sheet(sizes, rows, styles, height=1.9)
        axes_at = {(row, size): axes for (size, row), axes in transposed.axes.items()}
        sheet = panels.Sheet(transposed.figure, axes_at, styles)
    else:
        sheet = panels.sheet(rows, sizes, styles, height=1.9)
    group_columns = ["panel", *others]
    with styled():
        for key, lines in panels.grouped(table, *group_columns):
            panels.thin_lines(sheet.axes[key[1:], key[0]], lines.sort_values(axis), axis, styles)
        for key, lines in panels.grouped(middle, *group_columns, "arm"):
            line = lines.sort_values(axis)
            panels.bold_line(sheet.axes[key[1:-1], key[0]], line[axis], line["median"], styles[key[-1]])
        for axes in sheet.axes.values():
            if AXES[axis].doubling:
                axes.set_xscale("log")
                axes.xaxis.set_minor_locator(NullLocator())
            panels.level_axis(axes, sorted(table[axis].unique()))
            if level is not None:
                panels.reference(axes, level)
        panels.value_axis(sheet, scale, [*table["value"], *([] if level is None else [level])])
        panels.name_axes(sheet, AXES[axis].axis_label, label)
    return sheet.figure


# --- along other axes ------------------------------------------------------------------------------------------------


def along_axes(results: Results) -> Iterator[ReportFigure]:
    """Yield each measure whose claim runs over batch size, number of pairs or learning rate, against that axis."""
    grid = results.study.grid
    claims = [claim for claim in results.study.claims if claim.axis and AXES[claim.axis].doubling]
    shown = {
        (name, grid.column(claim.axis)): claim.reduction or "tail_mean"
        for claim in reversed(claims)
        for name in reversed(claim.measures)
    }
    for index, ((name, axis), reduction) in enumerate(reversed(shown.items()), start=1):
        measure = results.measures[name]
        values, label = summarize(results, name, reduction), measure.label[:1].lower() + measure.label[1:]
        if measure.chance:
            values, label = np.exp(transformed(results, name, values, "log_above_chance")), f"{label} above chance"
        table = per_run(results, values)
        if not len(table):
            continue
        styles, middle = styles_in(results, table), medians(table)
        scale = "linear" if measure.transform == "linear" else "log"
        yield ReportFigure(
            id=f"along-{index}",
            section="learning",
            title=f"{measure.label} over the {AXES[axis].label}",
            caption=f"{label[:1].upper() + label[1:]} of each run "
            f"({REDUCTIONS[reduction].of_run}) against the {AXES[axis].label}, whose axis is logarithmic. "
            "Thin: one seed; bold: the median of the seeds.",
            alt=f"{label[:1].upper() + label[1:]} against the {AXES[axis].label}. Median over seeds: "
            f"{tables.in_words(middle, list(styles), 'median', most=18)}.",
            figure=level_figure(table, middle, styles, axis, label, scale),
            table=tables.shown(middle),
        )


# --- other measures of claims ----------------------------------------------------------------------------------------


def claimed(results: Results, elsewhere: Collection[str]) -> Iterator[ReportFigure]:
    """Yield each run's value of the measures whose level or spread a claim compares, except those shown *elsewhere*."""
    claims = [claim for claim in results.study.claims if not claim.axis and claim.threshold is None]
    shown = {name: claim.reduction or "tail_mean" for claim in reversed(claims) for name in reversed(claim.measures)}
    for name, reduction in reversed(shown.items()):
        measure = results.measures.get(name)
        if measure is None or name in elsewhere:
            continue
        if any(column not in results.steps for column in measure.pooled or (measure.spikes or name,)):
            continue
        table = per_run(results, summarize(results, name, reduction))
        if table["value"].nunique() < 2:
            continue
        styles, middle = styles_in(results, table), medians(table)
        label = _wrapped(measure.label[:1].lower() + measure.label[1:], measure.unit)
        scale = "log" if measure.transform == "log" and table["value"].min() > 0 else "linear"
        varied = [axis for axis in LINE_AXES if table[axis].nunique() > 2]
        if varied:
            figure = level_figure(table, middle, styles, varied[0], label, scale)
            legend = "Thin: one seed; bold: the median of the seeds."
        else:
            figure = strip_figure(table, middle, styles, label, level=None, scale=scale)
            legend = "Each mark is one seed, the bar their median."
        yield ReportFigure(
            id=f"values-{name.replace('_', '-')}",
            section="values",
            title=measure.label,
            caption=" ".join(
                [measure.text, *([] if measure.spikes else [f"Of each run: {REDUCTIONS[reduction].of_run}."]), legend]
            ),
            alt=f"{measure.label} of each run. Median over seeds: "
            f"{tables.in_words(middle, list(styles), 'median', most=18)}.",
            figure=figure,
            table=tables.shown(middle),
        )


def _wrapped(label: str, unit: str) -> str:
    """Return a measure's name and unit in at most two lines for a y axis; only the unit if they do not fit."""
    whole = f"{label} ({unit})" if unit else label
    lines = textwrap.wrap(whole, 24)
    return "\n".join(lines) if len(lines) <= 2 else unit or "value"


# --- time to a threshold ---------------------------------------------------------------------------------------------


def convergence(results: Results) -> Iterator[ReportFigure]:
    """Yield the share of seeds that reached the threshold over the steps, for each threshold of a claim."""
    thresholds = {(claim.measure, claim.threshold) for claim in results.study.claims if claim.threshold is not None}
    for index, (name, threshold) in enumerate(sorted(thresholds), start=1):
        if name not in results.steps:
            continue
        yield _reached(results, name, threshold, f"time-{index}")


def _reached(results: Results, name: str, threshold: float, id: str) -> ReportFigure:  # noqa: A002
    runs = results.runs[results.runs["status"].isin(["finished", "diverged"])]
    times = steps_to_threshold(results, name, threshold).reindex(runs["run"]).to_numpy(dtype=float)
    times = np.where(runs["status"] == "diverged", math.inf, times)
    table = runs[["run", *panels.CELL, "seed"]].assign(step=times)
    styles = styles_in(results, table)
    shares = share_reached(table)
    label = results.measures[name].label
    return ReportFigure(
        id=id,
        section="convergence",
        title=f"{label} of {threshold:g}: share of seeds there",
        caption=f"Share of the seeds that have reached a {label[:1].lower() + label[1:]} of {threshold:g}, at the "
        "first measured step with it. A run that diverged counts as never there.",
        alt=f"Steps of the share of seeds that reached {label} {threshold:g}. {_in_words(shares, list(styles))}",
        figure=reached_figure(shares, styles, float(results.study.train.steps)),
        table=tables.shown(shares),
    )


def _in_words(shares: pd.DataFrame, arms: Sequence[str]) -> str:
    """Return in words the step by which half of the seeds reached the threshold in each cell, and the final share."""
    last = shares.groupby(panels.CELL, sort=False).tail(1)
    half = shares[shares["share"] >= 0.5].groupby(panels.CELL, sort=False).head(1)
    end = "all of them" if last["share"].min() == 1 else tables.in_words(last, arms, "share", percent)
    if not len(half):
        return f"Half of the seeds were there in no cell; at the end: {end}."
    missing = "" if len(half) == len(last) else f" ({len(last) - len(half)} of {len(last)} cells: never)"
    steps = tables.in_words(half, arms, "step", of=shares)
    return f"First step with half of the seeds{missing}: {steps}. At the end: {end}."


def share_reached(table: pd.DataFrame) -> pd.DataFrame:
    """Return per cell the share of seeds that reached the threshold by each step, starting with 0 at step 0."""
    rows = []
    for key, cell in table.groupby(panels.CELL, sort=False):
        steps = np.sort(cell["step"].to_numpy())
        labels = dict(zip(panels.CELL, key, strict=True))
        rows.append({**labels, "step": 0.0, "share": 0.0})
        rows += [
            {**labels, "step": float(step), "share": float((steps <= step).mean())}
            for step in np.unique(steps[np.isfinite(steps)])
        ]
    return pd.DataFrame(rows)


def reached_figure(shares: pd.DataFrame, styles: Mapping[str, ArmStyle], last: float) -> Figure:
    """Return a figure of the share of seeds over steps as step functions, a panel per batch size and noise level."""
    sheet = panels.faceted(shares, styles)
    with styled():
        for axes, lines in panels.by_panel(sheet, shares):
            for index, (arm, style) in enumerate(styles.items()):
                line = lines[lines["arm"] == arm]
                if not len(line):
                    continue
                x, y = [*line["step"], last], [*line["share"], line["share"].iloc[-1]]
                # Equal shares would hide one another, so each arm is shifted slightly.
                shift = 0.012 * (index - (len(styles) - 1) / 2)
                axes.plot(
                    x,
                    np.array(y) + shift,
                    drawstyle="steps-post",
                    color=style.color,
                    linestyle=style.dash,
                    marker=style.marker,
                    markevery=slice(1, None),
                    markersize=3.5,
                    markeredgewidth=0,
                    clip_on=False,
                )
        for axes in sheet.axes.values():
            axes.set_ylim(-0.03, 1.04)
            axes.yaxis.set_major_locator(FixedLocator([0, 0.5, 1]))
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        panels.step_axis(sheet, last)
        panels.name_axes(sheet, "training step", "share of seeds")
    return sheet.figure


# --- sharpness at the end --------------------------------------------------------------------------------------------


def sharpness(results: Results) -> Iterator[ReportFigure]:
    """Yield the preconditioned sharpness over its threshold, if it was measured at only one step per run."""
    name = "sharpness_ratio"
    if name not in results.steps:
        return
    measured = tables.of_steps(results, results.steps[name])
    if not len(measured) or measured.groupby("run", sort=False)["step"].size().max() > 1:
        return
    table = per_run(results, summarize(results, name, "final"))
    styles, middle = styles_in(results, table), medians(table)
    label, legend = "sharpness / threshold", "Each mark is one seed, the bar their median."
    if len(middle[list(AXES)].drop_duplicates()) <= panels.MAX_READABLE_PANELS:
        figure = strip_figure(table, middle, styles, label)
    else:
        axis = next(axis for axis in reversed(LINE_AXES) if table[axis].nunique() > 1)
        figure = level_figure(table, middle, styles, axis, label, "log", level=1.0)
        legend = "Thin: one seed; bold: the median of the seeds."
    yield ReportFigure(
        id="sharpness",
        section="curvature",
        title="Sharpness against the edge of stability",
        caption="Largest eigenvalue of the encoders' Hessian as Adam's preconditioner sees it, over the threshold "
        "(2 + 2β₁) / ((1 − β₁) η) at which Adam turns unstable (dotted, 1), at the end of training. "
        f"{legend}",
        alt="Preconditioned sharpness over its threshold, at the end. Median over seeds: "
        f"{tables.in_words(middle, list(styles), 'median')}. 1 is the edge of stability.",
        figure=figure,
        table=tables.shown(table.drop(columns="run").rename(columns={"value": name})),
    )


def strip_figure(
    table: pd.DataFrame,
    middle: pd.DataFrame,
    styles: Mapping[str, ArmStyle],
    label: str,
    level: float | None = 1.0,
    scale: str = "log",
) -> Figure:
    """Return a figure with one mark per seed and a bar at the median: cells side by side, arms within each.

    Args:
        table: One row per run, with its value.
        middle: The medians over seeds, one row per cell.
        styles: The plot style of each arm.
        label: The label of the y axis.
        level: A reference level, drawn as a dotted line.
        scale: The scale of the y axis: "log", or "linear", which starts at 0 if no value is negative.
    """
    rows, columns = panels.facets(table)
    seeds, middles = (dict(panels.grouped(part, *panels.ROW, *panels.COLUMN)) for part in (table, middle))
    cells = {
        (*row, *column): "\n".join(filter(None, [first, second]))
        for row, first in rows.items()
        for column, second in columns.items()
        if (*row, *column) in seeds
    }
    sheet = panels.sheet({0: ""}, {0: ""}, styles, height=1.7)
    axes, slot_width = sheet.axes[0, 0], 0.8 / len(styles)
    with styled():
        for index, cell in enumerate(cells):
            marks, bars = seeds[cell], middles[cell]
            for slot, (arm, style) in enumerate(styles.items()):
                center = index + (slot - (len(styles) - 1) / 2) * slot_width
                values = marks.loc[marks["arm"] == arm].sort_values("seed")["value"]
                spread = (
                    np.linspace(-0.25, 0.25, len(values)) * slot_width if len(values) > 1 else np.zeros(len(values))
                )
                axes.plot(
                    center + spread, values, style.marker, color=style.color, markersize=4, markeredgewidth=0, alpha=0.8
                )
                for median in bars.loc[bars["arm"] == arm, "median"]:
                    bar = (center - 0.36 * slot_width, center + 0.36 * slot_width)
                    axes.plot(bar, (median, median), color=style.color, linewidth=1.6)
        if level is not None:
            panels.reference(axes, level)
        axes.set_xlim(-0.6, len(cells) - 0.4)
        axes.xaxis.set_major_locator(FixedLocator(range(len(cells))))
        axes.set_xticklabels(list(cells.values()))
        shown = [*table["value"], *([] if level is None else [level])]
        panels.value_axis(sheet, scale, shown, zero=scale == "linear" and bool(table["value"].min() >= 0))
        panels.name_axes(sheet, "", label)
    return sheet.figure
