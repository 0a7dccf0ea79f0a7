"""The report as one self-contained HTML file: it makes no requests and escapes every string of the study."""

from __future__ import annotations

import base64
import csv
import gzip
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from stability.report.blocks import of_kind
from stability.report.formulas import mathml
from stability.report.style import theme_css

TEMPLATES = Path(__file__).parent / "templates"

PLAIN_CSV = 12_000
"""Characters of a figure's table above which the page embeds it compressed (CSV in gzip)."""

LARGEST_CSV = 100_000
"""Compressed bytes above which the page does not embed a table; report.json always contains it."""


def page(report: Mapping[str, Any], figures: Mapping[str, str], findings: str, *, pdf: bool, no_pdf: str = "") -> str:
    """Return the HTML page of a report.

    Args:
        report: The report as JSON data, from `describe`.
        figures: Each figure's themed and labeled SVG, by id.
        findings: The text of findings.json.
        pdf: Whether report.pdf exists next to the page.
        no_pdf: The sentence on why it does not.
    """
    shown = {
        figure["id"]: {"svg": Markup(figures[figure["id"]]), **_data(as_csv(figure["table"]))}
        for section in report["sections"]
        for figure in of_kind("figure", section["blocks"])
    }
    template = environment().get_template("page.html")
    return template.render(report=report, figures=shown, findings=_json_block(findings), pdf=pdf, no_pdf=no_pdf)


def environment() -> Environment:
    """Return the environment of the templates, which escapes every value."""
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["mathml"] = lambda formula: Markup(mathml(formula))
    script = _read("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    templates.globals |= {
        "style": Markup(theme_css() + _read("page.css")),
        "script": Markup(script),
        "script_hash": Markup(f"'sha256-{digest}'"),
    }
    return templates


def as_csv(table: Mapping[str, Any]) -> str:
    """Return a table of the report as CSV; a missing value is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table["columns"])
    writer.writerows(table["rows"])
    return text.getvalue()


def _data(text: str) -> dict[str, str | None]:
    """Return a table as a data URL, None if it would be too long, and the ending of its file name."""
    if len(text) <= PLAIN_CSV:
        return {"csv": f"data:text/csv;charset=utf-8,{quote(text, safe=' ,;:./+=()|*!')}", "ending": "csv"}
    # Without a time stamp, equal tables give equal bytes.
    packed = gzip.compress(text.encode(), mtime=0)
    fits = len(packed) <= LARGEST_CSV
    return {
        "csv": f"data:application/gzip;base64,{base64.b64encode(packed).decode()}" if fits else None,
        "ending": "csv.gz",
    }


def _json_block(findings: str) -> Markup:
    """Return JSON that is safe inside a script element: it cannot end the element or start a comment."""
    plain = json.dumps(json.loads(findings), allow_nan=False)
    return Markup(plain.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _read(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")
