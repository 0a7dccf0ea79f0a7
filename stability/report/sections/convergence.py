"""The section of time to a threshold."""

from __future__ import annotations

from collections.abc import Iterator

from stability.report.blocks import Block
from stability.report.data import ReportData
from stability.report.figures import levels
from stability.report.sections.registry import section


@section(
    order=80,
    title="Time to threshold",
    lead="The share of seeds that have reached the claim's threshold, step by step. A run that never does stays out, "
    "and counts in the test as one that took the whole budget.",
)
def convergence(data: ReportData) -> Iterator[Block]:
    """Yield the share of seeds that reached each threshold of a claim."""
    yield from levels.convergence(data.results)
