"""What a report holds, by section: its figures, and the texts of its parts."""

from __future__ import annotations

from typing import Any

from stability.analysis import Findings, Results
from stability.report.blocks import Paragraph, Part, of_kind
from stability.report.data import ReportData
from stability.report.figures import ReportFigure
from stability.report.sections import section, sections_of


def figures_of(results: Results, findings: Findings) -> tuple[ReportFigure, ...]:
    """Return the figures of a report in reading order."""
    return tuple(figure for each in sections_of(ReportData(results, findings)) for figure in each.figures)


def texts_of(name: str, results: Results, findings: Findings) -> dict[str, str]:
    """Return the paragraphs of a section by the titles of their parts, those of equal titles in one text."""
    texts: dict[str, str] = {}
    for part in section[name](ReportData(results, findings)):
        if isinstance(part, Part):
            words = [block.text for block in part.blocks if isinstance(block, Paragraph)]
            texts[part.title] = " ".join([*filter(None, [texts.get(part.title)]), *words])
    return texts


def section_in(report: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a section of report.json."""
    return next(each for each in report["sections"] if each["id"] == name)


def texts_in(report: dict[str, Any], name: str) -> dict[str, str]:
    """Return the paragraphs of a section of report.json by the titles of their parts."""
    parts = of_kind("part", section_in(report, name)["blocks"])
    return {part["title"]: each["text"] for part in parts for each in of_kind("paragraph", part["blocks"])}


def tables_in(report: dict[str, Any], name: str) -> list[Any]:
    """Return the tables of a section of report.json."""
    return list(of_kind("table", section_in(report, name)["blocks"]))
