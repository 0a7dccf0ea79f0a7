"""The section of curvature next to other code."""

from __future__ import annotations

from stability.report.blocks import Lead, Table
from stability.report.sections.registry import Blocks, ReportData, section
from stability.report.tables import crosscheck_table


@section(order=160, title="Cross-check of the curvature", short="Cross-check")
def crosscheck(data: ReportData) -> Blocks:
    """Yield our eigenvalues and traces next to PyHessian's and the exact ones."""
    if table := crosscheck_table(data.results):
        exact = ", with the exact dense values" if len(table["columns"]) > 7 else ""
        yield Lead(
            "Top eigenvalue by magnitude and trace of the same float64 objective, by this package (± residual, ± "
            f"standard error) and by PyHessian{exact}."
        )
        if table["agreement"]:
            yield Lead(table["agreement"])
        yield Table("Cross-check", table["columns"], table["rows"])
