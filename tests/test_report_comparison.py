"""Two runs side by side, and reports of runs that are not finished."""

import io
import json
import re
import shutil
from dataclasses import replace

import pytest
from pypdf import PdfReader
from rich.console import Console

from stability.analysis import analyze
from stability.registry import InputError
from stability.report import render, write_comparison
from stability.report.comparison import compare
from stability.report.terminal import print_verdicts
from stability.vocabulary import VERDICTS


@pytest.fixture(scope="module")
def shifted(closed_form):
    """The same runs with siglip's recall a fifth lower at every noise level, made by another version of torch."""
    siglip = closed_form.steps["run"].isin(closed_form.runs.loc[closed_form.runs["arm"] == "siglip", "run"])
    recall = closed_form.steps["recall_at_1"].where(~siglip, closed_form.steps["recall_at_1"] * 0.3)
    manifest = closed_form.manifest | {"versions": {"python": "3", "torch": "3"}}
    return replace(closed_form, steps=closed_form.steps.assign(recall_at_1=recall), manifest=manifest)


def test_a_run_beside_itself_differs_in_nothing(closed_form):
    same = compare(closed_form, closed_form)
    assert all(claim["same"] for claim in same["claims"])
    assert {claim["moved"] for claim in same["claims"]} <= {"1×", "0"}
    assert all(row["same"] for row in same["provenance"])
    assert same["study_changes"] is None
    assert same["runs"]["shared"] == len(closed_form.runs)
    assert [(row["equal"], row["gap"]) for row in same["runs"]["measures"]] == [(72, "0")] * 2


def test_what_changed_is_shown_where_it_changed(closed_form, shifted):
    found = compare(closed_form, shifted)
    assert found["claims"][0]["primary"]
    speed = next(claim for claim in found["claims"] if claim["id"] == "speed")
    first, second = (next(c for c in analyze(run).claims if c.id == "speed").effect for run in (closed_form, shifted))
    assert float(speed["moved"].rstrip("×")) == pytest.approx(second / first, rel=5e-3)
    assert speed["answers"][0]["effect"] != speed["answers"][1]["effect"]
    by_label = {row["label"]: row for row in found["provenance"]}
    assert by_label["torch"]["both"] == ["2", "3"]
    assert not by_label["torch"]["same"]
    assert by_label["python"]["same"]
    recall = next(row for row in found["runs"]["measures"] if row["measure"] == "Recall@1")
    assert recall["runs"] == 72
    assert recall["equal"] == 48
    assert float(recall["gap"]) > 0.1


def test_runs_of_two_studies_are_refused(closed_form):
    other = replace(closed_form, study=closed_form.study.model_copy(update={"name": "other"}))
    with pytest.raises(InputError, match="B: a run of the study 'other'; allowed: 'test', as A"):
        compare(closed_form, other)


def test_a_changed_study_file_is_shown_as_a_diff(closed_form):
    text = closed_form.study.text.replace("seeds = 6", "seeds = 7")
    changed = replace(closed_form, study=closed_form.study.model_copy(update={"text": text}))
    diff = compare(closed_form, changed, ("old", "new"))["study_changes"].splitlines()
    assert "-seeds = 6" in diff
    assert "+seeds = 7" in diff


def test_two_directories_are_written_beside_the_second(tiny_run, tmp_path):
    copies = [shutil.copytree(tiny_run, tmp_path / name) for name in ("before", "after")]
    paths = write_comparison(*copies)
    assert paths["html"] == tmp_path / "after-against-before" / "index.html"
    assert "No verdict differs." in paths["html"].read_text()
    assert json.loads(paths["json"].read_text(), parse_constant=pytest.fail)["names"] == ["before", "after"]
    assert write_comparison(*copies, tmp_path / "here")["json"].read_bytes() == paths["json"].read_bytes()
    with pytest.raises(InputError, match="given twice"):
        write_comparison(copies[0], copies[0])


@pytest.fixture(scope="module")
def unfinished(closed_form):
    """Clip at batch 8 lacks its last two seeds, one of which failed; siglip at batch 16 lacks one under noise."""
    runs = closed_form.runs.copy()
    cell = (runs["arm"] == "clip") & (runs["batch_size"] == 8) & (runs["noise"] == 0)
    runs.loc[cell & (runs["seed"] == 5), "status"] = "planned"
    runs.loc[cell & (runs["seed"] == 4), "status"] = "failed"
    late = (runs["arm"] == "siglip") & (runs["batch_size"] == 16) & (runs["noise"] == 0.4) & (runs["seed"] == 5)
    runs.loc[late, "status"] = "planned"
    gone = runs.loc[runs["status"] != "finished", "run"]
    return replace(closed_form, runs=runs, steps=closed_form.steps[~closed_form.steps["run"].isin(gone)])


def test_an_unfinished_run_is_stamped_with_what_is_missing_in_both_renderings(unfinished, tmp_path):
    written = render(unfinished, analyze(unfinished), tmp_path)
    told = json.loads(written["json"].read_text())["interim"]
    assert told["sentence"].startswith("2 of 72 runs are not finished")
    rows = [[cell["text"] for cell in row] for row in told["missing"]["rows"]]
    assert rows == [["clip", "8", "0", "4", "1", "1", "6"], ["siglip", "16", "0.4", "5", "0", "1", "6"]]
    page = written["html"].read_text()
    assert re.search(r"<strong>INTERIM</strong> 2 of 72 runs", page)
    assert "What is missing, by cell" in page
    paper = "".join(sheet.extract_text() for sheet in PdfReader(written["pdf"]).pages)
    assert "INTERIM 2 of 72 runs" in paper
    assert "What is missing" in paper


def test_a_finished_run_has_no_stamp(closed_form_report):
    assert "INTERIM" not in closed_form_report["html"].read_text()
    assert json.loads(closed_form_report["json"].read_text())["interim"] is None


def printed(findings, **options):
    console = Console(file=io.StringIO(), highlight=False, **options)
    print_verdicts(console, findings)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def all_verdicts(closed_form):
    findings = analyze(closed_form)
    claims = [replace(findings.claims[0], verdict=verdict, primary=False, text="It’s “so” −1×") for verdict in VERDICTS]
    return replace(findings, claims=tuple(claims))


@pytest.mark.parametrize("width", [80, 200])
def test_verdicts_fit_eighty_columns_and_are_ascii_where_piped(all_verdicts, width):
    out = printed(all_verdicts, width=width)
    assert out.isascii()
    assert max(map(len, out.splitlines())) <= 80
    for verdict, shown in VERDICTS.items():
        assert f"\n{shown.ascii} {verdict} " in f"\n{out}"
    assert 'It\'s "so" -1x' in out


def test_a_terminal_gets_marks_and_colours_unless_no_color_is_set(all_verdicts, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = {"width": 80, "force_terminal": True, "color_system": "standard", "legacy_windows": False}
    assert "\x1b[32m✔ supported" in printed(all_verdicts, **shown)
    monkeypatch.setenv("NO_COLOR", "1")
    plain = printed(all_verdicts, **shown)
    assert "✔ supported" in plain
    assert not re.search(r"\x1b\[3\dm", plain)
