"""Figures of one number per run: over an axis of the grid, or one mark per seed."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from stability.analysis import Results, summarize, transformed
from stability.report.figures import panels, scales, tables
from stability.report.figures.figure import ReportFigure
from stability.report.style import WIDTH, ArmStyle, styled
from stability.vocabulary import REDUCTIONS, axes_in, axis_of, cell_title

LINE_AXES = ("batch_size", "train_pairs", "lr_multiplier", "lr", "noise")
"""The axes that can be the x axis of a figure, from the one that is preferred where measures are drawn over levels."""


def level_figure(
    table: pd.DataFrame, styles: Mapping[str, ArmStyle], axis: str, label: str, scale: str, level: float | None = None
) -> Figure:
    """Return a figure of values against an axis of the grid: thin lines per seed, bold medians, a panel per batch size.

    Args:
        table: One row per run, with its value.
        styles: The plot style of each arm.
        axis: The axis of the grid on the x axis.
        label: The label of the y axis.
        scale: The scale of the y axis, "log" or "linear".
        level: A reference level, drawn as a dotted line.
    """
    others = [name for name in axes_in(table.columns) if name not in (axis, "batch_size") and table[name].nunique() > 1]
    rows = {key: cell_title(dict(zip(others, key, strict=True))) for key in tables.levels_of(table, others)}
    keys = [*others, *(["batch_size"] if axis != "batch_size" else [])]
    sizes = {
        key: cell_title({"batch_size": key[0]}) if key else "" for key in tables.levels_of(table, keys[len(others) :])
    }
    if len(sizes) == 1 and len(rows) in range(2, panels.MAX_COLUMNS + 1):
        ((size, side),) = sizes.items()
        sheet = panels.wrapped({(*row, *size): title for row, title in rows.items()}, styles, side=side, height=1.9)
    else:
        sheet = panels.crossed(rows, sizes, styles, height=1.9)
    with styled():
        panels.draw_lines(sheet, table, tables.across_seeds(table), axis, keys)
        for axes in sheet.axes.values():
            if axis_of(axis).doubling:
                axes.set_xscale("log")
                axes.xaxis.set_minor_locator(NullLocator())
            scales.level_axis(axes, sorted(table[axis].unique()))
            if level is not None:
                scales.reference(axes, level)
        scales.value_axis(sheet, scale, [*table["value"], *([] if level is None else [level])])
        panels.name_axes(sheet, axis_of(axis).axis_label, label)
    return sheet.figure


def strip_figure(
    table: pd.DataFrame, styles: Mapping[str, ArmStyle], label: str, level: float | None = None, scale: str = "log"
) -> Figure:
    """Return a figure with one mark per seed and a bar at the median: cells side by side, arms within each.

    Args:
        table: One row per run, with its value.
        styles: The plot style of each arm.
        label: The label of the y axis.
        level: A reference level, drawn as a dotted line.
        scale: The scale of the y axis: "log", or "linear", which starts at 0 if no value is negative.
    """
    row, column = panels.facets(table)
    rows, columns = panels.titles_of(table, row), panels.titles_of(table, column)
    titles = {
        (*first, *second): "\n".join(filter(None, (title, other)))
        for first, title in rows.items()
        for second, other in columns.items()
    }
    keys = tables.levels_of(table, [*row, *column])
    names = pd.Series([titles[key] for key in table[[*row, *column]].itertuples(index=False, name=None)])
    table = table.assign(cell=names.to_numpy())
    sheet = panels.wrapped({(): ""}, styles, height=1.7)
    axes, slot = sheet.axes[()], 0.8 / len(styles)
    semantics: dict[str, Any] = {
        "x": "cell",
        "y": "value",
        "order": [titles[key] for key in keys],
        "hue": "arm",
        "hue_order": list(styles),
        "palette": {arm: style.color for arm, style in styles.items()},
        "legend": False,
        "ax": axes,
    }
    bar = 72 * WIDTH * axes.get_position().width * 0.72 * slot / len(keys)
    with styled():
        for arm, style in styles.items():
            seeds = table[table["arm"] == arm]
            sns.swarmplot(seeds, **semantics, dodge=True, marker=style.marker, size=4, alpha=0.8, warn_thresh=1)
        medians: dict[str, Any] = {"estimator": "median", "errorbar": None, "linestyle": "none", "dodge": 0.8 - slot}
        sns.pointplot(table, **semantics, **medians, markers="_", markersize=bar, markeredgewidth=1.6)
        if level is not None:
            scales.reference(axes, level)
        shown = [*table["value"], *([] if level is None else [level])]
        scales.value_axis(sheet, scale, shown, zero=scale == "linear" and bool(table["value"].min() >= 0))
        axes.set(xlabel="", ylabel="")
        panels.name_axes(sheet, "", label)
    return sheet.figure


def of_runs(
    results: Results,
    table: pd.DataFrame,
    *,
    name: str,
    section: str,
    title: str,
    caption: str,
    alt: str,
    label: str,
    scale: str,
    axis: str | None = None,
    level: float | None = None,
    measure: str = "",
) -> ReportFigure:
    """Return the figure of one number per run.

    Args:
        results: The results of the study.
        table: One row per run, with its value.
        name: The figure's name, unique in the report.
        section: The section of the report.
        title: The heading above the figure.
        caption: The first sentences of the caption.
        alt: The first sentence of the alternative text.
        label: The label of the y axis.
        scale: The scale of the y axis, "log" or "linear".
        axis: The axis of the grid on the x axis; None for a mark per seed, with the cells side by side.
        level: A reference level, drawn as a dotted line.
        measure: The name of the values in a table of the runs; "" for a table of the medians instead.
    """
    styles, medians = tables.styles_in(results, table), tables.across_seeds(table)
    if axis:
        figure = level_figure(table, styles, axis, label, scale, level)
        legend = "Thin: one seed; bold: the median of the seeds."
    else:
        figure = strip_figure(table, styles, label, level, scale)
        legend = "Each mark is one seed, the bar their median."
    return ReportFigure(
        id=name,
        section=section,
        title=title,
        caption=f"{caption} {legend}",
        alt=f"{alt} Median over seeds: {tables.in_words(medians, list(styles), 'median', most=18)}.",
        figure=figure,
        table=tables.shown(table.rename(columns={"value": measure}) if measure else medians),
    )


def _crowded_axis(table: pd.DataFrame) -> str | None:
    """Return the axis over which to draw a table that has too many cells to stand side by side."""
    if len(table[panels.axes_of(table)].drop_duplicates()) <= panels.MAX_READABLE_PANELS:
        return None
    return next(axis for axis in reversed(LINE_AXES) if table[axis].nunique() > 1)


# --- measures over an axis -------------------------------------------------------------------------------------------


def _above_chance(results: Results, name: str, reduction: str) -> tuple[pd.DataFrame, str]:
    """Return each run's value of a measure and its label; what lies above chance, if the measure has a chance level."""
    measure, values = results.measures[name], summarize(results, name, reduction)
    if not measure.chance:
        return tables.of_runs(results, values), measure.inline_label
    above = np.exp(transformed(results, name, values, "log_above_chance"))
    return tables.of_runs(results, above), f"{measure.inline_label} above chance"


def decline(results: Results) -> Iterator[ReportFigure]:
    """Yield recall against the noise level, if the study has several noise levels."""
    name, claims = "recall_at_1", results.study.claims
    if len(results.study.grid.noise) < 2 or name not in results.steps or name not in results.measures:
        return
    reduction = next((claim.reduction for claim in claims if claim.axis == "noise" and claim.reduction), "tail_mean")
    table, label = _above_chance(results, name, reduction)
    if len(table):
        yield of_runs(
            results,
            table,
            name="noise-decline",
            section="noise",
            title="Retrieval as pairs are corrupted",
            caption="Recall@1 above chance, (x − chance) / (1 − chance), of each run "
            f"({REDUCTIONS[reduction].of_run}) against the share of corrupted pairs, on a logarithmic axis: "
            "parallel lines lose the same proportion.",
            alt="Recall@1 above chance against the noise level.",
            label=label,
            scale="log",
            axis="noise",
        )


def along_axes(results: Results) -> Iterator[ReportFigure]:
    """Yield each measure whose claim runs over an axis other than noise, against that axis."""
    claims = [claim for claim in results.study.claims if claim.axis not in ("", "noise")]
    shown = {
        (name, results.study.grid.column(claim.axis)): claim.reduction or "tail_mean"
        for claim in reversed(claims)
        for name in reversed(claim.measures)
    }
    for index, ((name, axis), reduction) in enumerate(reversed(shown.items()), start=1):
        measure, over = results.measures[name], axis_of(axis).label
        logarithmic = ", whose axis is logarithmic" if axis_of(axis).doubling else ""
        table, label = _above_chance(results, name, reduction)
        subject = label[:1].upper() + label[1:]
        if len(table):
            yield of_runs(
                results,
                table,
                name=f"along-{index}",
                section="learning",
                title=f"{measure.label} over the {over}",
                caption=f"{subject} of each run ({REDUCTIONS[reduction].of_run}) against the {over}{logarithmic}.",
                alt=f"{subject} against the {over}.",
                label=label,
                scale="linear" if measure.transform == "linear" else "log",
                axis=axis,
            )


# --- measures side by side -------------------------------------------------------------------------------------------


def claimed(results: Results, elsewhere: Collection[str]) -> Iterator[ReportFigure]:
    """Yield each run's value of the measures whose level or spread a claim compares, except those shown *elsewhere*."""
    claims = [claim for claim in results.study.claims if not claim.axis and claim.threshold is None]
    shown = {name: claim.reduction or "tail_mean" for claim in reversed(claims) for name in reversed(claim.measures)}
    for name, reduction in reversed(shown.items()):
        measure = results.measures.get(name)
        if measure is None or name in elsewhere:
            continue
        if any(column not in results.steps for column in measure.columns):
            continue
        table = tables.of_runs(results, summarize(results, name, reduction))
        if table["value"].nunique() < 2:
            continue
        yield of_runs(
            results,
            table,
            name=f"values-{name.replace('_', '-')}",
            section="values",
            title=measure.label,
            caption=measure.text if measure.per_run else f"{measure.text} Of each run: {REDUCTIONS[reduction].of_run}.",
            alt=f"{measure.label} of each run.",
            label=_axis_label(measure.inline_label, measure.unit),
            scale="log" if measure.transform == "log" and table["value"].min() > 0 else "linear",
            axis=next((axis for axis in LINE_AXES if table[axis].nunique() > 2), None),
        )


def _axis_label(label: str, unit: str) -> str:
    """Return a measure's name and unit in at most two lines for a y axis; only the unit if they do not fit."""
    lines = textwrap.wrap(f"{label} ({unit})" if unit else label, 24)
    return "\n".join(lines) if len(lines) <= 2 else unit or "value"


def sharpness(results: Results) -> Iterator[ReportFigure]:
    """Yield the preconditioned sharpness over its threshold, if it was measured at only one step per run."""
    name = "sharpness_ratio"
    if name not in results.steps:
        return
    measured = tables.of_steps(results, results.steps[name])
    if not len(measured) or measured.groupby("run", sort=False)["step"].size().max() > 1:
        return
    table = tables.of_runs(results, summarize(results, name, "final"))
    yield of_runs(
        results,
        table,
        name="sharpness",
        section="curvature",
        title="Sharpness against the edge of stability",
        caption="Largest eigenvalue of the encoders' Hessian as the optimizer sees it, over the threshold at "
        "which it turns unstable, (2 + 2β₁) / ((1 − β₁) η) under Adam (dotted, 1), at the end of training.",
        alt="Preconditioned sharpness over its threshold, at the end; 1 is the edge of stability.",
        label="sharpness / threshold",
        scale="log",
        axis=_crowded_axis(table),
        level=1.0,
        measure=name,
    )


def flatness(results: Results) -> Iterator[ReportFigure]:
    """Yield the filter-normalized sharpness of every run, if it was measured."""
    name = "filter_sharpness"
    if name not in results.steps or name not in results.measures:
        return
    table = tables.of_runs(results, summarize(results, name, "final"))
    if len(table):
        yield of_runs(
            results,
            table,
            name="flatness",
            section="landscape",
            title="Rise of the loss around the end of training",
            caption="Mean rise of the loss when every filter of the encoders moves at random by a given share of its "
            "norm, over the loss's chance level: lower is flatter.",
            alt="Filter-normalized sharpness.",
            label="rise / chance",
            scale="linear",
            axis=_crowded_axis(table),
            measure=name,
        )
