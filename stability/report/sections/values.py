"""The section of measures that a claim compares and no other section shows."""

from __future__ import annotations

from collections.abc import Iterator

from stability.report.blocks import Block
from stability.report.data import ReportData
from stability.report.figures.geometry import GEOMETRY
from stability.report.figures.levels import claimed
from stability.report.figures.trajectories import PLOTS
from stability.report.sections.registry import section


@section(
    order=60,
    title="What the claims compare",
    lead="Each run's value of what a claim is about, where no other figure shows it.",
)
def values(data: ReportData) -> Iterator[Block]:
    """Yield the values of each measure of a claim that no other section shows."""
    over_training = {plot.measure for plot in PLOTS if plot.id in data.trajectories}
    yield from claimed(data.results, {*over_training, *GEOMETRY, "filter_sharpness", "sharpness_ratio"})
