"""What a drawn figure brings with it: where it belongs, what it says in words, and the numbers behind it."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class ReportFigure:
    """One figure of a report. *alt* says what it shows, with numbers; *table* holds the data behind it."""

    id: str
    section: str
    title: str
    caption: str
    alt: str
    figure: Figure
    table: pd.DataFrame
