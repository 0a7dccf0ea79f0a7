"""Figures of measures over training: thin lines per seed, bold medians, one panel per batch size and noise level."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stability.analysis import Results
from stability.losses import loss
from stability.losses.chance import chance_level
from stability.report.figures import panels, tables
from stability.report.figures.drawn import ReportFigure
from stability.report.style import ArmStyle, arm_styles, styled


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
        reference: The reference level: the column of a chance level, or words that start with "1 " for a level of 1.
    """

    id: str
    section: str
    measure: str
    title: str
    caption: str
    label: str
    scale: str = "linear"
    zero: bool = False
    reference: str = ""


PLOTS = (
    Plot(
        "loss",
        "learning",
        "loss",
        "Training loss as a multiple of chance",
        "Training loss over the loss of embeddings that say nothing (dotted, 1), since losses differ in scale.",
        "loss / chance",
        scale="log",
        reference="1 is chance",
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
        reference="recall_at_1_chance",
    ),
    Plot(
        "zero-shot",
        "learning",
        "zero_shot_accuracy",
        "Zero-shot accuracy over training",
        "Share of held-out images that lie nearest to the mean prompt of their own class. Dotted: chance.",
        "accuracy",
        zero=True,
        reference="zero_shot_accuracy_chance",
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
        reference="1 is nothing but noise",
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
        reference="1 is nothing but noise",
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
        "Largest eigenvalue of the encoders' Hessian as Adam's preconditioner sees it, over the threshold "
        "(2 + 2β₁) / ((1 − β₁) η) at which Adam turns unstable (dotted, 1).",
        "sharpness / threshold",
        scale="log",
        reference="1 is the edge of stability",
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
        chance = {
            (arm, size): chance_level(loss[results.study.arm(arm).loss], size, results.study.arm(arm).options)
            for arm, size in set(zip(table["arm"], table["batch_size"], strict=True))
        }
        levels = np.array([chance[key] for key in zip(table["arm"], table["batch_size"], strict=True)])
        # A ratio to a chance level that is not positive is meaningless.
        table["value"] = table["value"] / np.where(levels > 0, levels, np.nan)
        table = table.dropna(subset=["value"])
    return table


def _draw(results: Results, plot: Plot, table: pd.DataFrame) -> ReportFigure:
    """Return the figure of a plot with its caption, alternative text and data."""
    window = tables.window_of(table)
    thin = tables.windowed(table, window)
    bold = whole = tables.across_seeds(thin)
    thin, stride = tables.sparse(thin)
    banded = tables.banded(table)
    if banded:
        bold = tables.across_seeds(thin)
    arms = [arm for arm in results.study.grid.arms if arm in set(table["arm"])]
    styles = {arm: style for arm, style in arm_styles(results.study.grid.arms).items() if arm in arms}
    diverged = results.runs[results.runs["diverged_at"].notna()]
    references = _references(results, plot)
    figure = trajectory_figure(thin, bold, styles, plot, references, float(results.study.train.steps))
    marked = mark_divergence(figure, thin, diverged, styles) if plot.measure == "loss" else 0
    averaged = f" Each point is the mean of {window} steps." if window > 1 else ""
    if stride > 1:
        averaged += f" {'Lines and bands' if banded else 'Thin lines'} show one reading in {stride}."
    seeds = f"{panels.BANDED if banded else panels.THIN}; bold: the median of the seeds."
    crossed = f" A cross marks where a run diverged ({marked} of {len(results.runs)} runs)." if marked else ""
    last = whole.sort_values("step").groupby(panels.CELL, sort=False).tail(1)
    return ReportFigure(
        id=plot.id,
        section=plot.section,
        title=plot.title,
        caption=f"{plot.caption} {seeds}{averaged}{crossed}",
        alt=f"{plot.title}. Median over seeds at the end: {tables.in_words(last, arms, 'median')}.",
        figure=figure.figure,
        table=tables.shown(whole),
    )


def _references(results: Results, plot: Plot) -> Mapping[tuple[object, ...], float]:
    """Return the reference level of each panel: 1, or the panel's mean chance level."""
    if plot.reference in results.steps:
        levels = tables.of_steps(results, results.steps[plot.reference])
        means = levels.groupby([*panels.ROW, *panels.COLUMN], sort=True)["value"].mean()
        return {key: float(value) for key, value in means.items()}  # type: ignore[misc]
    if plot.reference.startswith("1 "):
        cells = results.runs[[*panels.ROW, *panels.COLUMN]].drop_duplicates()
        return dict.fromkeys(cells.itertuples(index=False, name=None), 1.0)
    return {}


def trajectory_figure(
    thin: pd.DataFrame,
    bold: pd.DataFrame,
    styles: Mapping[str, ArmStyle],
    plot: Plot,
    references: Mapping[tuple[object, ...], float],
    last: float,
) -> panels.Sheet:
    """Return a sheet of lines over steps, a panel per batch size and noise level.

    Args:
        thin: One row per run and step, drawn as thin lines, or as bands if there are too many runs.
        bold: The statistics over seeds per cell and step; their medians are drawn as bold lines.
        styles: The plot style of each arm.
        plot: The definition of the figure.
        references: The reference level of each panel, by row and column key.
        last: The last training step.
    """
    sheet = panels.faceted(thin, styles)
    with styled():
        banded = tables.banded(thin)
        for axes, lines in panels.by_panel(sheet, bold if banded else thin):
            (panels.bands if banded else panels.thin_lines)(axes, lines, "step", styles)
        for axes, lines in panels.by_panel(sheet, bold):
            for arm, style in styles.items():
                line = lines[lines["arm"] == arm]
                panels.bold_line(axes, line["step"], line["median"], style)
        for key, axes in sheet.axes.items():
            if (level := references.get((*key[0], *key[1]))) is not None:
                panels.reference(axes, level)
        levels = [*references.values()] if plot.scale != "log" or thin["value"].max() > 0.3 else []
        panels.value_axis(sheet, plot.scale, [*thin["value"], *levels], zero=plot.zero)
        panels.step_axis(sheet, last)
        panels.name_axes(sheet, "training step", plot.label)
    return sheet


def mark_divergence(
    sheet: panels.Sheet, thin: pd.DataFrame, diverged: pd.DataFrame, styles: Mapping[str, ArmStyle]
) -> int:
    """Mark each diverged run's line with a cross at the step where it diverged; return the number of crosses."""
    by_run = {str(run): line for run, line in thin.groupby("run", sort=False)}
    marked = diverged[diverged["run"].isin(by_run)]
    for (*row, corruption, noise, arm, run, step), _ in panels.grouped(
        marked, *panels.ROW, *panels.COLUMN, "arm", "run", "diverged_at"
    ):
        line = by_run[run]
        index = int(np.abs(line["step"].to_numpy() - step).argmin())
        axes = sheet.axes[tuple(row), (corruption, noise)]
        axes.plot(
            line["step"].iloc[index],
            line["value"].iloc[index],
            marker="x",
            markersize=4,
            markeredgewidth=1,
            color=styles[arm].color,
            zorder=4,
        )
    return len(marked)
