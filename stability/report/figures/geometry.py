"""The figure of the embedding geometry: margin, relative bias and modality gap, each on its own scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stability.analysis import Results, summarize
from stability.report.figures import panels, scales, tables
from stability.report.figures.figure import ReportFigure
from stability.report.style import ArmStyle, styled
from stability.vocabulary import axis_of, cell_title

GEOMETRY = {
    "margin_trimmed": "trimmed margin",
    "relative_bias_trimmed": "trimmed relative bias",
    "modality_gap": "modality gap",
}


def embedding_geometry(results: Results) -> Iterator[ReportFigure]:
    """Yield the geometry of the embeddings: final values against noise, or over training if the noise is constant."""
    names = [name for name in GEOMETRY if name in results.steps and results.steps[name].notna().any()]
    if not names:
        return
    noisy = len(results.study.grid.noise) > 1
    x = "noise" if noisy else "step"
    long = pd.concat([_quantity(results, name, noisy) for name in names], ignore_index=True)
    styles = tables.styles_in(results, long)
    middle = pd.concat(
        [tables.across_seeds(part, "step").assign(measure=name) for name, part in long.groupby("measure", sort=False)]
    )
    last = middle[(middle["noise"] == middle["noise"].min()) & (middle["step"] == middle["step"].max())]
    at_end = "; ".join(
        f"{GEOMETRY[name]}: {tables.in_words(last[last['measure'] == name], list(styles), 'median')}" for name in names
    )
    subject = "Final geometry" if noisy else "Geometry"
    across = "against the share of corrupted pairs" if noisy else "over training"
    columns = ["measure", *[name for name in middle if name != "measure" and (name != "step" or not noisy)]]
    yield ReportFigure(
        id="geometry",
        section="geometry",
        title=f"Geometry of the embeddings {across}",
        caption=f"{subject} of held-out embeddings {across}. Margin: half the distance from the 5% quantile of "
        "matching pairs' similarities to the 95% quantile of mismatched ones (above 0: told apart). Relative bias: "
        "their midpoint. Modality gap: distance between the mean image and the mean text embedding. Thin: one seed; "
        "bold: the median of the seeds.",
        alt=f"Geometry at the end, median over seeds at noise {last['noise'].min():g}. {at_end}.",
        figure=geometry_figure(long, middle, styles, x, float(results.study.train.steps)),
        table=tables.shown(middle[columns]),
    )


def _quantity(results: Results, name: str, final: bool) -> pd.DataFrame:
    if final:
        return tables.of_runs(results, summarize(results, name, "final")).assign(measure=name, step=0)
    return tables.of_steps(results, results.steps[name]).assign(measure=name)


def geometry_figure(
    long: pd.DataFrame, middle: pd.DataFrame, styles: Mapping[str, ArmStyle], x: str, last: float
) -> Figure:
    """Return a figure of several quantities against *x*: one row each with its own scale, one column per batch size.

    Args:
        long: One row per run and x value.
        middle: Their medians over seeds.
        styles: The plot style of each arm.
        x: The column of the x axis, "noise" or "step".
        last: The last training step.
    """
    sizes = {key: cell_title({"batch_size": key[0]}) for key in tables.levels_of(long, ["batch_size"])}
    rows = {(name,): "" for name in dict.fromkeys(long["measure"])}
    sheet = panels.crossed(rows, sizes, styles, height=1.15, share_y="row")
    with styled():
        panels.draw_lines(sheet, long, middle, x, ["measure", "batch_size"])
        for (name, size), axes in sheet.axes.items():
            axes.yaxis.set_major_locator(MaxNLocator(3))
            if x == "noise":
                scales.level_axis(axes, sorted(long["noise"].unique()))
            if name != "modality_gap":
                scales.reference(axes, 0.0)
            if (size,) == next(iter(sizes)):
                box = axes.get_position()
                panels.name_row(sheet, (box.y0, box.y1), GEOMETRY[name].replace("trimmed ", "trimmed\n"))
        if x == "step":
            scales.step_axis(sheet, last)
        panels.name_axes(sheet, axis_of(x).axis_label if x != "step" else "training step", "")
    return sheet.figure
