"""The section of the trained scalars."""

from __future__ import annotations

from collections.abc import Iterator

from stability.report.blocks import Block
from stability.report.data import ReportData
from stability.report.sections.registry import section


@section(
    order=100,
    title="Temperature and bias",
    lead="The loss's own trained scalars. Adam moves a scalar by at most about the sum of its learning rates.",
)
def scalars(data: ReportData) -> Iterator[Block]:
    """Yield temperature and bias over training."""
    return data.over_training("log-scale", "bias")
