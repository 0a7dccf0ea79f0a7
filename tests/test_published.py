"""The published reports belong to the studies that lie beside them, and the list leads to each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stability.report.evidence import answer, entries
from stability.study import load_study

REPORTS = Path(__file__).parent.parent / "reports"
PUBLISHED = sorted(path.parent.name for path in REPORTS.glob("*/findings.json"))


def test_the_quickstart_is_published():
    assert "quickstart" in PUBLISHED


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_report_is_of_the_study_as_it_stands(name):
    findings = json.loads((REPORTS / name / "findings.json").read_text())
    study = load_study(REPORTS.parent / "studies" / f"{name}.toml", findings["scale"])
    assert findings["study_hash"] == study.hash
    if again := findings.get("replications"):
        assert {each["name"]: each["study_hash"] for each in again} == {
            each.replication: each.hash for each in study.replications
        }
    assert [claim["id"] for claim in findings["claims"]] == [claim.id for claim in study.claims]
    assert f'href="{name}/index.html"' in (REPORTS / "index.html").read_text()
    assert all((REPORTS / name / file).stat().st_size < 1.5e6 for file in ("index.html", "report.pdf", "report.json"))


def test_the_readme_gives_the_answer_of_the_ledger():
    quoted = [line[1:] for line in (REPORTS.parent / "README.md").read_text().splitlines() if line.startswith(">")]
    assert " ".join("".join(quoted).split()) == answer(entries(REPORTS))
