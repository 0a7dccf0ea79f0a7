"""The section of the method."""

from __future__ import annotations

from stability.report.blocks import Paragraph, Part
from stability.report.method import paragraphs
from stability.report.sections.registry import Blocks, ReportData, section


@section(order=180, title="Method")
def method(data: ReportData) -> Blocks:
    """Yield the paragraphs of the method with their formulas."""
    for title, text, *formulas in paragraphs(data.results, data.findings):
        yield Part(title, (Paragraph(text), *formulas))
