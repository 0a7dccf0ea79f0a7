"""The section of all cells of the grid."""

from __future__ import annotations

from stability.report.blocks import Lead, Table
from stability.report.sections.registry import Blocks, ReportData, section
from stability.report.tables import cell_table


@section(
    order=140,
    title="All cells",
    lead="Mean ± standard deviation over seeds, at the end of training; tail_mean: the mean over the last fifth of the "
    "steps.",
)
def cells(data: ReportData) -> Blocks:
    """Yield the table of the main measures, a row for each cell."""
    table = cell_table(data.results)
    if table["fixed"]:
        yield Lead(f"Everywhere: {table['fixed']}.")
    yield Table("All cells", table["columns"], table["rows"], size="small", sortable=True)
