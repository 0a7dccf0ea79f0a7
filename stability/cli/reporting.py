"""Reads a run directory, writes its report and prints its verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stability.cli.terminal import console_to, print_error


def load_custom(loss: str, encoders: Sequence[str] | None, optimizers: Sequence[str] | None) -> None:
    """Load the files of the user's loss, encoders and optimizers, needed to read a finished run that used them."""
    from stability.plugins import load_encoders, load_optimizers, load_plugin, read_plugin

    if loss:
        load_plugin(read_plugin(loss))
    load_encoders(encoders or ())
    load_optimizers(optimizers or ())


def write_report(where: Path, as_json: bool = False) -> int:
    """Write the report, print the verdicts and the path (or findings.json alone), and return the exit code."""
    from stability.analysis import analyze, load_to_show
    from stability.report import render, why_no_pdf
    from stability.report.terminal import print_verdicts

    console = console_to()
    notices = console_to(stderr=as_json)
    results = load_to_show(
        where, lambda sentence: notices.print(sentence, style="yellow", soft_wrap=True, markup=False)
    )
    findings = analyze(results)
    with notices.status("writing the report"):
        paths = render(results, findings, where / "report", grids=where / "landscape")
    if as_json:
        print(paths["findings"].read_text(encoding="utf-8"), end="")  # noqa: T201
    else:
        print_verdicts(console, findings)
    failed = findings.provenance["failed"]
    if failed:
        planned = findings.provenance["planned"]
        print_error(f"{failed} of {planned} runs failed; their tracebacks are in {where / 'manifest.json'}")
    if not as_json:
        console.print(f"report: {paths['html']}", soft_wrap=True, markup=False)
        if "pdf" not in paths:
            console.print(why_no_pdf().replace("RUN_DIR", str(where)), style="yellow", soft_wrap=True, markup=False)
    return 1 if failed else 0
