"""The section of the method."""

from __future__ import annotations

from collections.abc import Iterator

from stability.report.blocks import Block, Paragraph, Part
from stability.report.data import ReportData
from stability.report.method import paragraphs
from stability.report.sections.registry import section


@section(order=180, title="Method")
def method(data: ReportData) -> Iterator[Block]:
    """Yield the paragraphs of the method with their formulas."""
    for title, text, *formulas in paragraphs(data.results, data.findings):
        yield Part(title, (Paragraph(text), *formulas))
