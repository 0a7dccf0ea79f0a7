"""The section of loss and retrieval."""

from __future__ import annotations

from collections.abc import Iterator

from stability.report.blocks import Block
from stability.report.data import ReportData
from stability.report.figures.levels import along_axes
from stability.report.sections.registry import section


@section(
    order=50,
    title="Learning",
    lead="Losses differ in scale, so how far one falls below its chance level says less than what the embeddings can "
    "do on pairs that training never saw.",
)
def learning(data: ReportData) -> Iterator[Block]:
    """Yield loss, retrieval and zero-shot accuracy over training, and measures of claims along an axis of the grid."""
    yield from data.over_training("loss", "recall", "zero-shot")
    yield from along_axes(data.results)
