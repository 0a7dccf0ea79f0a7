"""Figures of measures over training: thin lines per seed, bold medians, one panel per batch size and noise level."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from stability.analysis import Results
from stability.report.figures import panels, scales, tables
from stability.report.figures.figure import ReportFigure
from stability.report.style import LIGHT, ArmStyle, styled
from stability.results import by_settings, chance_losses


@dataclass(frozen=True)
class Plot:
    """The definition of a figure of one measure over training.

    Attributes:
        id: The figure's name, unique in the report.
        section: The section of the report.
        measure: The name of the measure.
        title: The heading above the figure.
        caption: The first sentences of the caption.
        label: The label of the y axis.
        scale: The scale of the y axis, "linear" or "log".
        zero: Whether a linear y axis starts at 0.
        level: The reference level; None for the measure's chance level, if it has one.
    """

    id: str
    section: str
    measure: str
    title: str
    caption: str
    label: str
    scale: str = "linear"
    zero: bool = False
    level: float | None = None


PLOTS = (
    Plot(
        "loss",
        "learning",
        "loss",
        "Training loss as a multiple of chance",
        "Training loss over the loss of embeddings that say nothing (dotted, 1), since losses differ in scale.",
        "loss / chance",
        scale="log",
        level=1.0,
    ),
    Plot(
        "recall",
        "learning",
        "recall_at_1",
        "Retrieval over training",
        "Recall@1 among held-out pairs, the mean of both directions; an item with the query's very caption counts as "
        "found. Dotted: chance.",
        "recall@1",
        zero=True,
    ),
    Plot(
        "zero-shot",
        "learning",
        "zero_shot_accuracy",
        "Zero-shot accuracy over training",
        "Share of held-out images that lie nearest to the mean prompt of their own class. Dotted: chance.",
        "accuracy",
        zero=True,
    ),
    Plot(
        "gradient-noise",
        "gradients",
        "gradient_noise_fraction",
        "Gradient noise over training, encoders",
        "Share of a batch gradient's expected squared length that is noise, tr Σ / (tr Σ + |G|²), over the encoders' "
        "parameters. At 1 (dotted) a batch's gradient says nothing about the direction of the mean gradient. Here step "
        "by step; a claim pools both parts over its window of steps first.",
        "noise fraction",
        scale="log",
        level=1.0,
    ),
    Plot(
        "gradient-noise-scalars",
        "gradients",
        "gradient_noise_fraction_scalars",
        "Gradient noise over training, the loss's scalars",
        "The same share over the loss's trained scalars alone (log t, and b where there is one), which can outweigh "
        "all other parameters. Estimates may exceed 1 (dotted) where the mean gradient is close to nothing.",
        "noise fraction",
        scale="log",
        level=1.0,
    ),
    Plot(
        "log-scale",
        "scalars",
        "log_scale",
        "Logarithm of the inverse temperature over training",
        "Logarithm of the loss's trained inverse temperature t. Adam moves a scalar by at most about the sum of its "
        "learning rates, so a short run may end before it has settled.",
        "log t",
    ),
    Plot(
        "bias",
        "scalars",
        "bias",
        "Bias over training",
        "The additive bias b on the logits, in losses that have one.",
        "bias b",
    ),
    Plot(
        "sharpness",
        "curvature",
        "sharpness_ratio",
        "Sharpness over training, against the edge of stability",
        "Largest eigenvalue of the encoders' Hessian as the optimizer sees it, over the threshold at "
        "which it turns unstable, (2 + 2β₁) / ((1 − β₁) η) under Adam (dotted, 1).",
        "sharpness / threshold",
        scale="log",
        level=1.0,
    ),
)


def over_training(results: Results) -> Iterator[ReportFigure]:
    """Yield a figure per measure that was taken at more than one step of a run."""
    for plot in PLOTS:
        table = values_of(results, plot)
        # A measure that is constant over all runs and steps, such as a frozen scalar, is not drawn.
        if table.get("value", pd.Series()).nunique() > 1 and table.groupby("run", sort=False)["step"].size().max() > 1:
            yield _draw(results, plot, table)


def values_of(results: Results, plot: Plot) -> pd.DataFrame:
    """Return one row per run and measured step of a plot's measure; the loss is a multiple of its chance level."""
    measure, steps = results.measures.get(plot.measure), results.steps
    if measure is None or any(name not in steps for name in measure.pooled or (measure.name,)):
        return pd.DataFrame()
    values = steps[measure.pooled[0]] / steps[measure.pooled[1]] if measure.pooled else steps[measure.name]
    table = tables.of_steps(results, values)
    if plot.measure == "loss":
        levels = chance_losses(results).reindex(table["run"]).to_numpy()
        # A ratio to a chance level that is not positive is meaningless.
        table["value"] = table["value"] / np.where(levels > 0, levels, np.nan)
        table = table.dropna(subset=["value"])
    return table


def _draw(results: Results, plot: Plot, table: pd.DataFrame) -> ReportFigure:
    """Return the figure of a plot with its caption, alternative text and data."""
    window = tables.window_of(table)
    thin = tables.windowed(table, window)
    bold = whole = tables.across_seeds(thin, "step")
    thin, stride = tables.sparse(thin)
    banded = tables.banded(table)
    if banded:
        bold = tables.across_seeds(thin, "step")
    styles = tables.styles_in(results, table)
    collapsed = results.runs[results.runs["collapsed_at"].notna()]
    sheet = trajectory_figure(thin, bold, styles, plot, _references(results, plot), float(results.study.train.steps))
    events = mark_events(sheet, results)
    marked = mark_collapse(sheet, thin, collapsed) if plot.measure == "loss" else 0
    averaged = f" Each point is the mean of {window} steps." if window > 1 else ""
    if stride > 1:
        averaged += f" {'Lines and bands' if banded else 'Thin lines'} show one reading in {stride}."
    seeds = f"{panels.BANDED if banded else panels.THIN}; bold: the median of the seeds."
    crossed = f" A cross marks where a run collapsed ({marked} of {len(results.runs)} runs)." if marked else ""
    crossed += f" {events}" if events else ""
    last = whole.sort_values("step").groupby(panels.cell_columns(whole), sort=False).tail(1)
    return ReportFigure(
        id=plot.id,
        section=plot.section,
        title=plot.title,
        caption=f"{plot.caption} {seeds}{averaged}{crossed}",
        alt=f"{plot.title}. Median over seeds at the end: {tables.in_words(last, list(styles), 'median')}.",
        figure=sheet.figure,
        table=tables.shown(whole),
    )


def _references(results: Results, plot: Plot) -> Mapping[tuple[object, ...], float]:
    """Return the reference level of each panel: that of the plot, or the panel's mean chance level."""
    keys = panels.axes_of(results.runs)
    if plot.level is not None:
        return dict.fromkeys(tables.levels_of(results.runs, keys), plot.level)
    chance = results.measures[plot.measure].chance
    if chance not in results.steps:
        return {}
    levels = tables.of_steps(results, results.steps[chance])
    return {key: float(rows["value"].mean()) for key, rows in panels.grouped(levels, *keys)}


def trajectory_figure(
    thin: pd.DataFrame,
    bold: pd.DataFrame,
    styles: Mapping[str, ArmStyle],
    plot: Plot,
    references: Mapping[tuple[object, ...], float],
    last: float,
    events: Mapping[tuple[object, ...], Iterable[int]] = MappingProxyType({}),
) -> panels.Sheet:
    """Return a sheet of lines over steps, a panel per batch size and noise level.

    Args:
        thin: One row per run and step, drawn as thin lines, or as bands if there are too many runs.
        bold: The statistics over seeds per cell and step; their medians are drawn as bold lines.
        styles: The plot style of each arm.
        plot: The definition of the figure.
        references: The reference level of each panel, by key.
        last: The last training step.
        events: The steps of the events in each panel, by key, drawn as thin vertical lines.
    """
    sheet = panels.faceted(thin, styles)
    with styled():
        panels.draw_lines(sheet, thin, bold, "step", panels.axes_of(thin), banded=tables.banded(thin))
        for key in sheet.axes.keys() & references.keys():
            scales.reference(sheet.axes[key], references[key])
        for key in sheet.axes.keys() & events.keys():
            for step in events[key]:
                sheet.axes[key].axvline(step, color=LIGHT["muted"], linewidth=0.6, zorder=1)
        levels = references.values() if plot.scale != "log" or thin["value"].max() > 0.3 else []
        scales.value_axis(sheet, plot.scale, [*thin["value"], *levels], zero=plot.zero)
        scales.step_axis(sheet, last)
        panels.name_axes(sheet, "training step", plot.label)
    return sheet


def mark_events(sheet: panels.Sheet, results: Results) -> str:
    """Draw a thin vertical line at the event of a panel's runs; return what the lines are, in words, "" without one."""
    lines: dict[tuple[tuple[Any, ...], int], None] = {}
    kinds = set()
    for study, runs in by_settings(results):
        for key, cell in panels.grouped(runs, *panels.axes_of(results.runs)):
            for arm, size in dict.fromkeys(zip(cell["arm"], cell["batch_size"], strict=True)):
                if (step := study.event_step(arm, int(size))) and key in sheet.axes:
                    lines[key, step] = None
                    kinds.add("arms start from others" if study.arm(arm).start else "the data shift")
    for key, step in lines:
        sheet.axes[key].axvline(step, color=LIGHT["muted"], linewidth=0.6, zorder=1)
    return f"Thin vertical lines: where {' and where '.join(sorted(kinds))}." if kinds else ""


def mark_collapse(sheet: panels.Sheet, thin: pd.DataFrame, collapsed: pd.DataFrame) -> int:
    """Mark each collapsed run's line with a cross at the step where it collapsed; return the number of crosses."""
    by_run = dict(iter(thin.groupby("run", sort=False)))
    marked = collapsed[collapsed["run"].isin(by_run)]
    for (*key, arm, run, step), _ in panels.grouped(marked, *panels.axes_of(marked), "arm", "run", "collapsed_at"):
        line = by_run[run]
        point = line.iloc[int(np.abs(line["step"].to_numpy() - step).argmin())]
        cross: dict[str, Any] = {"marker": "x", "markersize": 4, "markeredgewidth": 1, "zorder": 4}
        sheet.axes[tuple(key)].plot(point["step"], point["value"], color=sheet.styles[arm].color, **cross)
    return len(marked)
