"""Reports: the results of a study as JSON data (report.json), rendered as HTML and PDF."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path

from stability import analysis
from stability.analysis import Findings, Results, findings_text
from stability.registry import InputError
from stability.report import style
from stability.report.comparison import write_comparison
from stability.report.data import ReportData
from stability.report.figures import ReportFigure, svg
from stability.report.html import page
from stability.report.model import describe
from stability.report.pdf import document, why_no_pdf
from stability.report.publish import publish
from stability.report.sections import sections_of
from stability.store import write_files, writing

FORMATS = ("html", "pdf")


__all__ = ["FORMATS", "describe", "publish", "render", "why_no_pdf", "write_comparison", "write_report"]


def write_report(run_dir: str | Path, formats: Collection[str] | None = None) -> dict[str, Path]:
    """Test the claims of a run directory, write the report to RUN_DIR/report and return the paths by kind.

    Nothing is run. The kinds are "json", "findings" and each of *formats*; None means all formats, without the PDF if
    `why_no_pdf` gives a reason. Raises `InputError` if the directory holds no run.
    """
    results = analysis.load_to_show(run_dir)
    where = Path(run_dir)
    return render(results, analysis.analyze(results), where / "report", formats, where / "landscape")


def render(
    results: Results,
    findings: Findings,
    out_dir: Path,
    formats: Collection[str] | None = None,
    grids: Path | None = None,
) -> dict[str, Path]:
    """Write a report to *out_dir* and return the paths of its files by kind; equal input gives equal bytes.

    Each file is replaced atomically.

    Args:
        results: The results of the study.
        findings: The findings of its analysis.
        out_dir: The directory to write to.
        formats: The formats to write. None means all, without the PDF if `why_no_pdf` gives a reason; then the page
            states the reason, and an older PDF in *out_dir*, which would contradict the page, is removed.
        grids: The output folder of `stability landscape`, whose filter directions are drawn too.

    Raises:
        InputError: For an unknown format, an explicitly requested PDF that cannot be made, or a directory that cannot
            be written.
    """
    no_pdf = why_no_pdf()
    if unknown := sorted(set(formats or ()) - set(FORMATS)):
        raise InputError(f"formats: unknown format {unknown[0]!r} (known: {', '.join(FORMATS)})")
    if no_pdf and "pdf" in (formats or ()):
        raise InputError(f"formats: {no_pdf}")
    chosen = formats if formats is not None else [name for name in FORMATS if name != "pdf" or not no_pdf]
    data = ReportData(results, findings, grids)
    sections = sections_of(data)
    drawn = [figure for section in sections for figure in section.figures]
    report = describe(data, [section.to_json() for section in sections])
    text = findings_text(findings)
    files = {
        "json": ("report.json", json.dumps(report, indent=1, allow_nan=False) + "\n"),
        "findings": ("findings.json", text),
    }
    written = {kind: (name, content.encode()) for kind, (name, content) in files.items()}
    if "html" in chosen:
        reason = no_pdf if formats is None else ""
        themed = {item.id: svg(item.figure, item.id, label=item.alt, themed=True) for item in drawn}
        written["html"] = ("index.html", page(report, themed, text, pdf="pdf" in chosen, no_pdf=reason).encode())
        written |= _picture(drawn)
    if "pdf" in chosen:
        written["pdf"] = ("report.pdf", document(report, {item.id: svg(item.figure, item.id) for item in drawn}))
    return _write(out_dir, written, outdated=("report.pdf",) if formats is None and no_pdf else ())


def _picture(drawn: Iterable[ReportFigure]) -> dict[str, tuple[str, bytes]]:
    """Return the figure of the claims as a separate file with a white background, for a slide or a README."""
    claims = next((item for item in drawn if item.id == "forest"), None)
    if claims is None:
        return {}
    markup = svg(claims.figure, claims.id, label=claims.alt)
    white = f"background:{style.LIGHT['page']};"
    return {"picture": ("answer.svg", markup.replace(' style="', f' style="{white}', 1).encode())}


def _write(out_dir: Path, files: dict[str, tuple[str, bytes]], outdated: Iterable[str]) -> dict[str, Path]:
    with writing(f"{out_dir}: the report"):
        for name in outdated:
            (out_dir / name).unlink(missing_ok=True)
    write_files(out_dir, dict(files.values()), "the report")
    return {kind: out_dir / name for kind, (name, _) in files.items()}
