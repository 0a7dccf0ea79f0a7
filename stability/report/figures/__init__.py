"""The figures of a report; `svg` converts one to markup."""

from __future__ import annotations

from stability.report.figures.figure import ReportFigure
from stability.report.figures.svg import svg

__all__ = ["ReportFigure", "svg"]
