"""From nothing to a report, three times, as the documentation says it."""

from __future__ import annotations

import html
import json

import pytest
from documents import ROOT, blocks, follow, start_here

from stability.execute import run
from stability.report import write_report
from stability.study import parse_study

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
    for name in REPORTS[page]:
        report = nothing / "runs" / name / "report"
        findings = json.loads((report / "findings.json").read_text())
        assert findings["claims"]
        assert (report / "report.pdf").read_bytes().startswith(b"%PDF")
        assert all(claim["text"] in (report / "index.html").read_text() for claim in findings["claims"])


QUESTIONS = {
    block.title: block.code
    for block in blocks((ROOT / "docs/walkthroughs/questions.md").read_text(encoding="utf-8"))
    if block.language == "toml"
}


def test_there_are_six_questions_of_at_most_forty_lines():
    assert len(QUESTIONS) == 6
    assert max(len(text.splitlines()) for text in QUESTIONS.values()) <= 40


@pytest.mark.parametrize("title", QUESTIONS)
def test_a_question_about_training_that_breaks_runs_to_its_report(title, nothing):
    text = QUESTIONS[title]
    study = parse_study(text, title, title.removesuffix(".toml"), "smoke")
    run(study, device="cpu", out=nothing / "run")
    page = write_report(nothing / "run", ["html"])["html"].read_text(encoding="utf-8")
    assert all(html.escape(claim.text, quote=False) in page.replace("&#39;", "'") for claim in study.claims)
    # Also as it is without a scale.
    assert parse_study(text, title, title).train.steps >= 300


def test_every_variant_of_one_s_own_runs_as_a_complete_file(nothing, capsys):
    assert follow(ROOT / "docs/extending.md", nothing, start_here) == 5
    said = capsys.readouterr().out
    assert "nearest_match" in said
    assert "sign descent with momentum" in (nothing / "runs/signs-small/report/index.html").read_text()
    assert said.count("siglip's") == 3
