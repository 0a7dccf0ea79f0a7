"""The section of the loss around the end of training."""

from __future__ import annotations

from collections.abc import Iterator

from stability.report.blocks import Block
from stability.report.data import ReportData
from stability.report.figures.slices import flatness, landscapes
from stability.report.sections.registry import section


@section(
    order=120,
    title="Loss landscape",
    lead="How the training loss rises around the end of training. Directions are random and every filter moves in "
    "proportion to its norm, so that a rise, as a share of the loss's chance level, can be compared between arms.",
)
def landscape(data: ReportData) -> Iterator[Block]:
    """Yield the flatness of every run, and the slices and planes that were computed."""
    yield from flatness(data.results)
    if data.grids:
        yield from landscapes(data.results, data.grids)
