"""Published figures beside ours: known values in, their table and the words on its order out."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from stability.analysis import analyze, findings_text, load_results
from stability.registry import InputError
from stability.report.data import ReportData
from stability.report.sections import section
from stability.reproductions import reproduce
from stability.study import Published, parse_study

MEANS = {"clip": 0.3, "siglip-log-b": 0.5}
SEEDS = np.array([-0.02, 0.0, 0.02])
OWN = np.array([0.005, -0.01, 0.005])
SLOPES = np.array([0.11, 0.1, 0.09])


def asked(**changes) -> Published:
    given = {
        "text": "Recall",
        "source": "A paper, Table 1",
        "transfers": "The order may transfer.",
        "measure": "recall_at_1",
        "values": {"clip": 10.0, "siglip-log-b": 12.0},
    }
    return Published(**given | changes)


@pytest.fixture(scope="module")
def known(tiny_run):
    """The tiny study with recalls of an arm's mean, a seed's effect, and siglip's own effects and slopes."""
    found = load_results(tiny_run)
    runs = found.runs.set_index("run")
    value = runs["arm"].map(MEANS) + SEEDS[runs["seed"]]
    own = OWN[runs["seed"]] + SLOPES[runs["seed"]] * np.log2(runs["batch_size"] / 8)
    value += own * (runs["arm"] == "siglip-log-b")
    runs_finished = found.runs.assign(status="finished")
    return replace(found, runs=runs_finished, steps=found.steps.assign(recall_at_1=found.steps["run"].map(value)))


def test_means_are_those_over_cells_and_seeds_times_the_factor(known):
    found = reproduce(known, asked(factor=100.0, unit="%"))
    clip, siglip = found.rows
    assert (clip.of, clip.published, clip.n) == ("clip", 10.0, 3)
    np.testing.assert_allclose([clip.ours, siglip.ours], [30, 55], rtol=1e-12)
    # t with two degrees of freedom, standard deviation 2 over three seeds
    np.testing.assert_allclose(clip.interval, [30 - 4.302653 * 2 / 3**0.5, 30 + 4.302653 * 2 / 3**0.5], rtol=1e-6)
    assert found.sentence == "Ours keeps the published order (95% interval of the pair)."
    assert found.heading == "Recall@1"
    assert reproduce(known, asked(factor=2.0)).heading == "2 × Recall@1"


@pytest.mark.parametrize(("published", "word"), [(12.0, "keeps"), (8.0, "reverses")])
def test_an_order_is_kept_or_reversed(known, published, word):
    assert f"Ours {word} " in reproduce(known, asked(values={"clip": 10.0, "siglip-log-b": published})).sentence


def test_an_order_that_seeds_do_not_settle_is_open(known):
    recall = known.steps["recall_at_1"].to_numpy().copy()
    seed = known.steps["run"].map(known.runs.set_index("run")["seed"]).to_numpy()
    arm = known.steps["run"].map(known.runs.set_index("run")["arm"]).to_numpy()
    noisy = replace(known, steps=known.steps.assign(recall_at_1=recall + np.where(arm == "clip", 0.4 * seed, 0.0)))
    assert "leaves open" in reproduce(noisy, asked()).sentence


def test_a_diverged_run_has_no_value(known):
    first = (known.runs["arm"] == "clip") & (known.runs["seed"] == 0)
    found = reproduce(replace(known, runs=known.runs.assign(status=np.where(first, "diverged", "finished"))), asked())
    clip, siglip = found.rows
    assert (clip.n, siglip.n) == (2, 3)
    np.testing.assert_allclose(clip.ours, 0.31)


@pytest.mark.parametrize("statistic", ["mean", "sd"])
def test_where_every_run_of_an_arm_diverged_there_is_no_order_to_speak_of(known, statistic):
    status = np.where(known.runs["arm"] == "clip", "diverged", "finished")
    found = reproduce(replace(known, runs=known.runs.assign(status=status)), asked(statistic=statistic))
    assert [row.n for row in found.rows] == [0, 3]
    assert np.isnan(found.rows[0].ours)
    assert found.sentence == "Ours cannot be held against the published order: every run of clip diverged."


def test_where_one_seed_is_left_it_is_seeds_that_lack(known):
    status = np.where(known.runs["seed"] > 0, "diverged", "finished")
    lone = replace(known, runs=known.runs.assign(status=status))
    lacking = "fewer than two seeds have a value of both clip and siglip-log-b"
    assert reproduce(lone, asked()).sentence.endswith(f"the published order: {lacking}.")
    over = asked(axis="batch_size", compare=("clip", "siglip-log-b"), values={"8": 3.0, "16": 2.0})
    assert reproduce(lone, over).sentence == (
        "Published, the difference changes by -1 per doubling of the batch size; ours has no slope with an interval: "
        f"{lacking} at every level."
    )


def test_of_several_pairs_those_without_a_value_are_told_apart(known):
    third = known.runs[known.runs["arm"] == "clip"].assign(arm="sogclr", status="diverged")
    third = third.assign(run="x" + third["run"])
    more = replace(known, runs=pd.concat([known.runs, third], ignore_index=True))
    sentence = reproduce(more, asked(values={"clip": 10.0, "siglip-log-b": 12.0, "sogclr": 11.0})).sentence
    assert sentence.startswith("Of 3 pairs, ours keep the published order in 1, reverse it in 0 and leave 0 open")
    assert sentence.endswith("; 2 cannot be compared: every run of sogclr diverged.")


def test_standard_deviations_are_those_between_seeds(known):
    found = reproduce(known, asked(statistic="sd", values={"clip": 0.1, "siglip-log-b": 0.2}))
    siglip = np.sqrt((np.var(SEEDS + OWN, ddof=1) + np.var(SEEDS + OWN + SLOPES, ddof=1)) / 2)
    np.testing.assert_allclose([row.ours for row in found.rows], [0.02, siglip], rtol=1e-6)
    assert found.heading == "Standard deviation of Recall@1 between seeds"
    assert "leaves open" in found.sentence


def test_a_difference_over_an_axis_has_rows_of_both_and_two_slopes(known):
    figures = {"512": 4.0, "1024": 3.0, "2048": 2.0}
    found = reproduce(
        known, asked(axis="batch_size", compare=("siglip-log-b", "clip"), values=figures, factor=100.0, unit="points")
    )
    assert [row.of for row in found.rows] == ["8", "16", "512", "1,024", "2,048"]
    np.testing.assert_allclose([row.ours for row in found.rows[:2]], [20, 30], rtol=1e-6)
    assert np.isnan([row.ours for row in found.rows[2:]]).all()
    assert np.isnan([row.published for row in found.rows[:2]]).all()
    assert found.sentence.startswith(
        "Published, the difference changes by -1 per doubling of the batch size; here by 10 "
    )
    assert found.sentence.endswith("the other sign.")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            'measure = "recal_at_1"\nvalues = { clip = 1, siglip-log-b = 2 }',
            r"published\[0\]\.measure: got 'recal_at_1'.*",
        ),
        (
            'measure = "loss"\nvalues = { clip = 1, siglip = 2 }',
            r"published\[0\]\.values: 'siglip' is not in grid\.arms.*",
        ),
        (
            'measure = "loss"\nfactor = 0.0\nvalues = { clip = 1, siglip-log-b = 2 }',
            r"published\[0\]\.factor: got 0; allowed: what turns our unit into the published one",
        ),
        (
            'measure = "loss"\nvalues = { clip = "1", siglip-log-b = 2 }',
            r"published\[0\]\.values\.clip: got '1'; allowed: a valid number",
        ),
        (
            'measure = "loss"\nvalues = { clip = 1 }',
            r"published\[0\]\.values: got \{'clip': 1\.0\}; allowed: the figures of two or more arms",
        ),
        (
            'measure = "loss"\naxis = "batch_size"\ncompare = ["clip", "siglip-log-b"]\nvalues = { 8 = 3.8 }',
            r"published\[0\]\.values: got \{'8': 3\.8\}; allowed: the figures of two or more levels of batch_size",
        ),
        (
            'measure = "loss"\naxis = "colour"\ncompare = ["clip", "siglip-log-b"]\nvalues = { large = 3.8 }',
            r"published\[0\]\.axis: got 'colour'; allowed: batch_size, .*",
        ),
        (
            'measure = "loss"\naxis = "batch_size"\ncompare = ["clip"]\nvalues = { large = 3.8 }',
            r"published\[0\]\.compare: got \['clip'\]; allowed: a list of two values",
        ),
        (
            'measure = "loss"\naxis = "batch_size"\ncompare = ["clip", "clip"]\nvalues = { 8 = 3.8, 16 = 4 }',
            r"published\[0\]\.compare: got 'clip' twice; allowed: two arms that differ",
        ),
        (
            'measure = "loss"\naxis = "noise"\ncompare = ["clip", "siglip-log-b"]\nvalues = { 0.0 = 3.8, 0.4 = 2 }',
            r"published\[0\]\.values\.0: got a table; allowed: a number, its key in quotes .*, as \"0\.0\"",
        ),
        ('measure = "loss"\naxis = "noise"\nvalues = { clip = 1, siglip-log-b = 2 }', r".*axis and compare .*"),
        (
            'measure = "loss"\naxis = "lr"\ncompare = ["clip", "siglip-log-b"]\nvalues = { 1 = 1, 2 = 2 }',
            r"published\[0\]\.axis: grid\.lr has one value.*",
        ),
        (
            'measure = "loss"\naxis = "batch_size"\ncompare = ["clip", "siglip-log-b"]\nvalues = { 0 = 1, 2 = 2 }',
            r"published\[0\]\.values: got '0'; allowed: values of batch_size, as numbers",
        ),
        (
            'measure = "loss"\naxis = "noise"\ncompare = ["clip", "siglip-log-b"]\nvalues = { a = 1, 2 = 2 }',
            r"published\[0\]\.values: got 'a'.*",
        ),
    ],
)
def test_a_table_that_cannot_be_made_is_refused_in_a_sentence(tiny_text, table, message):
    text = f'[[published]]\ntext = "T"\nsource = "S"\ntransfers = "Nothing."\n{table}\n\n[scales.smoke]'
    with pytest.raises(InputError, match=f"t: {message}"):
        parse_study(tiny_text.replace("[scales.smoke]", text), "t", "t")


def test_the_findings_and_the_report_hold_the_table_and_a_study_without_one_says_nothing_of_it(known):
    study = known.study.model_copy(update={"published": (asked(),)})
    findings = analyze(replace(known, study=study), checks=False)
    (plain,) = json.loads(findings_text(findings))["published"]
    assert plain["rows"][0]["published"] == 10.0
    (entry,) = section["published"](ReportData(known, findings))
    table = entry.blocks[1]
    assert [head["label"] for head in table.columns] == [
        "Setting",
        "Published",
        "Ours",
        "95% interval",
        "n",
    ]
    assert table.rows[0][2]["text"] == "0.3"
    without = analyze(known, checks=False)
    assert "published" not in json.loads(findings_text(without))
    assert not list(section["published"](ReportData(known, without)))
