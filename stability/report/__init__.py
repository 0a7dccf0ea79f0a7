"""Reports: one model of what a study found (report.json), rendered as a page (HTML) and as a paper (PDF)."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path

from stability import analysis
from stability.analysis import Findings, Results, findings_text
from stability.registry import InputError
from stability.report import style
from stability.report.comparison import write_comparison
from stability.report.figures import ReportFigure, draw, svg
from stability.report.html import page
from stability.report.model import describe
from stability.report.pdf import document, why_no_pdf
from stability.report.publish import publish
from stability.store import write_atomically

FORMATS = ("html", "pdf")


__all__ = ["FORMATS", "describe", "publish", "render", "why_no_pdf", "write_comparison", "write_report"]


def write_report(run_dir: str | Path, formats: Collection[str] | None = None) -> dict[str, Path]:
    """Return the paths of the files written to RUN_DIR/report, by kind: json, findings, and each of *formats*.

    None are all formats, without the PDF where `why_no_pdf` gives a reason.

    Reads the run directory and tests its claims; nothing is run. Raises `InputError` if no run lies there.
    """
    results = analysis.load_results(run_dir)
    where = Path(run_dir)
    return render(results, analysis.analyze(results), where / "report", formats, where / "landscape")


def render(
    results: Results,
    findings: Findings,
    out_dir: Path,
    formats: Collection[str] | None = None,
    grids: Path | None = None,
) -> dict[str, Path]:
    """Return the paths of the files written to *out_dir*; equal input gives equal bytes.

    *formats* None are all, without the PDF where `why_no_pdf` gives a reason; the page then says so, and an older PDF
    in *out_dir*, which would contradict the page, is removed. *grids* is the folder that `stability landscape` wrote
    to; what it holds of filter directions is drawn too.

    Each file is replaced as a whole. Raises `InputError` for an unknown format, for a PDF asked for by name that cannot
    be made, or a directory that cannot be written.
    """
    no_pdf = why_no_pdf()
    if unknown := sorted(set(formats or ()) - set(FORMATS)):
        raise InputError(f"formats: unknown format {unknown[0]!r} (known: {', '.join(FORMATS)})")
    if no_pdf and "pdf" in (formats or ()):
        raise InputError(f"formats: {no_pdf}")
    chosen = formats if formats is not None else [name for name in FORMATS if name != "pdf" or not no_pdf]
    drawn = draw(results, findings, grids)
    report = describe(results, findings, drawn)
    found = findings_text(findings)
    files = {
        "json": ("report.json", json.dumps(report, indent=1, allow_nan=False) + "\n"),
        "findings": ("findings.json", found),
    }
    written = {kind: (name, text.encode()) for kind, (name, text) in files.items()}
    if "html" in chosen:
        aside = no_pdf if formats is None else ""
        themed = {one.id: svg(one.figure, one.id, label=one.alt, themed=True) for one in drawn}
        written["html"] = ("index.html", page(report, themed, found, pdf="pdf" in chosen, no_pdf=aside).encode())
        written |= _picture(drawn)
    if "pdf" in chosen:
        written["pdf"] = ("report.pdf", document(report, {one.id: svg(one.figure, one.id) for one in drawn}))
    return _write(out_dir, written, outdated=("report.pdf",) if formats is None and no_pdf else ())


def _picture(drawn: Iterable[ReportFigure]) -> dict[str, tuple[str, bytes]]:
    """Return the figure of the claims as a file of its own, on white, for a slide or a README."""
    claims = next((one for one in drawn if one.section == "claims"), None)
    if claims is None:
        return {}
    markup = svg(claims.figure, claims.id, label=claims.alt)
    white = f"background:{style.LIGHT['page']};"
    return {"picture": ("answer.svg", markup.replace(' style="', f' style="{white}', 1).encode())}


def _write(out_dir: Path, files: dict[str, tuple[str, bytes]], outdated: Iterable[str]) -> dict[str, Path]:
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        for name in outdated:
            (out_dir / name).unlink(missing_ok=True)
        for name, content in files.values():
            write_atomically(out_dir / name, content)
    except OSError as error:
        raise InputError(f"{out_dir}: the report cannot be written ({error.strerror or error})") from error
    return {kind: out_dir / name for kind, (name, _) in files.items()}
