"""The section of the embeddings' geometry."""

from __future__ import annotations

from collections.abc import Iterator

from stability.report.blocks import Block
from stability.report.data import ReportData
from stability.report.figures.geometry import embedding_geometry
from stability.report.sections.registry import section


@section(
    order=130,
    title="Geometry of the embeddings",
    lead="How far apart matching and mismatched pairs lie on the unit sphere, and images from texts, on held-out data.",
)
def geometry(data: ReportData) -> Iterator[Block]:
    """Yield margin, relative bias and modality gap."""
    yield from embedding_geometry(data.results)
