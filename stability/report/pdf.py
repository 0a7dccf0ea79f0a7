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
    """Return in one sentence why no PDF can be made here and what changes that; nothing where one can be made."""
    try:
        import typst  # noqa: F401
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "typst"
        reason = "is not installed" if absent else f"cannot be imported ({error})"
        return f"no PDF: the package 'typst' {reason}; {HOW}"
    return ""


def document(report: Mapping[str, Any], figures: Mapping[str, str]) -> bytes:
    """Return the PDF of a report; *figures* holds each figure's SVG.

    The template reads the report as data, so nothing in it is ever taken for markup. Raises `ImportError` where
    `why_no_pdf` gives a reason.
    """
    import typst

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
