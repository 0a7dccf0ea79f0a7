"""The section of activations and updates by layer."""

from __future__ import annotations

from stability.report.figures.coordinates import coordinate_check
from stability.report.sections.registry import Blocks, ReportData, section


@section(
    order=135,
    title="Coordinate check",
    lead="Sizes by layer as the towers grow. A layer whose activations or updates grow or shrink with the width has an "
    "initial scale or a learning rate that does not carry over to larger towers.",
)
def coordinates(data: ReportData) -> Blocks:
    """Yield activations and updates by layer against a setting of the towers."""
    yield from coordinate_check(data.results)
