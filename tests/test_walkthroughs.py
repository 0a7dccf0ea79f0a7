"""From nothing to a report, three times, as the documentation says it."""

from __future__ import annotations

import json

import pytest
from documents import ROOT, follow, start_here

REPORTS = {
    "webdataset": ["pairs-smoke"],
    "embeddings": ["vectors-smoke"],
    "encoder-and-loss": ["towers-smoke", "towers-smoke-smooth_clip"],
}


@pytest.fixture
def nothing(tmp_path, monkeypatch, one_core):
    """An empty folder, a cache of its own, and one core, so that groups train in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STABILITY_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("page", REPORTS)
def test_a_walkthrough_leads_from_nothing_to_a_report(page, nothing, capsys):
    assert follow(ROOT / f"docs/walkthroughs/{page}.md", nothing, start_here) > 3
    for run in REPORTS[page]:
        report = nothing / "runs" / run / "report"
        findings = json.loads((report / "findings.json").read_text())
        assert findings["claims"]
        assert (report / "report.pdf").read_bytes().startswith(b"%PDF")
        assert all(claim["text"] in (report / "index.html").read_text() for claim in findings["claims"])


def test_every_variant_of_one_s_own_runs_as_a_complete_file(nothing, capsys):
    assert follow(ROOT / "docs/extending.md", nothing, start_here) == 5
    said = capsys.readouterr().out
    assert "nearest_match" in said
    assert "sign descent with momentum" in (nothing / "runs/signs-small/report/index.html").read_text()
    assert said.count("siglip's") == 3
