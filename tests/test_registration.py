"""Registration: what was claimed before the first step of a run is kept, and what was changed after it is said."""

from __future__ import annotations

import json
import re
import shutil
from io import StringIO

import pandas as pd
import pytest
from rich.console import Console

from stability import analysis
from stability.execute import run
from stability.exports import export
from stability.grid import groups_of, runs_of
from stability.registration import (
    DAMAGED,
    NOT_RECORDED,
    Record,
    read_record,
    record_look,
    registration_of,
    with_begun,
    with_claims,
)
from stability.report import describe
from stability.report.data import ReportData
from stability.report.sections import sections_of
from stability.report.terminal import print_verdicts
from stability.store import read_manifest, write_manifest
from stability.study import parse_study, with_looks
from tests.command_line import call

SECOND = """
[[claims]]
id = "second"
text = "SigLIP recalls at least as much"
measure = "recall_at_1"
contrast = "difference"
compare = ["siglip-log-b", "clip"]
expect = "equal"
margin = 0.5
"""
SCALES = "\n[scales.smoke]"


@pytest.fixture(scope="module")
def text(brief_text):
    """The brief study with a second claim, in few runs."""
    fewer = brief_text.replace("batch_size = [8, 16]", "batch_size = [8]").replace(
        "noise = [0.0, 0.4]", "noise = [0.0]"
    )
    return fewer.replace(SCALES, SECOND + SCALES)


def study_of(text):
    return parse_study(text, "t.toml", "t")


def after(log, study):
    """The log after `stability run` of a study."""
    return with_begun(with_claims(log, study), groups_of(runs_of(study), lambda run: 99))


def standing(log, study, looks=()):
    runs = {arm: [run.id for run in runs_of(study) if run.arm == arm] for arm in study.grid.arms}
    return registration_of(study, Record(tuple(log), tuple(looks)), runs)


def looked(log, study, tmp_path):
    """The looks after one look at the results."""
    manifest = {"registration": log, "groups": [{"status": "finished"}]}
    record_look(tmp_path, manifest, study)
    return read_record(manifest, tmp_path).looks


# --- the rule, on logs -----------------------------------------------------------------------------------------------


def test_a_claim_as_it_stood_before_the_first_step_is_registered_and_nothing_is_recorded_twice(text):
    study = study_of(text)
    log = after(None, study)
    assert [event["event"] for event in log] == ["claims", "begun"]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", event["at"]) for event in log)
    assert {name: one.status for (_, name), one in standing(log, study).standings.items()} == {
        "recall": "registered",
        "second": "registered",
    }
    assert after(log, study) == log
    assert after(log, study_of(text + "\n# a comment\n")) == log


@pytest.mark.parametrize(
    ("old", "new", "note"),
    [
        (
            "SigLIP recalls more",
            "SigLIP recalls a lot more",
            "text was “SigLIP recalls more”, is “SigLIP recalls a lot",
        ),
        ("margin = 0.25", "margin = 0.2", "margin was 0.25, is 0.2"),
        ('expect = "higher"', 'expect = "lower"', 'expect was "higher", is "lower"'),
        ("margin = 0.25", 'margin = 0.25\nreduction = "best"', 'reduction was not set, is "best"'),
        ("margin = 0.25", 'margin = 0.25\ntransform = "linear"', 'transform was not set, is "linear"'),
        ('contrast = "difference"', 'contrast = "spread"', 'contrast was "difference", is "spread"'),
        ('measure = "recall_at_1"', 'measure = "zero_shot_accuracy"', 'measure was "recall_at_1", is'),
        ('["siglip-log-b", "clip"]\nexpect', '["clip", "siglip-log-b"]\nexpect', "compare was"),
    ],
)
def test_any_key_that_can_change_a_verdict_makes_a_claim_exploratory_until_it_is_undone(text, old, new, note):
    study = study_of(text)
    edited = study_of(text.replace(old, new, 1))
    log = after(after(None, study), edited)
    assert [event["event"] for event in log] == ["claims", "begun", "claims"]
    found = standing(log, edited)
    assert found.of("claims", "recall").status == "exploratory"
    assert found.of("claims", "recall").note.startswith("Changed after the first step of runs that test it: ")
    assert note in found.of("claims", "recall").note
    assert found.of("claims", "second").status == "registered"
    undone = after(log, study)
    assert len(undone) == 4
    assert standing(undone, study).of("claims", "recall").status == "registered"
    # A manifest whose study was edited by hand, without a run.
    assert standing(after(None, study), edited).of("claims", "recall").status == "exploratory"


def test_an_edit_before_the_first_step_is_free_and_the_source_of_a_claim_always(text):
    study = study_of(text)
    edited = study_of(text.replace("margin = 0.25", "margin = 0.2", 1))
    log = after(with_claims(None, study), edited)
    assert [event["event"] for event in log] == ["claims", "claims", "begun"]
    assert standing(log, edited).of("claims", "recall").status == "registered"
    sourced = study_of(text.replace("margin = 0.25", 'margin = 0.25\nsource = "a page"', 1))
    assert standing(after(None, study), sourced).of("claims", "recall").status == "registered"


def test_claims_and_rankings_added_later_are_exploratory_and_those_deleted_are_withdrawn(text):
    study, less = study_of(text), study_of(text.replace(SECOND, ""))
    found = standing(after(after(None, less), study), study)
    assert found.of("claims", "second").note == "Added after the first step of runs that test it."
    found = standing(after(after(None, study), less), less)
    assert [(one.table, one.name) for one in found.withdrawn] == [("claims", "second")]
    assert found.withdrawn[0].text.startswith("“SigLIP recalls at least as much” (measure")
    assert standing(after(after(after(None, study), less), study), study).withdrawn == ()
    ranked = study_of(text.replace(SCALES, '[[rankings]]\nmeasure = "recall_at_1"\n' + SCALES))
    assert standing(after(None, ranked), ranked).of("rankings", "recall_at_1").status == "registered"
    assert standing(after(after(None, study), ranked), ranked).of("rankings", "recall_at_1").status == "exploratory"


def test_other_runs_register_anew_and_more_cells_of_the_same_runs_do_not(text):
    study = study_of(text)
    longer = study_of(text.replace("steps = 8", "steps = 12").replace("margin = 0.25", "margin = 0.2"))
    assert standing(after(after(None, study), longer), longer).of("claims", "recall").status == "registered"
    noisier = study_of(text.replace("noise = [0.0]", "noise = [0.0, 0.4]"))
    note = standing(after(after(None, study), noisier), noisier).of("claims", "recall").note
    assert note.endswith("the runs that test it (grid.noise was not set, is [0.0, 0.4]).")
    arms = study_of(text.replace('arms = ["clip", "siglip-log-b"]', 'arms = ["clip", "siglip", "siglip-log-b"]'))
    assert standing(after(after(None, study), arms), arms).of("claims", "recall").status == "registered"


def test_seeds_are_free_before_a_look_and_after_it_at_registered_looks_alone(text, tmp_path):
    study, more = study_of(text), study_of(text.replace("seeds = 3", "seeds = 5"))
    log = after(None, study)
    assert standing(after(log, more), more).of("claims", "recall").status == "registered"
    looks = looked(log, study, tmp_path)
    assert looked(log, study, tmp_path) == looks
    found = standing(after(log, more), more, looks)
    assert found.of("claims", "recall").note.endswith("at no registered look: 3 seeds, now 5.")
    assert found.first_look == 3
    assert standing(after(log, more), study, looks).of("claims", "recall").status == "registered"
    first, second = (with_looks(study, (3, 5), seeds) for seeds in (3, 5))
    log = after(None, first)
    looks = looked(log, first, tmp_path / "..")
    assert standing(after(log, second), second, looks).of("claims", "recall").status == "registered"


def test_edits_by_hand_are_detected(text, tmp_path):
    study = study_of(text)
    log = json.loads(json.dumps(after(None, study)))
    assert read_record({"registration": log}, tmp_path).damage == ""
    for edit in (
        lambda events: events[0].update(at="2020-01-01T00:00:00Z"),
        lambda events: events[0]["tables"]["claims"]["recall"].update(margin=0.2),
        lambda events: events.pop(0),
        lambda events: events.reverse(),
        lambda events: events.append(3),
    ):
        damaged = json.loads(json.dumps(log))
        edit(damaged)
        record = read_record({"registration": damaged}, tmp_path)
        assert record.damage == DAMAGED
        found = registration_of(study, record, {})
        assert (found.recorded, found.of("claims", "recall").status) == (False, "not recorded")
        # It is not mended by running again.
        assert after(damaged, study) == damaged
    (tmp_path / "looks.json").write_text("[1]")
    assert read_record({"registration": log}, tmp_path).damage == DAMAGED


# --- run directories, findings and pages -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    return run(study_of(text), "cpu", out=tmp_path_factory.mktemp("runs") / "t")


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "t", ignore=shutil.ignore_patterns("looks.json"))
    return tmp_path / "t"


def shown(where):
    """The findings of a run directory, its report as JSON data, and its verdicts in a terminal."""
    results = analysis.load_to_show(where)
    findings = analysis.analyze(results, checks=False)
    data = ReportData(results, findings)
    report = describe(data, [one.to_json() for one in sections_of(data) if one.id == "claims"])
    console = Console(file=StringIO(), width=200)
    print_verdicts(console, findings)
    return findings.to_json(), report, console.file.getvalue()


def test_a_run_keeps_its_claims_before_the_first_step_and_says_so(text, finished):
    log = read_manifest(finished)["registration"]
    assert [event["event"] for event in log] == ["claims", "begun"]
    assert log[0]["tables"]["claims"]["recall"]["margin"] == 0.25
    findings, report, terminal = shown(finished)
    assert [claim["registration"] for claim in findings["claims"]] == ["registered", "registered"]
    assert findings["registration"] == {"recorded": True, "seeds_at_first_look": 3, "withdrawn": []}
    lead = "Each claim was recorded, with measure and margin, before the first step of the runs that test it. "
    assert report["sections"][0]["lead"] == f"{lead}The results were first looked at with 3 seeds."
    assert {answer["exploratory"] for answer in report["answers"]} == {None}
    assert "xplorat" not in terminal
    # A resumed run and another look change nothing.
    run(study_of(text), "cpu", out=finished)
    assert read_manifest(finished)["registration"] == log
    assert shown(finished)[0] == findings


def test_an_interrupted_run_keeps_what_was_claimed_before_it(text, tmp_path):
    class Enough(Exception):
        pass

    def stop(groups):
        raise Enough

    from stability.execute import Callbacks

    edited = text.replace("margin = 0.25", "margin = 0.2")
    with pytest.raises(Enough):
        run(study_of(text), "cpu", out=tmp_path / "t", callbacks=Callbacks(begin=stop))
    run(study_of(edited), "cpu", out=tmp_path / "t")
    assert [event["event"] for event in read_manifest(tmp_path / "t")["registration"]] == ["claims", "begun", "claims"]
    assert shown(tmp_path / "t")[0]["claims"][0]["registration"] == "exploratory"


def test_an_edit_after_the_runs_is_said_on_every_page(text, copy, tmp_path):
    run(study_of(text.replace("margin = 0.25", "margin = 0.2")), "cpu", out=copy)
    findings, report, terminal = shown(copy)
    note = "Changed after the first step of runs that test it: margin was 0.25, is 0.2."
    assert findings["claims"][0]["registration_note"] == note
    assert report["answers"][0]["exploratory"] == note
    assert report["sections"][0]["lead"].startswith("1 of 2 claims were recorded")
    assert report["sections"][0]["blocks"][0]["rows"][0][0]["note"].endswith(", exploratory")
    assert note in " ".join(terminal.split())
    exported = pd.read_csv(export(copy, out=tmp_path / "e")["findings"])
    assert exported["registration"].tolist() == ["exploratory", "registered"]
    assert exported["registration_note"][0] == note


def test_a_withdrawn_claim_is_listed_and_its_share_of_the_error_rate_stays(text, copy):
    run(study_of(text.replace(SECOND, "")), "cpu", out=copy)
    findings, report, terminal = shown(copy)
    assert [one["id"] for one in findings["registration"]["withdrawn"]] == ["second"]
    assert findings["claims"][0]["confidence"] == pytest.approx(1 - 0.05 / 2)
    assert "Withdrawn after the runs" in json.dumps(report["sections"])
    assert "withdrawn after the runs: second" in terminal


def test_a_directory_without_a_record_claims_none_and_records_from_then_on(text, copy):
    manifest = read_manifest(copy)
    del manifest["registration"]
    write_manifest(copy, manifest)
    findings, report, terminal = shown(copy)
    assert findings["registration"] == {"recorded": False, "note": NOT_RECORDED}
    assert report["sections"][0]["lead"] == f"Registration not recorded. {NOT_RECORDED}"
    assert "registration not recorded" in terminal
    assert not (copy / "looks.json").exists()
    run(study_of(text), "cpu", out=copy)
    log = read_manifest(copy)["registration"]
    assert [event["event"] for event in log] == ["unrecorded", "claims"]
    findings, report, _ = shown(copy)
    assert [claim["registration"] for claim in findings["claims"]] == ["not recorded", "not recorded"]
    assert "Of 2, no record was kept." in report["sections"][0]["lead"]


def test_verify_names_a_record_that_was_edited_by_hand(copy):
    manifest = read_manifest(copy)
    manifest["registration"][0]["tables"]["claims"]["recall"]["margin"] = 0.2
    write_manifest(copy, manifest)
    called = call("verify", str(copy), "--groups", "1")
    assert called.code == 1
    assert "was edited or damaged" in " ".join(called.err.split())
    assert "nothing was trained again" in called.out


def test_seeds_added_after_a_report_are_exploratory(text, copy):
    shown(copy)
    run(study_of(text.replace("seeds = 3", "seeds = 4")), "cpu", out=copy)
    findings, report, _ = shown(copy)
    assert {claim["registration"] for claim in findings["claims"]} == {"exploratory"}
    assert findings["registration"]["seeds_at_first_look"] == 3
    assert "3 seeds, now 4" in report["answers"][0]["exploratory"]
