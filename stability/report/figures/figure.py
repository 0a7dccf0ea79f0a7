"""A figure of a report with its section, texts and data."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class ReportFigure:
    """One figure of a report.

    Attributes:
        id: The figure's name, unique in the report.
        section: The section it belongs to, one of `SECTIONS`.
        title: The heading above it.
        caption: The text below it.
        alt: The alternative text, with numbers.
        figure: The drawn figure.
        table: The data shown.
    """

    id: str
    section: str
    title: str
    caption: str
    alt: str
    figure: Figure
    table: pd.DataFrame
