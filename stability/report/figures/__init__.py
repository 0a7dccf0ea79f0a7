"""The figures of a report: one function from results to drawn figures, and from a figure to SVG markup."""

from __future__ import annotations

from stability.analysis import Findings, Results
from stability.report.figures.drawn import Drawn
from stability.report.figures.forest import forest
from stability.report.figures.levels import convergence, decline, geometry, sharpness
from stability.report.figures.markup import svg
from stability.report.figures.spectra import spectra
from stability.report.figures.trajectories import trajectories

SECTIONS = ("claims", "learning", "noise", "convergence", "gradients", "scalars", "curvature", "geometry")
"""The sections of a report that hold figures, in reading order."""


def draw(results: Results, findings: Findings) -> tuple[Drawn, ...]:
    """Return the figures of a study in reading order, leaving out what it has not measured."""
    first = forest(findings)
    drawn = [
        *([first] if first else []),
        *trajectories(results),
        *decline(results),
        *convergence(results),
        *spectra(results),
        *sharpness(results),
        *geometry(results),
    ]
    return tuple(sorted(drawn, key=lambda figure: SECTIONS.index(figure.section)))


__all__ = ["SECTIONS", "Drawn", "draw", "svg"]
