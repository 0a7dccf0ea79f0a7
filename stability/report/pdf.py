"""The report as a typeset PDF: tagged (PDF/UA-1), fonts embedded, equal bytes for equal input."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

from stability.report.html import TEMPLATES

HOW = "`pip install typst` brings it, and `stability report RUN_DIR` writes the PDF then"

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def why_no_pdf() -> str:
    """Return a sentence on why no PDF can be made here, with the remedy; "" if one can be made."""
    try:
        import typst  # noqa: F401
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "typst"
        reason = "is not installed" if absent else f"cannot be imported ({error})"
        return f"no PDF: the package 'typst' {reason}; {HOW}"
    return ""


def document(report: Mapping[str, Any], figures: Mapping[str, str]) -> bytes:
    """Return the PDF of a report, given each figure's SVG by id.

    The template reads the report as data: only its formulas, which no study can set, are interpreted as markup. Raises
    `ImportError` if `why_no_pdf` gives a reason.
    """
    import typst

    files: Any = {  # typst accepts the files of a document by name, but its type hints do not cover that
        "main": (TEMPLATES / "report.typ").read_bytes(),
        "report.json": json.dumps(report, allow_nan=False).encode(),
        **{f"{name}.svg": svg.encode() for name, svg in figures.items()},
    }
    content: bytes = typst.compile(
        files,
        format="pdf",
        font_paths=[str(FONTS)],
        ignore_system_fonts=True,
        pdf_standards="ua-1",
    )
    return content
