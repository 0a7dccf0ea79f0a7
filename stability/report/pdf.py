"""The report as a typeset PDF: tagged (PDF/UA-1), fonts embedded, equal bytes for equal input."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import typst

from stability.report.html import TEMPLATES

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def document(report: Mapping[str, Any], figures: Mapping[str, str]) -> bytes:
    """Return the PDF of a report; *figures* holds each figure's SVG.

    The template reads the report as data, so nothing in it is ever taken for markup.
    """
    files: Any = {  # typst takes the files of a document by name; its type hints do not say so
        "main": (TEMPLATES / "report.typ").read_bytes(),
        "formulas.typ": (TEMPLATES / "formulas.typ").read_bytes(),
        "report.json": json.dumps(report, allow_nan=False).encode(),
        **{f"{name}.svg": svg.encode() for name, svg in figures.items()},
    }
    made: bytes = typst.compile(
        files,
        format="pdf",
        font_paths=[str(FONTS)],
        ignore_system_fonts=True,
        pdf_standards="ua-1",
    )
    return made
