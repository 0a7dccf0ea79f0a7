"""Replications: the same claims on other data or other seeds, run, tested and reported beside the study."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stability import analysis
from stability.execute import run
from stability.execute.verifying import verify
from stability.grid import runs_of, tuning_runs_of
from stability.registry import InputError
from stability.replication_agreement import agreement
from stability.report import describe, publish, render
from stability.report.data import ReportData
from stability.store import read_manifest, read_study, replications_in
from stability.study import Study, load_study, parse_study, with_loss
from stability.study.tuning_grid import FIRST_TUNING_SEED
from stability.train.probe_runner import selects
from tests.report_blocks import section_in, texts_in

AGAIN = """
[replications.seeds]
grid.first_seed = 100

[replications.latent]
data = { name = "latent", pairs = 64 }
model.text = { name = "mlp", width = 8, depth = 1 }
grid.seeds = 2
"""


@pytest.fixture(scope="module")
def text(brief_text):
    """The brief study with two replications."""
    return brief_text + AGAIN


@pytest.fixture(scope="module")
def study(text):
    return parse_study(text, "t.toml", "t")


@pytest.fixture(scope="module")
def finished(study, tmp_path_factory):
    return run(study, "cpu", out=tmp_path_factory.mktemp("runs") / "t")


def files(run_dir: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in run_dir.rglob("*.parquet")}


# --- the study file --------------------------------------------------------------------------------------------------


def test_a_replication_is_the_study_with_its_overrides_and_leaves_the_study_as_it_was(text, study):
    seeds, latent = study.replications
    assert study.hash == parse_study(text.replace(AGAIN, ""), "t.toml", "t").hash
    assert [run.seed for run in runs_of(seeds)][:3] == [100, 101, 102]
    assert {run.id for run in runs_of(seeds)}.isdisjoint(run.id for run in runs_of(study))
    assert (latent.data.name, latent.data.options) == ("latent", {"pairs": 64})
    assert latent.model.text.options == {"width": 8, "depth": 1}
    assert latent.model.image == study.model.image
    assert (seeds.claims, latent.claims) == (study.claims, study.claims)
    assert latent.changes == (
        'data.name = "latent", data.pairs = 64, model.text.name = "mlp", model.text.width = 8, model.text.depth = 1, '
        "grid.seeds = 2"
    )


def test_a_replication_is_the_study_that_says_the_same_at_the_top(text):
    written = text.replace(AGAIN, "").replace("seeds = 3", "seeds = 3\nfirst_seed = 100")
    assert parse_study(text, "t.toml", "t").replications[0].hash == parse_study(written, "t.toml", "t").hash


def test_the_overrides_of_a_scale_come_first_and_may_reach_into_a_replication(text):
    small = parse_study(text, "t.toml", "t", "smoke")
    assert [each.grid.seeds for each in (small, *small.replications)] == [2, 2, 2]
    assert {each.train.steps for each in (small, *small.replications)} == {4}
    reached = text.replace("[scales.smoke]", "[scales.smoke]\nreplications.latent.grid.seeds = 5")
    assert parse_study(reached, "t.toml", "t", "smoke").replications[1].grid.seeds == 5
    assert parse_study(reached, "t.toml", "t").replications[1].grid.seeds == 2


def test_another_dataset_takes_no_option_of_the_first_but_keeps_how_it_is_corrupted(text):
    fresh = text.replace('name = "digits"', 'name = "shapes"\npairs = 64\ncorruption = "fresh"')
    again = '[replications.digits]\ndata = { name = "digits" }'
    (digits,) = parse_study(fresh.replace(AGAIN, again), "t.toml", "t").replications
    assert (digits.data.options, digits.data.corruption) == ({}, "fresh")


def test_the_search_of_a_replication_has_seeds_of_its_own(text):
    tuned = text.replace("[probes.retrieval]", "[tune]\nlr = [0.01, 0.02]\nseeds = 2\n[probes.retrieval]")
    study = parse_study(tuned, "t.toml", "t")
    searched = [{run.seed - FIRST_TUNING_SEED for run in tuning_runs_of(each)} for each in (study, *study.replications)]
    assert searched == [{0, 1}, {100, 101}, {0, 1}]


def test_a_probe_of_the_first_seeds_reads_those_of_the_replication(text):
    first = text.replace("every = 4\n", "every = 4\n[probes.geometry]\nseeds = 1\n")
    seeds = parse_study(first, "t.toml", "t").replications[0]
    assert {run.seed for run in runs_of(seeds) if selects(seeds, "geometry", run)} == {100}
    assert {run.seed for run in runs_of(seeds) if selects(seeds, "retrieval", run)} == {100, 101, 102}


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("[replications.x]", r"t\.toml: replications\.x: is the study itself; allowed: other data, or other seeds"),
        (
            "[replications.x]\ngrid.seeds = 4",
            r"x: has the runs of the study at 3 of its 4 seeds; .* grid\.first_seed from 3 on",
        ),
        (
            "[replications.x]\ngrid.seedz = 4",
            r"t\.toml: replications\.x\.grid\.seedz: unknown key; did you mean 'seeds'",
        ),
        (
            "[replications.x]\ndata.name = 'digit'",
            r"replications\.x\.data\.name: unknown dataset 'digit'; did you mean",
        ),
        ("[replications.x]\ndata.pears = 4", r"replications\.x\.data\.pears: dataset 'digits' has no such option"),
        ("[replications.x]\nclaims = []", r"replications\.x\.claims: a replication asks the study's question again"),
        ("[replications.x]\nname = 'y'", r"replications\.x: unknown key 'name'"),
        ("[replications.x]\ngrid.first_seed = 1_000_000", r"replications\.x: grid\.seeds: got 3; allowed: at most 0 "),
        (
            "[replications.x]\ngrid.batch_size = [2000]",
            r"replications\.x\.grid\.batch_size\[0\]: got 2000; allowed: at",
        ),
        ("[replications.'a/b']\ngrid.first_seed = 9", r"replications: got 'a/b'; allowed: a name of letters"),
        ("[replications.'..']\ngrid.first_seed = 9", r"replications: got '\.\.'; allowed: a name of letters"),
        ("[replications]\nx = 3", r"replications\.x: got 3; allowed: a table of overrides, as \[replications"),
        (
            "[replications.a]\ngrid.first_seed = 9\n[replications.b]\ngrid.first_seed = 11",
            r"replications\.b: has the runs",
        ),
    ],
)
def test_what_cannot_be_a_replication_is_refused_in_one_sentence(text, table, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        parse_study(text.replace(AGAIN, table), "t.toml", "t")
    assert "\n" not in str(caught.value)


def test_a_replication_without_the_axis_of_a_claim_is_refused(tiny_text):
    with pytest.raises(
        InputError, match=r"replications\.x: claims\[1\]\.axis: grid\.noise has one value; allowed: two"
    ):
        parse_study(tiny_text + "[replications.x]\ngrid.noise = [0.0]\ndata.held_out = 0.3", "t.toml", "t")


def test_compare_asks_the_study_alone(study):
    assert "replications" not in with_loss(study, "tsallis", ["clip"])


# --- running ---------------------------------------------------------------------------------------------------------


def test_every_replication_is_a_run_directory_of_its_own(study, finished):
    places = replications_in(finished)
    assert [place.name for place in places] == ["latent", "seeds"]
    assert len({read_manifest(place)["study_hash"] for place in (finished, *places)}) == 3
    for place in places:
        assert read_study(read_manifest(place), place).replication == place.name
        assert verify(place, sample=1).differences == ()


def test_a_replication_has_the_bytes_of_the_study_that_says_the_same_at_the_top(text, finished, tmp_path):
    written = text.replace(AGAIN, "").replace("seeds = 3", "seeds = 3\nfirst_seed = 100")
    alone = run(parse_study(written, "t.toml", "t"), "cpu", out=tmp_path / "alone")
    assert files(alone) == files(finished / "replications" / "seeds")


def test_without_replications_none_is_begun_and_they_can_follow(study, finished, tmp_path):
    where = run(study, "cpu", out=tmp_path / "t", replications=False)
    assert replications_in(where) == []
    found = analysis.analyze(analysis.load_results(where))
    assert found.agreement("recall").word == "not replicated yet"
    assert found.agreement("recall").clause == "Seeds and latent are missing."
    run(study, "cpu", out=where)
    assert files(where) == files(finished)


@pytest.mark.slow
def test_a_run_killed_in_a_replication_goes_on_to_the_same_bytes(text, study, finished, tmp_path):
    file, where = tmp_path / "t.toml", tmp_path / "out"
    file.write_text(text)
    code = f"import stability as st; st.run(st.load_study({str(file)!r}), device='cpu', out={str(where)!r})"
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 120
    while not (where / "replications" / "latent" / "manifest.json").is_file() and time.monotonic() < deadline:
        assert process.poll() in (None, 0)
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    run(load_study(file), "cpu", out=where)
    assert files(where) == files(finished)
    texts = [analysis.findings_text(analysis.analyze(analysis.load_results(place))) for place in (where, finished)]
    assert texts[0] == texts[1]


def test_a_directory_of_the_study_is_refused_to_a_replication(study, finished):
    with pytest.raises(InputError, match="holds replication None, not 'seeds'"):
        run(study.replications[0], "cpu", out=finished)


def test_an_unfinished_replication_is_missing_and_judged_nowhere(study, finished, tmp_path):
    where = run(study, "cpu", out=tmp_path / "t", replications=False)
    (again,) = (each for each in study.replications if each.replication == "seeds")
    fewer = again.model_copy(update={"grid": again.grid.model_copy(update={"seeds": 2})})
    run(fewer, "cpu", out=where / "replications" / "seeds")
    seeds, latent = analysis.analyze(analysis.load_results(where)).replications
    assert (seeds.missing, seeds.claims) == ("8 of 24 runs are not finished", ())
    assert (latent.missing, latent.claims) == ("not begun", ())


# --- findings, report, ledger ----------------------------------------------------------------------------------------


def test_findings_hold_what_the_replications_found_as_runs_of_their_own(finished):
    found = analysis.analyze(analysis.load_results(finished)).to_json()
    assert [again["name"] for again in found["replications"]] == ["seeds", "latent"]
    assert [again["other_data"] for again in found["replications"]] == [False, True]
    for again in found["replications"]:
        alone = analysis.analyze(analysis.load_results(finished / "replications" / again["name"])).to_json()
        assert again["study_hash"] == alone["study_hash"]
        assert again["counts"]["planned"] == alone["provenance"]["planned"]
        for one, other in zip(again["claims"], alone["claims"], strict=True):
            assert one == {key: other[key] for key in one}
            assert {*one} >= {"effect", "interval", "verdict", "n_pairs"}


def test_findings_of_a_study_without_replications_say_nothing_of_them(closed_form):
    assert not {"replications", "agreement"} & {*analysis.analyze(closed_form).to_json()}


def an_effect(center, verdict="supported", half=0.02):
    kept = {"verdict": verdict, "margin": 0.1, "ratio": False, "n_pairs": 8, "confidence": 0.95}
    return SimpleNamespace(effect=center, interval=(center - half, center + half), **kept)


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.sampled_from(("supported", "not-testable"))), min_size=1, max_size=5),
    st.floats(-1, 1),
)
def test_the_word_and_the_clause_leave_nothing_out(others, own):
    names = [f"r{place}" for place in range(len(others))]
    effects = {name: an_effect(*other) for name, other in zip(names, others, strict=True)}
    found = agreement(an_effect(own), effects, ["tail_mean"])
    words = [site.word for site in found.sites]
    assert (found.word == "same everywhere") == (words == ["same"] * len(words))
    assert (f"same on {words.count('same')} of {len(words)}" in found.word) == (0 < words.count("same") < len(words))
    assert all(word in found.word for word in words)
    assert all(name in found.clause for name in (*names, "tail_mean"))
    assert (found.joined is None) == all(verdict == "not-testable" for _, verdict in others)


@pytest.fixture(scope="module")
def told(closed_form):
    """Findings by formula with one replication that agrees, one that contradicts, and one that is missing."""
    found = analysis.analyze(closed_form)
    first, second = found.claims
    bounds = {"interval": (0.02, 0.1), "equivalence_interval": (0.03, 0.09)}
    claims = (replace(first, verdict="supported", effect=0.06, **bounds), second)
    other = tuple(replace(claim, verdict="contradicted", effect=-0.06, interval=(-0.1, -0.02)) for claim in claims)
    counts = {"seeds": 8, "planned": 1234, "finished": 1234, "diverged": 1, "failed": 0}

    def again(name, data, missing, claims):
        changes = f'data.name = "<{data}>"'
        return analysis.Replication(name, data, True, changes, "hash", missing, counts if claims else {}, claims)

    places = (again("one", "digits", "", claims), again("two", "#two", "", other), again("three", "x", "not begun", ()))
    return replace(found, claims=claims, replications=places)


def test_the_report_says_where_each_claim_held(told, closed_form, tmp_path):
    paths = render(closed_form, told, tmp_path)
    report = json.loads(paths["json"].read_text())
    primary = report["answers"][0]
    assert primary["agreement"]["word"] == "same on 1 of 2, opposite on two"
    clause = "Same on one; opposite on two; three is missing. The 3 sites joined: 0.02"
    assert primary["agreement"]["clause"].startswith(clause)
    assert [site["word"] for site in primary["agreement"]["sites"]] == ["same", "opposite"]
    assert primary["agreement"]["joined"]["sites"] == 3
    page = paths["html"].read_text()
    assert page.index(primary["agreement"]["clause"]) < page.index('id="claims"') < page.index('id="replications"')
    assert "data.name = &#34;&lt;digits&gt;&#34;" in page
    assert "<strong>Missing:</strong> not begun." in page
    _, figure, table = section_in(report, "replications")["blocks"]
    assert [cell["text"] for cell in table["rows"][1]][6] == "same"
    assert [cell["text"] for cell in table["rows"][3]][:2] == ["slope", "joined, 3 sites"]
    assert [row[:3] for row in figure["table"]["rows"]][:3] == [
        ["slope", "this study", "supported"],
        ["slope", "one", "supported"],
        ["slope", "two", "contradicted"],
    ]
    assert figure["table"]["rows"][3][1] == "joined"
    assert "slope, same on 1 of 2, opposite on two: this study 0.06, 0.02 to 0.1" in figure["alt"]
    assert "joined 0.02" in figure["alt"]
    assert "Hartung and Knapp" in texts_in(report, "method")["Replications"]
    limits = texts_in(report, "limitations")
    assert limits["Replication three missing"] == "Not begun; it counts nowhere."
    assert limits["The claim slope elsewhere"].startswith("Supported here; its effect is elsewhere: Same on one")
    assert paths["pdf"].stat().st_size > 10_000


def test_a_report_in_which_every_replication_is_missing_names_them(told, closed_form, tmp_path):
    late = tuple(replace(each, missing="not begun", claims=(), counts={}) for each in told.replications)
    report = json.loads(render(closed_form, replace(told, replications=late), tmp_path, ["pdf"])["json"].read_text())
    assert report["answers"][0]["agreement"]["word"] == "not replicated yet"
    assert [block["kind"] for block in section_in(report, "replications")["blocks"]] == ["facts"]


def test_a_report_without_replications_has_no_such_section(closed_form_report):
    report = json.loads(closed_form_report["json"].read_text())
    assert "replications" not in [section["id"] for section in report["sections"]]
    assert "eplication" not in closed_form_report["html"].read_text()


def test_a_replication_is_published_with_its_study_alone(finished, tmp_path):
    results = analysis.load_results(finished)
    render(results, analysis.analyze(results), finished / "report")
    again = finished / "replications" / "latent"
    results = analysis.load_results(again)
    facts = describe(ReportData(results, analysis.analyze(results)), ())["facts"]
    assert facts.startswith('replication latent: data.name = "latent"')
    with pytest.raises(InputError, match="latent: is a replication; publish the run of 't' that it lies in"):
        publish([again], tmp_path)
    page = publish([finished], tmp_path).read_text()
    assert '<td data-label="Replications">' in page
    assert "seeds" in page.partition("Replications: ")[2].partition("</p>")[0]


def test_a_study_holds_its_replications_as_studies(study):
    assert all(isinstance(each, Study) and each.replication and not each.replications for each in study.replications)
