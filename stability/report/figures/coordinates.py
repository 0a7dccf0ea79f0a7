"""The figure of a coordinate check: sizes of activations and updates by layer, against a setting of the towers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from stability.analysis import Results
from stability.report.figures import panels, scales, tables
from stability.report.figures.figure import ReportFigure
from stability.report.style import ArmStyle, styled
from stability.vocabulary import axes_in, axis_of, cell_in_words

ROWS = {
    "activation_rms_image": "activations, images",
    "activation_rms_text": "activations, texts",
    "update_rms_image": "update, images",
    "update_rms_text": "update, texts",
}
"""The measures with a value per layer, and the label of their row of panels."""


def coordinate_check(results: Results) -> Iterator[ReportFigure]:
    """Yield the size of activations and updates of each layer against a setting of the towers, such as the width.

    The setting is the axis over a key of [model] with the most levels, all numbers. Of any other axis, only the first
    level is shown. Nothing is yielded without such an axis or without the probe of activations.
    """
    axis = _model_axis(results.runs)
    names = [name for name in ROWS if name in results.steps]
    if not axis or not names:
        return
    long = pd.concat([_by_layer(results, name) for name in names], ignore_index=True)
    if not len(long):
        return
    first = {name: min(long[name]) for name in axes_in(long.columns) if name != axis and long[name].nunique() > 1}
    for name, level in first.items():
        long = long[long[name] == level]
    styles, middle = tables.styles_in(results, long), tables.across_seeds(long, "measure", "layer")
    over = axis_of(axis).label
    last = middle[(middle["layer"] == 1) & (middle["measure"] == middle["measure"].iloc[0])]
    where = f" Shown at {cell_in_words(first)}." if first else ""
    yield ReportFigure(
        id="coordinates",
        section="coordinates",
        title=f"Activations and updates by layer over the {over}",
        caption=f"Root mean square of the output of each layer on held-out pairs, and of the last step over its "
        f"parameters, at the last measured step, against the {over}, on logarithmic axes. Layers count from the input: "
        "for a transformer the embedding, each block, the final norm and the projection, for a perceptron its linear "
        f"maps.{where} Thin: one seed; bold: the median of the seeds.",
        alt=f"Sizes by layer against the {over}. First layer, {ROWS[last['measure'].iloc[0]]}, median over seeds: "
        f"{tables.in_words(last, list(styles), 'median')}.".replace("\n", " "),
        figure=coordinates_figure(long, middle, styles, axis),
        table=tables.shown(middle[["measure", "layer", *(c for c in middle if c not in ("measure", "layer"))]]),
    )


def _model_axis(runs: pd.DataFrame) -> str:
    """Return the axis over a key of [model] with the most levels, if they are numbers; else an empty text."""
    axes = [axis for axis in axes_in(runs.columns) if axis.startswith("model.") and runs[axis].dtype.kind in "iuf"]
    levels = {axis: runs[axis].nunique() for axis in axes if runs[axis].nunique() > 1}
    return max(levels, key=lambda axis: levels[axis], default="")


def _by_layer(results: Results, name: str) -> pd.DataFrame:
    """Return one row per run and layer, counted from 1, with the value at the last step that was measured."""
    lists = results.steps.loc[[bool(np.ndim(value)) for value in results.steps[name]], ["run", "step", name]]
    last = lists.sort_values("step", kind="stable").groupby("run", sort=False).tail(1)
    table = results.runs[["run", *panels.cell_columns(results.runs), "seed"]].merge(last, on="run", how="inner")
    table["layer"] = [range(1, len(values) + 1) for values in table[name]]
    long = table.explode([name, "layer"], ignore_index=True).rename(columns={name: "value"})
    long = long.astype({"value": float, "layer": int}).drop(columns="step").assign(measure=name)
    return long[(long["value"] > 0) & long["value"].map(math.isfinite)]


def coordinates_figure(long: pd.DataFrame, middle: pd.DataFrame, styles: Mapping[str, ArmStyle], axis: str) -> Figure:
    """Return a figure with a row of panels per measure, with its own scale, and a column per layer.

    Args:
        long: One row per run, measure and layer.
        middle: Their medians over seeds.
        styles: The plot style of each arm.
        axis: The column of the x axis.
    """
    rows = {(name,): "" for name in ROWS if name in set(long["measure"])}
    long, middle = (table[table["layer"].isin(_shown_layers(long))] for table in (long, middle))
    columns = {key: f"layer {key[0]}" for key in tables.levels_of(long, ["layer"])}
    sheet = panels.crossed(rows, columns, styles, height=1.05, share_y="row")
    levels = sorted(long[axis].unique())
    with styled():
        panels.draw_lines(sheet, long, middle, axis, ["measure", "layer"])
        for (name, layer), axes in sheet.axes.items():
            values = long.loc[long["measure"] == name, "value"]
            scales.log_axis(axes, "y", values.min(), values.max(), most=3)
            axes.set_ylim(values.min() / 1.3, values.max() * 1.3)
            if axis_of(axis).doubling:
                axes.set_xscale("log")
                axes.xaxis.set_minor_locator(NullLocator())
            scales.level_axis(axes, levels)
            if (layer,) == next(iter(columns)):
                box = axes.get_position()
                panels.name_row(sheet, (box.y0, box.y1), ROWS[name])
        panels.name_axes(sheet, axis_of(axis).axis_label, "")
    return sheet.figure


def _shown_layers(long: pd.DataFrame) -> list[int]:
    """Return the layers that have a column: all, or as many as fit, evenly spread, with the first and the last."""
    layers = sorted(long["layer"].unique())
    shown = np.linspace(0, len(layers) - 1, min(len(layers), panels.MAX_COLUMNS)).round().astype(int)
    return [int(layers[index]) for index in shown]
