"""The report as one HTML file: no request leaves it, every string of the study is escaped, it reads on any screen."""

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

from stability.report.style import theme_css

TEMPLATES = Path(__file__).parent / "templates"

PLAIN_CSV = 12_000
"""Bytes of a figure's table beyond which the page carries it compressed (CSV in gzip)."""

LARGEST_CSV = 100_000
"""Compressed bytes beyond which the page does not carry a table at all; report.json always does."""


def page(report: Mapping[str, Any], figures: Mapping[str, str], found: str, *, pdf: bool, no_pdf: str = "") -> str:
    """Return the page of a report.

    *figures* holds each figure's themed SVG with its label, *found* is the text of findings.json, *pdf* whether
    report.pdf lies beside the page, and *no_pdf* the sentence that says why it does not.
    """
    shown = {
        figure["id"]: {"svg": Markup(figures[figure["id"]]), **_data(as_csv(figure["table"]))}
        for section in report["sections"]
        for figure in section["figures"]
    }
    template = environment().get_template("page.html")
    return template.render(report=report, figures=shown, findings=_json_block(found), pdf=pdf, no_pdf=no_pdf)


def environment() -> Environment:
    """Return the templates' environment; whatever a template is given is escaped."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    script = _read("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    made.globals |= {
        "style": Markup(theme_css() + _read("page.css")),
        "script": Markup(script),
        "script_hash": Markup(f"'sha256-{digest}'"),
    }
    return made


def as_csv(table: Mapping[str, Any]) -> str:
    """Return a table of the report as CSV; a missing value is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table["columns"])
    writer.writerows(table["rows"])
    return text.getvalue()


def _data(text: str) -> dict[str, str | None]:
    """Return a table as a link that the page itself holds, and how its file ends; None where it would be too long."""
    if len(text) <= PLAIN_CSV:
        return {"csv": f"data:text/csv;charset=utf-8,{quote(text, safe=' ,;:./+=()|*!')}", "ending": "csv"}
    # Without a time of its own, equal tables give equal bytes.
    packed = gzip.compress(text.encode(), mtime=0)
    known = len(packed) <= LARGEST_CSV
    return {
        "csv": f"data:application/gzip;base64,{base64.b64encode(packed).decode()}" if known else None,
        "ending": "csv.gz",
    }


def _json_block(found: str) -> Markup:
    """Return JSON that may stand in a script element: nothing in it can end the element or start a comment."""
    plain = json.dumps(json.loads(found), allow_nan=False)
    return Markup(plain.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _read(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")
