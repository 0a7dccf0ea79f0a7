"""One number a run, against the axes of the grid: decline under noise, time to a threshold, sharpness, geometry."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, PercentFormatter

from stability.analysis import AXES, Results, on_scale, summarise, times_to
from stability.report.figures import panels, tables
from stability.report.figures.drawn import Drawn
from stability.report.style import LIGHT, Look, looks, rc
from stability.stats.wording import percent


def per_run(results: Results, values: pd.Series) -> pd.DataFrame:
    """Return one row per run (cell, seed, run, value) of a series indexed by run, without runs that have none."""
    table = results.runs[["run", *panels.CELL, "seed"]].copy()
    table["value"] = values.reindex(table["run"]).to_numpy(dtype=float)
    return table[np.isfinite(table["value"])]


def medians(table: pd.DataFrame) -> pd.DataFrame:
    """Return per cell the number of seeds, their median, lowest and highest value."""
    return tables.across_seeds(table.assign(step=0)).drop(columns="step")


def _known(results: Results, table: pd.DataFrame) -> dict[str, Look]:
    present = set(table["arm"])
    return {arm: look for arm, look in looks(results.study.grid.loss).items() if arm in present}


# --- decline under noise ---------------------------------------------------------------------------------------------


def decline(results: Results) -> Iterator[Drawn]:
    """Yield final recall against the noise level, if the study has several."""
    name = "recall_at_1"
    if len(results.study.grid.noise) < 2 or name not in results.steps or name not in results.measures:
        return
    reduction = next(
        (claim.reduction for claim in results.study.claims if claim.over == "noise" and claim.reduction), "late"
    )
    above = np.exp(on_scale(results, name, summarise(results, name, reduction), "chance-log"))
    table = per_run(results, above)
    if not len(table):
        return
    known, middle = _known(results, table), medians(table)
    yield Drawn(
        id="noise-decline",
        section="noise",
        title="Retrieval as captions are mismatched",
        caption=f"Recall@1 above chance, (x − chance) / (1 − chance), of each run ({_REDUCTIONS[reduction]}) against "
        "the share of corrupted pairs, on a logarithmic axis: parallel lines lose the same proportion. Thin: one seed; "
        "bold: the median of the seeds.",
        alt=f"Recall@1 above chance against the noise level. Median over seeds: "
        f"{tables.in_words(middle, list(known), 'median', most=18)}.",
        figure=level_figure(table, middle, known, "noise", "recall@1 above chance", "log"),
        table=tables.shown(middle),
    )


_REDUCTIONS = {
    "late": "mean over the last fifth of its steps",
    "final": "at its last measured step",
    "best": "at its best",
    "area": "mean after warm-up",
}


def level_figure(
    table: pd.DataFrame, middle: pd.DataFrame, looks: Mapping[str, Look], axis: str, label: str, scale: str
) -> Any:
    """Return a figure of values against an axis of the grid, a panel per batch size, all seeds thin, medians bold."""
    others = [name for name in ("lr", "corruption") if table[name].nunique() > 1]
    words = {"lr": "lr {:g}", "corruption": "{}"}
    rows = {
        key: ", ".join(words[name].format(part) for name, part in zip(others, key, strict=True))
        for key in (table[others].drop_duplicates().itertuples(index=False, name=None) if others else [()])
    }
    sizes = {size: f"B = {size}" for size in sorted(table["batch_size"].unique())}
    sheet = panels.sheet(rows, sizes, looks, height=1.9)
    by = ["batch_size", *others]
    with mpl.rc_context(rc()):
        for key, lines in table.groupby(by, sort=False):
            panels.thin_lines(sheet.axes[key[1:], key[0]], lines.sort_values(axis), axis, looks)
        for key, lines in middle.groupby([*by, "arm"], sort=False):
            look, line = looks[key[-1]], lines.sort_values(axis)
            sheet.axes[key[1:-1], key[0]].plot(
                line[axis],
                line["median"],
                color=look.colour,
                linestyle=look.dash,
                marker=look.marker,
                markeredgewidth=0,
                zorder=3,
            )
        levels = sorted(table[axis].unique())
        for axes in sheet.axes.values():
            axes.xaxis.set_major_locator(FixedLocator(levels) if len(levels) < 7 else MaxNLocator(5))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            axes.margins(x=0.06)
        panels.value_axis(sheet, scale, table["value"])
        panels.name_axes(sheet, _AXIS_NAMES[axis], label)
    return sheet.figure


_AXIS_NAMES = {"noise": "noise: share of corrupted pairs"}


# --- time to a threshold ---------------------------------------------------------------------------------------------


def convergence(results: Results) -> Iterator[Drawn]:
    """Yield, per threshold that a claim names, the share of seeds that reached it over the steps."""
    named = {(claim.measure, claim.threshold) for claim in results.study.claims if claim.threshold is not None}
    for place, (name, threshold) in enumerate(sorted(named)):
        if name not in results.steps:
            continue
        yield _reached(results, name, threshold, f"time-{place + 1}")


def _reached(results: Results, name: str, threshold: float, id: str) -> Drawn:  # noqa: A002
    runs = results.runs[results.runs["status"].isin(["finished", "diverged"])]
    times = times_to(results, name, threshold).reindex(runs["run"]).to_numpy(dtype=float)
    times = np.where(runs["status"] == "diverged", math.inf, times)
    table = runs[["run", *panels.CELL, "seed"]].assign(step=times)
    known = _known(results, table)
    shares = share_reached(table)
    last = shares.groupby(panels.CELL, sort=False).tail(1)
    medians_ = table.groupby(panels.CELL)["step"].median().replace(math.inf, math.nan).dropna()
    label = results.measures[name].label
    slow = (
        f" Steps until half of the seeds were there: {int(medians_.min())} to {int(medians_.max())} in the "
        f"{len(medians_)} of {len(last)} cells where half were."
        if len(medians_)
        else ""
    )
    return Drawn(
        id=id,
        section="convergence",
        title=f"{label} of {threshold:g}: share of seeds there",
        caption=f"Share of the seeds that have reached a {label[:1].lower() + label[1:]} of {threshold:g}, at the first "
        "measured step with it. A run that diverged counts as never there.",
        alt=f"Steps of the share of seeds that reached {label} {threshold:g}. Share at the end: "
        f"{tables.in_words(last, list(known), 'share', percent)}.{slow}",
        figure=reached_figure(shares, known, float(results.study.train.steps)),
        table=tables.shown(shares),
    )


def share_reached(table: pd.DataFrame) -> pd.DataFrame:
    """Return the share of seeds that are there from each step on, starting with none at step 0, per cell."""
    rows = []
    for key, cell in table.groupby(panels.CELL, sort=False):
        steps = np.sort(cell["step"].to_numpy())
        named = dict(zip(panels.CELL, key, strict=True))
        rows.append({**named, "step": 0.0, "share": 0.0})
        rows += [
            {**named, "step": float(step), "share": float((steps <= step).mean())}
            for step in np.unique(steps[np.isfinite(steps)])
        ]
    return pd.DataFrame(rows)


def reached_figure(shares: pd.DataFrame, looks: Mapping[str, Look], last: float) -> Any:
    """Return a figure of rising steps from 0 to the share that got there, a panel per batch size and noise level."""
    sheet = panels.sheet(*panels.facets(shares), looks)
    with mpl.rc_context(rc()):
        for axes, lines in panels.by_panel(sheet, shares):
            for place, (arm, look) in enumerate(looks.items()):
                line = lines[lines["arm"] == arm]
                if not len(line):
                    continue
                x, y = [*line["step"], last], [*line["share"], line["share"].iloc[-1]]
                # Equal shares would hide one another, so each arm stands a hair beside the last.
                lift = 0.012 * (place - (len(looks) - 1) / 2)
                axes.plot(
                    x,
                    np.array(y) + lift,
                    drawstyle="steps-post",
                    color=look.colour,
                    linestyle=look.dash,
                    marker=look.marker,
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


def sharpness(results: Results) -> Iterator[Drawn]:
    """Yield the preconditioned sharpness against its threshold, where it was measured at one step only."""
    name = "sharpness_ratio"
    if name not in results.steps:
        return
    measured = tables.of_steps(results, results.steps[name])
    if not len(measured) or measured.groupby("run", sort=False)["step"].size().max() > 1:
        return
    table = per_run(results, summarise(results, name, "final"))
    known, middle = _known(results, table), medians(table)
    yield Drawn(
        id="sharpness",
        section="curvature",
        title="Sharpness against the edge of stability",
        caption="Largest eigenvalue of the encoders' Hessian as Adam's preconditioner sees it, over the threshold "
        "(2 + 2β₁) / ((1 − β₁) η) at which Adam turns unstable (dotted, 1), at the end of training. Each mark is one "
        "seed, the bar their median.",
        alt="Preconditioned sharpness over its threshold, at the end. Median over seeds: "
        f"{tables.in_words(middle, list(known), 'median')}. 1 is the edge of stability.",
        figure=strip_figure(table, middle, known, "sharpness / threshold"),
        table=tables.shown(table.drop(columns="run").rename(columns={"value": name})),
    )


def strip_figure(table: pd.DataFrame, middle: pd.DataFrame, looks: Mapping[str, Look], label: str) -> Any:
    """Return a figure with one mark a seed and a bar at the median, arms side by side, on a logarithmic axis."""
    sheet = panels.sheet(*panels.facets(table), looks)
    with mpl.rc_context(rc()):
        for (axes, marks), (_, bars) in zip(
            panels.by_panel(sheet, table), panels.by_panel(sheet, middle), strict=True
        ):
            for place, (arm, look) in enumerate(looks.items()):
                values = marks.loc[marks["arm"] == arm].sort_values("seed")["value"]
                spread = np.linspace(-0.22, 0.22, len(values)) if len(values) > 1 else np.zeros(len(values))
                axes.plot(
                    place + spread, values, look.marker, color=look.colour, alpha=0.75, markersize=4, markeredgewidth=0
                )
                for level in bars.loc[bars["arm"] == arm, "median"]:
                    axes.plot([place - 0.34, place + 0.34], [level, level], color=look.colour, linewidth=1.6)
            panels.reference(axes, 1.0)
            axes.set_xlim(-0.6, len(looks) - 0.4)
            axes.xaxis.set_major_locator(FixedLocator([]))
        panels.value_axis(sheet, "log", [*table["value"], 1.0])
        panels.name_axes(sheet, "", label)
    return sheet.figure


# --- geometry --------------------------------------------------------------------------------------------------------

GEOMETRY = {"margin_trimmed": "trimmed margin", "relative_bias_trimmed": "trimmed relative bias", "modality_gap": "modality gap"}


def geometry(results: Results) -> Iterator[Drawn]:
    """Yield the final geometry of the embeddings against noise: a row per quantity, a column per batch size."""
    names = [name for name in GEOMETRY if name in results.steps and results.steps[name].notna().any()]
    if not names:
        return
    long = pd.concat(
        [per_run(results, summarise(results, name, "final")).assign(measure=name) for name in names], ignore_index=True
    )
    known = _known(results, long)
    middle = pd.concat([medians(part).assign(measure=name) for name, part in long.groupby("measure", sort=False)])
    first = middle[middle["noise"] == middle["noise"].min()]
    words = "; ".join(
        f"{GEOMETRY[name]}: {tables.in_words(first[first['measure'] == name], list(known), 'median')}" for name in names
    )
    across = "against the share of corrupted pairs" if long["noise"].nunique() > 1 else "of every seed"
    yield Drawn(
        id="geometry",
        section="geometry",
        title="Geometry of the embeddings at the end of training",
        caption=f"Final geometry of held-out embeddings {across}. Margin: half the distance from the 5% quantile of "
        "matching pairs' similarities to the 95% quantile of mismatched ones (above 0: told apart). Relative bias: "
        "their midpoint. Modality gap: distance between the mean image and the mean text embedding. Thin: one seed; "
        "bold: the median of the seeds.",
        alt=f"Geometry at the end, median over seeds at noise {first['noise'].min():g}. {words}.",
        figure=geometry_figure(long, middle, known),
        table=tables.shown(middle[["measure", *[c for c in middle if c != "measure"]]]),
    )


def geometry_figure(long: pd.DataFrame, middle: pd.DataFrame, looks: Mapping[str, Look]) -> Any:
    """Return a figure of several quantities against noise: a row each on its own scale, a column per batch size."""
    names = list(dict.fromkeys(long["measure"]))
    rows = dict.fromkeys(names, "")
    sizes = {size: f"B = {size}" for size in sorted(long["batch_size"].unique())}
    sheet = panels.sheet(rows, sizes, looks, height=1.15, share_y="row")
    with mpl.rc_context(rc()):
        others = [axis for axis in AXES if axis not in ("noise", "batch_size")]
        for key, lines in long.groupby(["measure", "batch_size", *others], sort=False):
            panels.thin_lines(sheet.axes[key[:2]], lines.sort_values("noise"), "noise", looks)
        for key, lines in middle.groupby(["measure", "batch_size", "arm", *others], sort=False):
            look, line = looks[key[2]], lines.sort_values("noise")
            sheet.axes[key[:2]].plot(
                line["noise"],
                line["median"],
                color=look.colour,
                linestyle=look.dash,
                marker=look.marker,
                markeredgewidth=0,
                zorder=3,
            )
        levels = sorted(long["noise"].unique())
        for (name, size), axes in sheet.axes.items():
            axes.yaxis.set_major_locator(MaxNLocator(3))
            axes.xaxis.set_major_locator(FixedLocator(levels) if len(levels) < 7 else MaxNLocator(5))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            axes.margins(x=0.06)
            if name != "modality_gap":
                panels.reference(axes, 0.0)
            if size == next(iter(sizes)):
                axes.set_ylabel(GEOMETRY[name].replace("trimmed ", "trimmed\n"), color=LIGHT["ink"])
        panels.name_axes(sheet, _AXIS_NAMES["noise"], "")
    return sheet.figure

