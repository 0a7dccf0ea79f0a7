"""The section of the provenance: versions, device and seeds, and what it takes to reproduce the report."""

from __future__ import annotations

from stability.analysis import Findings, Results
from stability.report.blocks import Code, Fact, Facts, Part
from stability.report.sections.registry import Blocks, ReportData, section


@section(order=200, title="Provenance")
def provenance(data: ReportData) -> Blocks:
    """Yield the provenance of the results, the command and the study file."""
    yield Facts([Fact(label, value) for label, value in provenance_rows(data.results, data.findings)])
    yield Part("To reproduce", (Code(data.findings.provenance["command"]),))
    yield Part("The study file", (Code(data.results.study.text, long=True),))


def _tuning_seeds(results: Results) -> list[tuple[str, str]]:
    if not results.tuning:
        return []
    first, last = results.tuning.tried["seed"].min(), results.tuning.tried["seed"].max()
    count = last - first + 1
    return [("Tuning seeds", f"{count} ({first} to {last}), shared by all arms and settings, none of them a test seed")]


def provenance_rows(results: Results, findings: Findings) -> list[list[str]]:
    """Return the provenance of the results as pairs of label and value."""
    provenance = findings.provenance
    device, first = provenance["device"], results.study.grid.first_seed
    versions = ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())
    counts = ", ".join(f"{provenance[word]} {word}" for word in ("planned", "finished", "diverged", "failed"))
    pairs = [
        ("Study", f"{findings.study}, scale {findings.scale}"),
        ("Study hash", findings.study_hash),
        ("Runs", f"{counts} (diverged runs count as finished)"),
        ("Seeds", f"{provenance['seeds']} ({first} to {first + provenance['seeds'] - 1}), shared by all arms"),
        *_tuning_seeds(results),
        ("Device", f"{device['type']}, {device['model']}"),
        ("Versions", versions),
        ("Commit", provenance["git_commit"]),
    ]
    return [[label, str(value)] for label, value in pairs if value]
