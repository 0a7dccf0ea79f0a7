"""The section of curvature."""

from __future__ import annotations

from collections.abc import Iterator

from stability.report.blocks import Block
from stability.report.data import ReportData
from stability.report.figures.levels import sharpness
from stability.report.figures.spectra import spectral_densities
from stability.report.sections.registry import section


@section(
    order=110,
    title="Curvature",
    lead="Eigenvalues of the Hessian of the training loss. Raw eigenvalues change with the loss's scale; the sharpness "
    "that Adam sees, as a multiple of the edge of stability, does not.",
)
def curvature(data: ReportData) -> Iterator[Block]:
    """Yield sharpness and the spectra of the Hessian."""
    yield from data.over_training("sharpness")
    yield from spectral_densities(data.results)
    yield from sharpness(data.results)
