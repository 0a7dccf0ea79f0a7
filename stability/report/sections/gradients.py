"""The section of gradient noise."""

from __future__ import annotations

from collections.abc import Iterator

from stability.report.blocks import Block
from stability.report.data import ReportData
from stability.report.sections.registry import section


@section(
    order=90,
    title="Gradient noise",
    lead="The share of a batch gradient's squared length that is noise: 0 if every batch says the same, 1 if batches "
    "agree on nothing. It does not change when a loss is multiplied by a constant.",
)
def gradients(data: ReportData) -> Iterator[Block]:
    """Yield the gradient noise of encoders and scalars over training."""
    return data.over_training("gradient-noise", "gradient-noise-scalars")
