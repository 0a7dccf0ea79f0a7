"""Seeds added at registered looks: a planted difference stops early, none runs to the end, and alpha is shared."""

from __future__ import annotations

import json

import pytest

from stability import analysis
from stability.execute import Callbacks, RunOptions, run
from stability.registry import InputError
from stability.sequential import looks_up_to, run_until_settled
from stability.store import checksum, read_manifest
from stability.study import parse_study, with_looks

STUDY = """
title = "Looks"
question = "Is recall lower?"
[data]
name = "digits"
[model]
image = "linear"
text = {{ name = "token_transformer", width = 4, heads = 1 }}
embed_dim = 4
[train]
steps = {steps}
[arms.low]
{low}
[arms.other]
{other}
[grid]
arms = ["low", "other"]
batch_size = [16]
lr = [0.01]
seeds = 2
[probes.retrieval]
[[claims]]
id = "level"
primary = true
text = "Recall is lower"
measure = "{measure}"
contrast = "difference"
compare = ["low", "other"]
expect = "lower"
margin = 1e-6
transform = "linear"
"""


def study_with(low: str, other: str, steps: int, measure: str):
    return parse_study(STUDY.format(low=low, other=other, steps=steps, measure=measure), "t.toml", "looks")


# CLIP started at two temperatures keeps them apart while it learns; after four steps all retrieval is luck.
APART = ('loss = "clip"\nlog_scale = 1.0', 'loss = "clip"\nlog_scale = 2.5', 60, "log_scale")
ALIKE = ('loss = "siglip"\nbias = -10.0', 'loss = "siglip"\nbias = -3.0', 4, "recall_at_1")


def test_looks_double_up_to_the_last():
    assert [looks_up_to(most) for most in (5, 6, 10, 20, 30)] == [(5,), (5, 6), (5, 10), (5, 10, 20), (5, 10, 20, 30)]
    with pytest.raises(InputError, match="--until-settled: got 4; allowed: 5 seeds or more"):
        looks_up_to(4)


def test_a_planted_difference_stops_at_the_first_look_and_the_looks_are_registered_before(tmp_path):
    seen = []
    watch = Callbacks(begin=lambda groups: seen.append(read_manifest(tmp_path / "r")["looks"]))
    out = tmp_path / "r"
    run_until_settled(study_with(*APART), 20, out, RunOptions("cpu", callbacks=watch))
    assert seen == [[5, 10, 20]]
    findings = analysis.analyze(analysis.load_results(out))
    assert findings.verdict == "supported"
    assert findings.looks == {"seeds": [5, 10, 20], "at": 5, "alpha_spent": pytest.approx(0.05 / 3)}
    assert findings.claims[0].confidence == pytest.approx(1 - 0.05 / 3)
    assert findings.claims[0].p_adjusted == pytest.approx(min(1, 3 * findings.claims[0].p_value))
    assert json.loads(analysis.findings_text(findings))["looks"]["at"] == 5


def test_no_difference_to_be_found_runs_to_the_last_look_and_keeps_finished_seeds(tmp_path):
    study = study_with(*ALIKE)
    said, kept = [], {}

    def done(group, seconds):
        kept[group.id] = checksum(tmp_path / "r" / "groups" / f"{group.id}.parquet")

    class Enough(Exception):
        pass

    def stop(group, seconds):
        done(group, seconds)
        if len(kept) == 3:
            raise Enough

    out = tmp_path / "r"
    with pytest.raises(Enough):
        run_until_settled(study, 10, out, RunOptions("cpu", callbacks=Callbacks(say=said.append, done=stop)))
    run_until_settled(study, 10, out, RunOptions("cpu", callbacks=Callbacks(say=said.append, done=done)))
    assert len(kept) == 4
    assert kept == {path.stem: checksum(path) for path in (out / "groups").iterdir()}
    assert any("5 seeds: the primary claim is" in sentence for sentence in said)
    findings = analysis.analyze(analysis.load_results(out))
    assert (findings.looks["at"], findings.looks["alpha_spent"]) == (10, pytest.approx(0.05))
    assert findings.claims[0].n_pairs == 10


def test_a_directory_begun_without_looks_is_refused_and_the_other_way_round(tmp_path):
    study = study_with(*ALIKE)
    out = run(study, "cpu", out=tmp_path / "r")
    with pytest.raises(InputError, match="was begun with no looks registered, not looks at 5, 10 seeds"):
        run_until_settled(study, 10, out, RunOptions("cpu"))
    with pytest.raises(InputError, match="has no claim"):
        run_until_settled(study.model_copy(update={"claims": ()}), 10, tmp_path / "n", RunOptions("cpu"))


def test_the_looks_are_part_of_the_hash():
    study = study_with(*ALIKE)
    assert len({study.hash, *(with_looks(study, looks, 5).hash for looks in ((5, 10), (5, 10, 20)))}) == 3
