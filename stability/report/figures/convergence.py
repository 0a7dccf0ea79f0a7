"""The figures of time to a threshold: the share of seeds that reached it, over the steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, PercentFormatter

from stability.analysis import Results, steps_to_threshold
from stability.report.figures import panels, scales, tables
from stability.report.figures.figure import ReportFigure
from stability.report.style import ArmStyle, styled
from stability.stats.wording import percent


def convergence(results: Results) -> Iterator[ReportFigure]:
    """Yield the share of seeds that reached the threshold over the steps, for each threshold of a claim."""
    thresholds = {(claim.measure, claim.threshold) for claim in results.study.claims if claim.threshold is not None}
    for index, (name, threshold) in enumerate(sorted(thresholds), start=1):
        if name not in results.steps:
            continue
        measure, table = results.measures[name], times(results, name, threshold)
        styles, shares = tables.styles_in(results, table), share_reached(table)
        yield ReportFigure(
            id=f"time-{index}",
            section="convergence",
            title=f"{measure.label} of {threshold:g}: share of seeds there",
            caption=f"Share of the seeds that have reached a {measure.inline_label} of {threshold:g}, at the first "
            "measured step with it. A run that diverged counts as never there.",
            alt=f"Steps of the share of seeds that reached {measure.label} {threshold:g}. "
            f"{_describe(shares, list(styles))}",
            figure=reached_figure(shares, styles, float(results.study.train.steps)),
            table=tables.shown(shares),
        )


def times(results: Results, name: str, threshold: float) -> pd.DataFrame:
    """Return one row per run with the step at which a measure reached a threshold, infinite if it never did."""
    runs = results.runs[results.runs["status"].isin(["finished", "diverged"])]
    steps = steps_to_threshold(results, name, threshold).reindex(runs["run"]).to_numpy(dtype=float)
    return runs[["run", *panels.cell_columns(runs), "seed"]].assign(
        step=np.where(runs["status"] == "diverged", math.inf, steps)
    )


def share_reached(table: pd.DataFrame) -> pd.DataFrame:
    """Return per cell the share of seeds that reached the threshold by each step, starting with 0 at step 0."""
    rows = []
    for key, cell in table.groupby(panels.cell_columns(table), sort=False):
        labels = dict(zip(panels.cell_columns(table), key, strict=True))
        reached = cell["step"][np.isfinite(cell["step"])].unique()
        rows.append({**labels, "step": 0.0, "share": 0.0})
        rows += [{**labels, "step": step, "share": float((cell["step"] <= step).mean())} for step in np.sort(reached)]
    return pd.DataFrame(rows)


def _describe(shares: pd.DataFrame, arms: Sequence[str]) -> str:
    """Describe the step by which half of the seeds reached the threshold in each cell, and the final share."""
    last = shares.groupby(panels.cell_columns(shares), sort=False).tail(1)
    half = shares[shares["share"] >= 0.5].groupby(panels.cell_columns(shares), sort=False).head(1)
    end = "all of them" if last["share"].min() == 1 else tables.in_words(last, arms, "share", percent)
    if not len(half):
        return f"Half of the seeds were there in no cell; at the end: {end}."
    missing = "" if len(half) == len(last) else f" ({len(last) - len(half)} of {len(last)} cells: never)"
    steps = tables.in_words(half, arms, "step", of=shares)
    return f"First step with half of the seeds{missing}: {steps}. At the end: {end}."


def reached_figure(shares: pd.DataFrame, styles: Mapping[str, ArmStyle], last: float) -> Figure:
    """Return a figure of the share of seeds over steps as step functions, a panel per batch size and noise level."""
    sheet = panels.faceted(shares, styles)
    with styled():
        for (*key, arm), line in panels.grouped(shares, *panels.axes_of(shares), "arm"):
            # Equal shares would hide one another, so each arm is shifted slightly.
            shift = 0.012 * (list(styles).index(arm) - (len(styles) - 1) / 2)
            sheet.axes[tuple(key)].plot(
                [*line["step"], last],
                np.array([*line["share"], line["share"].iloc[-1]]) + shift,
                **styles[arm].line,
                drawstyle="steps-post",
                markevery=slice(1, None),
                markersize=3.5,
                clip_on=False,
            )
        for axes in sheet.axes.values():
            axes.set_ylim(-0.03, 1.04)
            axes.yaxis.set_major_locator(FixedLocator([0, 0.5, 1]))
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        scales.step_axis(sheet, last)
        panels.name_axes(sheet, "training step", "share of seeds")
    return sheet.figure
