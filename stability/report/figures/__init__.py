"""The figures of a report: `draw` makes them from results, `svg` converts a figure to markup."""

from __future__ import annotations

from pathlib import Path

from stability.analysis import Findings, Results
from stability.report.figures.convergence import convergence
from stability.report.figures.figure import ReportFigure
from stability.report.figures.forest import forest_plot
from stability.report.figures.geometry import GEOMETRY, embedding_geometry
from stability.report.figures.levels import along_axes, claimed, decline, flatness, sharpness
from stability.report.figures.rankings import ranking_plots
from stability.report.figures.replications import replication_plot
from stability.report.figures.slices import landscapes
from stability.report.figures.spectra import spectral_densities
from stability.report.figures.svg import svg
from stability.report.figures.trajectories import PLOTS, over_training
from stability.report.figures.tuning import tuning_curves

SECTIONS = (
    "claims",
    "replications",
    "ranking",
    "tuning",
    "learning",
    "values",
    "noise",
    "convergence",
    "gradients",
    "scalars",
    "curvature",
    "landscape",
    "geometry",
)
"""The sections of a report that contain figures, in reading order."""


def draw(results: Results, findings: Findings, grids: Path | None = None) -> tuple[ReportFigure, ...]:
    """Return the figures of a study in reading order, without those of measures that it did not take.

    *grids* is the output folder of `stability landscape`, if it was run.
    """
    forest, replicated = forest_plot(results, findings), replication_plot(results, findings)
    trajectories = list(over_training(results))
    shown = {figure.id for figure in trajectories}
    elsewhere = {plot.measure for plot in PLOTS if plot.id in shown} | {
        "filter_sharpness",
        "sharpness_ratio",
        *GEOMETRY,
    }
    drawn = [
        *([forest] if forest else []),
        *([replicated] if replicated else []),
        *ranking_plots(findings, results.study.grid.arms),
        *tuning_curves(results),
        *trajectories,
        *along_axes(results),
        *claimed(results, elsewhere),
        *decline(results),
        *convergence(results),
        *spectral_densities(results),
        *sharpness(results),
        *flatness(results),
        *(landscapes(results, grids) if grids else ()),
        *embedding_geometry(results),
    ]
    return tuple(sorted(drawn, key=lambda figure: SECTIONS.index(figure.section)))


__all__ = ["SECTIONS", "ReportFigure", "draw", "svg"]
