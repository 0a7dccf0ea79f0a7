"""The section of the search for settings."""

from __future__ import annotations

from stability.report.blocks import Table
from stability.report.figures.tuning import tuning_curves
from stability.report.sections.registry import Blocks, ReportData, section
from stability.report.tables import tuning_table


@section(
    order=40,
    title="Tuning",
    lead="Before the test, every arm was given as many settings to try at each batch size as any other, on seeds that "
    "the test does not use.",
)
def tuning(data: ReportData) -> Blocks:
    """Yield the tuning curves and the table of the chosen settings."""
    yield from tuning_curves(data.results)
    if table := tuning_table(data.results):
        yield Table("What was chosen", table["columns"], table["rows"])
