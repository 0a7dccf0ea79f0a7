"""The section of the rankings."""

from __future__ import annotations

from collections.abc import Iterator

from stability.report.blocks import Block
from stability.report.data import ReportData
from stability.report.figures.rankings import ranking_plots
from stability.report.sections.registry import section


@section(
    order=30,
    title="Rankings",
    lead="All arms in order, each pair compared within the seeds. Intervals hold for all pairs together, so that the "
    "best of many is not taken for better than it is; arms that share a letter cannot be told apart.",
)
def ranking(data: ReportData) -> Iterator[Block]:
    """Yield a plot for each ranking."""
    yield from ranking_plots(data.findings, data.results.study.grid.arms)
