"""Tuning: equal budgets, seeds apart, a choice that is a pure function of the runs, and a search that can be killed."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stability import analysis
from stability.execute import Callbacks, run
from stability.grid import runs_of, study_of, tuning_runs_of
from stability.registry import InputError
from stability.report import write_report
from stability.results import Tuning
from stability.store import checksum
from stability.study import FIRST_TUNING_SEED, Setting, parse_study, search_of, settings_of
from stability.study.tuning_grid import refine_grid
from stability.tuning import choose, edges
from tests.report_blocks import section_in, texts_in, texts_of

STUDY = """
title = "Tuned"
question = "Which learns more?"
[data]
name = "digits"
[model]
image = { name = "mlp", width = 8, depth = 1 }
text = { name = "token_transformer", width = 4, heads = 1 }
embed_dim = 4
[train]
steps = 12
warmup = 2
scalar_lr_multiplier = 10.0
[grid]
arms = ["clip", "siglip", "siglip-log-b"]
batch_size = [16]
lr = [0.01]
seeds = 3
[arms.siglip-log-b]
loss = "siglip"
bias = "-log B"
[tune]
lr = [0.003, 0.03]
bias = [-10.0, -3.0]
seeds = 2
steps = 6
untuned = true
[probes.retrieval]
every = 3
[probes.geometry]
[[claims]]
id = "level"
primary = true
text = "SigLIP's recall is higher"
measure = "recall_at_1"
contrast = "difference"
compare = ["siglip", "clip"]
expect = "higher"
margin = 0.1
"""


def parsed(text: str = STUDY):
    return parse_study(text, "t.toml", "t")


@pytest.fixture(scope="module")
def tuned_run(tmp_path_factory):
    """A finished run; treat it as read-only."""
    return run(parsed(), "cpu", out=tmp_path_factory.mktemp("tuned") / "r")


# --- the search ------------------------------------------------------------------------------------------------------


def test_every_arm_tries_equally_many_settings_over_the_same_range():
    study = parsed()
    tried = {arm: settings_of(study, arm) for arm in study.grid.arms}
    assert {arm: len(set(settings)) for arm, settings in tried.items()} == dict.fromkeys(study.grid.arms, 4)
    for settings in tried.values():
        assert {min(each.lr for each in settings), max(each.lr for each in settings)} == {0.003, 0.03}
    assert {each.options for each in tried["siglip"]} == {(("bias", -10.0),), (("bias", -3.0),)}
    # An arm that sets its bias itself is that arm because of it.
    assert {each.options for each in tried["siglip-log-b"]} == {()}


RATES = st.lists(st.integers(-50, 0), min_size=2, max_size=6, unique=True)


@given(rates=RATES.map(lambda tenths: [10 ** (each / 10) for each in tenths]), more=st.integers(0, 9))
def test_rates_are_added_between_those_given_and_none_is_dropped(rates, more):
    made = refine_grid(rates, len(rates) + more)
    assert len(made) == len(rates) + more
    assert list(made) == sorted(made)
    assert set(rates) <= set(made)
    assert (made[0], made[-1]) == (min(rates), max(rates))


def test_counts_that_do_not_divide_each_other_are_equal_all_the_same():
    text = STUDY.replace("bias = [-10.0, -3.0]", "bias = [-10.0, -5.0, -3.0]\nlabel_smoothing = [0.0, 0.1]")
    study = parsed(text)
    assert {arm: len(settings_of(study, arm)) for arm in study.grid.arms} == {"clip": 6, "siglip": 6, "siglip-log-b": 6}


def test_tuning_seeds_are_no_test_seeds_and_the_search_reads_only_what_it_needs():
    study = parsed()
    searched, tested = tuning_runs_of(study), runs_of(study)
    assert {each.seed for each in searched} == {FIRST_TUNING_SEED, FIRST_TUNING_SEED + 1}
    assert not {each.seed for each in searched} & {each.seed for each in tested}
    assert len({each.id for each in (*searched, *tested)}) == len(searched) + len(tested) == 24 + 9
    plan = search_of(study)
    assert (plan.train.steps, plan.grid.noise, plan.claims) == (6, (0.0,), ())
    assert plan.probes["retrieval"].seeds is None
    assert plan.probes["geometry"].seeds == 1


def test_a_run_is_the_same_whether_its_value_comes_from_tuning_or_from_the_arm():
    study = parsed()
    chosen = {(arm, 16): Setting(0.01) for arm in study.grid.arms} | {("siglip", 16): Setting(0.01, (("bias", -10.0),))}
    assert [each.id for each in runs_of(study, chosen)] == [each.id for each in runs_of(study)]
    moved = chosen | {("siglip", 16): Setting(0.01, (("bias", -3.0),))}
    pairs = zip(runs_of(study, moved), runs_of(study), strict=True)
    assert {ours.arm for ours, theirs in pairs if ours.id != theirs.id} == {"siglip"}


# --- the choice ------------------------------------------------------------------------------------------------------

SETTINGS = [Setting(1e-3), Setting(3e-3), Setting(1e-2), Setting(3e-2)]


def planted(best: float, **changed):
    """A parabola over the logarithm of the rate, 3 seeds a rate."""
    rows = [
        {"setting": place, "score": -((math.log(each.lr / best)) ** 2) + 0.01 * seed}
        for place, each in enumerate(SETTINGS)
        for seed in range(3)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("place", range(4))
def test_the_top_of_a_planted_curve_is_chosen(place):
    curve = planted(SETTINGS[place].lr)
    assert choose(curve, SETTINGS, "higher") == SETTINGS[place]
    assert choose(curve.assign(score=-curve["score"]), SETTINGS, "lower") == SETTINGS[place]
    assert choose(curve.sample(frac=1, random_state=0), SETTINGS, "higher") == SETTINGS[place]


def test_a_diverged_run_is_the_worst_and_ties_go_to_the_lower_rate():
    curve = planted(1e-2)
    curve.loc[(curve["setting"] == 2).idxmax(), "score"] = math.nan
    assert choose(curve, SETTINGS, "higher") == SETTINGS[3]
    assert choose(curve.assign(score=1.0), SETTINGS[::-1], "higher") == Setting(1e-3)
    assert choose(curve.assign(score=math.nan), SETTINGS, "higher") == Setting(1e-3)


def test_an_optimum_at_the_edge_is_said():
    study = parsed(STUDY.replace("bias = [-10.0, -3.0]", 'bias = [-10.0, "-log B", -1.0]'))
    inner = {
        (arm, 16): next(s for s in settings_of(study, arm) if s.lr not in (0.003, 0.03))
        for arm in ("clip", "siglip-log-b")
    }
    tuning = Tuning(study.measures["recall_at_1"], pd.DataFrame(), inner)
    assert edges(study, tuning) == ()
    low = replace(tuning, chosen={("siglip", 16): Setting(0.003, (("bias", "-log B"),))})
    assert edges(study, low) == (("siglip", 16, "the lowest learning rate tried, 0.003"),)
    high = replace(tuning, chosen={("siglip", 16): Setting(0.03, (("bias", -10.0),))})
    assert [words for _, _, words in edges(study, high)] == [
        "the highest learning rate tried, 0.03",
        "the lowest bias tried, -10",
    ]


# --- end to end ------------------------------------------------------------------------------------------------------


def sums(run_dir):
    return {path.name: checksum(path) for path in sorted((run_dir / "groups").iterdir())}


def test_the_test_is_trained_as_the_search_chose_and_beside_it_untuned(tuned_run):
    study = parsed()
    results = analysis.load_results(tuned_run)
    tuning = results.tuning
    assert len(tuning.tried) == 24
    for (arm, _), setting in tuning.chosen.items():
        rows = tuning.tried[tuning.tried["arm"] == arm].groupby("setting")["score"].agg(["count", "mean"])
        best = rows[rows["count"] == rows["count"].max()]["mean"]
        if best.notna().any():
            assert setting == settings_of(study, arm)[int(best.idxmax())]
    assert set(results.runs["status"]) <= {"finished", "diverged"}
    for row in results.runs.itertuples():
        assert (row.rate, row.lr) == (tuning.chosen[row.arm, row.batch_size].lr, 0.01)
    assert set(results.untuned.runs["rate"]) == {0.01}
    findings = analysis.analyze(results)
    told = findings.to_json()
    assert [each["id"] for each in told["untuned"]] == [each["id"] for each in told["claims"]] == ["level"]


def test_a_search_interrupted_goes_on_to_the_same_bytes(tuned_run, tmp_path):
    class Enough(Exception):
        pass

    for after in (1, 5):
        done = []

        def stop(group, seconds, done=done, after=after):
            done.append(group)
            if len(done) == after:
                raise Enough

        with pytest.raises(Enough):
            run(parsed(), "cpu", out=tmp_path / "r", callbacks=Callbacks(done=stop))
        manifest = json.loads((tmp_path / "r" / "manifest.json").read_text())
        assert any(entry["status"] == "planned" for entry in manifest["groups"])
    run(parsed(), "cpu", out=tmp_path / "r")
    assert sums(tmp_path / "r") == sums(tuned_run)
    told = [
        analysis.findings_text(analysis.analyze(analysis.load_results(where))) for where in (tuned_run, tmp_path / "r")
    ]
    assert told[0] == told[1]


def test_a_damaged_tuning_file_is_trained_again_and_nothing_of_the_test_is_lost(tuned_run, tmp_path):
    copied = shutil.copytree(tuned_run, tmp_path / "r")
    manifest = json.loads((copied / "manifest.json").read_text())
    victim = next(entry for entry in manifest["groups"] if entry.get("tuning"))
    (copied / "groups" / f"{victim['id']}.parquet").write_bytes(b"")
    with pytest.raises(InputError, match="the tuning runs are not all finished"):
        analysis.load_results(copied)
    trained, said = [], []
    run(
        parsed(),
        "cpu",
        out=copied,
        callbacks=Callbacks(say=said.append, done=lambda group, _: trained.append(group.id)),
    )
    assert trained == [victim["id"]]
    assert sums(copied) == sums(tuned_run)
    assert len(said) == 1


def test_damage_to_the_search_and_to_the_test_is_told_once_a_file(tuned_run, tmp_path):
    copied = shutil.copytree(tuned_run, tmp_path / "r")
    groups = json.loads((copied / "manifest.json").read_text())["groups"]
    victims = [next(entry["id"] for entry in groups if bool(entry.get("tuning")) == of) for of in (True, False)]
    for victim in victims:
        (copied / "groups" / f"{victim}.parquet").write_bytes(b"")
    trained, said = [], []
    run(
        parsed(),
        "cpu",
        out=copied,
        callbacks=Callbacks(say=said.append, done=lambda group, _: trained.append(group.id)),
    )
    assert trained == victims
    assert [Path(each.split("; its")[0].split("kept as ")[1]).stem for each in said] == victims
    assert sums(copied) == sums(tuned_run)


def test_the_report_shows_the_curves_the_choice_and_the_edge(tuned_run, tmp_path):
    copied = shutil.copytree(tuned_run, tmp_path / "r")
    paths = write_report(copied)
    report = json.loads(paths["json"].read_text())
    figure, table = section_in(report, "tuning")["blocks"]
    assert len(figure["table"]["rows"]) == 24
    assert [row[3]["value"] is None or row[3]["text"].startswith("bias") for row in table["rows"]] == [True] * 3
    assert report["answers"][0]["untuned"]["verdict"]
    assert "4 settings were tried" in texts_in(report, "method")["Tuning"]
    page = paths["html"].read_text()
    assert "Without tuning (secondary, decides nothing)" in page
    results = analysis.load_results(copied)
    said = texts_of("limitations", results, analysis.analyze(results))
    assert ("Tuned to the edge of the search" in said) == bool(edges(results.study, results.tuning))


def test_the_search_is_trained_by_its_own_study(tuned_run):
    study = parsed()
    runs = tuning_runs_of(study)
    rows = pd.read_parquet(tuned_run / "groups")
    assert rows[rows["run"] == runs[0].id]["step"].max() == 6
    assert rows[rows["run"] == runs_of(study)[0].id]["step"].max() == 12
    from stability.grid import Group

    assert study_of(study, Group("g", (runs_of(study)[0],))) is study


# --- bad input -------------------------------------------------------------------------------------------------------

EDITS = [
    ("lr = [0.003, 0.03]", "lr = []", r"t\.toml: tune\.lr: got \[\]; allowed: at least one value"),
    ("lr = [0.003, 0.03]", "lr = [0.0, 0.03]", r"t\.toml: tune\.lr\[0\]: got 0\.0; allowed: greater than 0"),
    ("lr = [0.003, 0.03]", "lr = [0.03, 0.03]", r"t\.toml: tune\.lr: got \[0\.03, 0\.03\]; allowed: values .*"),
    ("lr = [0.003, 0.03]", "lr = [0.03]", r"t\.toml: tune\.lr: got one rate; allowed: two or more, since .*"),
    ("seeds = 2", "seeds = 0", r"t\.toml: tune\.seeds: got 0; allowed: greater than 0"),
    ("steps = 6", "steps = 2", r"t\.toml: tune\.steps: got 2; allowed: more than train\.warmup = 2"),
    ("bias = [-10.0, -3.0]", "bais = [-10.0]", r"t\.toml: tune\.bais: no loss .*; did you mean 'bias'\?.*"),
    ("bias = [-10.0, -3.0]", "stepz = 10", r"t\.toml: tune\.stepz: no loss .*; did you mean 'steps'\?.*"),
    ("lr = [0.003, 0.03]", "rate = [0.1]", r"t\.toml: tune\.lr: required, but missing \(given, but .* here: .*rate.*"),
    ("bias = [-10.0, -3.0]", "bias = []", r"t\.toml: tune\.bias: got \[\]; allowed: a list .* scalar 'bias' to try"),
    ("bias = [-10.0, -3.0]", "bias = -10.0", r"t\.toml: tune\.bias: got -10\.0; allowed: a list .* scalar 'bias' .*"),
    ("bias = [-10.0, -3.0]", 'bias = [-10.0, "B"]', r"t\.toml: tune\.bias\[1\]: a scalar starts .*; got 'B'"),
    ("bias = [-10.0, -3.0]", 'label_smoothing = ["much"]', r"t\.toml: tune\.label_smoothing: got 'much'; allowed: .*"),
    ("untuned = true", 'measure = "recall"', r"t\.toml: tune\.measure: got 'recall'; allowed: a measure with .*"),
    ("bias = [-10.0, -3.0]", "label_smoothing = 0.1", r".*got 0\.1; allowed: .* of the losses' option .*"),
    ("seeds = 2", "seeds = 10000000", r"t\.toml: tune\.seeds: got 10000000; allowed: at most 1,000 a setting"),
    ("untuned = true", "noise = 2.0", r"t\.toml: tune\.noise: got 2\.0; allowed: less than or equal to 1"),
    ("lr = [0.01]", "lr = [0.01, 0.1]", r"t\.toml: grid\.lr: got \[0\.01, 0\.1\]; allowed with \[tune\]: one rate, .*"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "sentence"), EDITS, ids=[new for _, new, _ in EDITS])
def test_a_mistake_in_the_search_is_one_sentence(old, new, sentence):
    assert old in STUDY
    with pytest.raises(InputError) as caught:
        parsed(STUDY.replace(old, new, 1))
    assert re.fullmatch(sentence, str(caught.value)), str(caught.value)


def test_a_study_without_a_search_keeps_its_hash_and_no_file_sets_the_looks():
    bare = re.sub(r"\[tune\].*?(?=\[probes)", "", STUDY, flags=re.DOTALL)
    assert "tune" not in parsed(bare).canonical()
    assert "looks" not in parsed(bare).canonical()
    assert parsed(bare).hash != parsed().hash
    with pytest.raises(InputError, match="unknown key 'looks'"):
        parsed("looks = [5, 10]\n" + STUDY)
