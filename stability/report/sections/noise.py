"""The section of corrupted pairs."""

from __future__ import annotations

from collections.abc import Iterator

from stability.report.blocks import Block
from stability.report.data import ReportData
from stability.report.figures.levels import decline
from stability.report.sections.registry import section


@section(
    order=70,
    title="Robustness to corrupted pairs",
    lead="The same runs with a growing share of pairs corrupted on purpose. An arm that starts lower has less to lose, "
    "so slopes are compared on the chance-corrected logarithmic scale.",
)
def noise(data: ReportData) -> Iterator[Block]:
    """Yield retrieval against the noise level."""
    yield from decline(data.results)
