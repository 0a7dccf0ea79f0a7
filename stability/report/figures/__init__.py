"""The figures of a report; `svg` converts one to markup."""

from __future__ import annotations

from stability.report.figures.drawn import ReportFigure
from stability.report.figures.markup import svg

__all__ = ["ReportFigure", "svg"]
