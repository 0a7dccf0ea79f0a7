"""Publication of reports: copies under reports/<study>/ and the ledger, one page that lists them all."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stability.registry import InputError
from stability.report.evidence import RULE, answer, coverage, entries, registered
from stability.report.html import environment
from stability.report.pdf import why_no_pdf
from stability.store import read_manifest, write_atomically, writing
from stability.study import shipped_studies

FILES = ("index.html", "report.pdf", "findings.json", "report.json")
PICTURE = "answer.svg"
"""The figure of the claims; absent for a study without claims."""


def publish(run_dirs: Iterable[str | Path], reports_dir: str | Path = "reports") -> Path:
    """Copy the reports of *run_dirs* to *reports_dir* and return the path of the ledger of all published reports.

    A study's report replaces its previous one. Raises `InputError` if a directory holds no report.
    """
    reports = Path(reports_dir)
    for run_dir in map(Path, run_dirs):
        manifest, source = read_manifest(run_dir), run_dir / "report"
        name = manifest["study"]
        if manifest.get("replication"):
            raise InputError(f"{run_dir}: is a replication; publish the run of {name!r} that it lies in")
        missing = [name for name in FILES if not (source / name).is_file()]
        if missing:
            reason = why_no_pdf() if missing[0] == "report.pdf" else ""
            remedy = reason or f"write it with `stability report {run_dir}`"
            raise InputError(f"{source}: {missing[0]} is missing; {remedy}")
        if name in ("", ".", "..") or Path(name).name != name:
            raise InputError(f"{run_dir}: the study's name {name!r} cannot name a directory")
        _copy(source, reports / name)
    ledger = entries(reports)
    index = reports / "index.html"
    context: dict[str, Any] = {"answer": answer(ledger), "coverage": coverage(ledger, shipped_studies()), "rule": RULE}
    context["registered"] = registered(ledger)
    context["replicated"] = any(entry["agreement"] for entry in ledger)
    text = environment().get_template("index.html").render(entries=ledger, **context)
    _write(index, text.encode())
    return index


def _copy(source: Path, target: Path) -> None:
    for name in (*FILES, PICTURE):
        if (source / name).is_file():
            _write(target / name, (source / name).read_bytes())


def _write(path: Path, content: bytes) -> None:
    with writing(f"{path}:"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
