"""Sensitivity to the learning rate: the contrast in closed form, rates relative to the tuned one."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from stability.analysis import analyze, compared, load_results, transformed
from stability.contrasts import compare
from stability.execute import run
from stability.grid import run_table, runs_of, tuning_runs_of
from stability.registry import InputError
from stability.report.tables import cell_table
from stability.study import Setting, parse_study
from tests.report_blocks import figures_of, texts_of

WHOLE = re.compile(
    r"\[probes\.(matched_gradient_noise|geometry|separability|cross_check|curvature|gradient_noise)\]\n(\w.*\n)*"
)
SUPPLIED = {"confidence": 0.95, "names": ("siglip", "clip"), "measure": "recall", "better": "higher"}


def sensitivity(a, b, **changes):
    return compare("lr_sensitivity", a, b, supplied=SUPPLIED | changes)


def factor_text(tiny_text, factors="[10.0, 0.1, 1]", claim='contrast = "lr_sensitivity"\naxis = "lr"'):
    text = WHOLE.sub("", tiny_text).replace("gradient_noise_fraction", "recall_at_1")
    text = text.replace("batch_size = [8, 16]", f"batch_size = [8]\nlr_multipliers = {factors}")
    return text.replace('contrast = "slope"\naxis = "noise"', claim)


# --- the contrast ----------------------------------------------------------------------------------------------------


def test_it_is_the_best_level_less_the_mean_paired_by_seed():
    a = np.array([[1.0, 4.0, 1.0], [2.0, 5.0, 2.0], [0.0, 6.0, 3.0]])[:, :, None]  # 2, 2, 3
    b = np.array([[3.0, 4.0, 5.0], [3.0, 3.0, 3.0], [6.0, 0.0, 0.0]])[:, :, None]  # 1, 0, 4
    found = sensitivity(a, b)
    assert_allclose(found.per_seed, [1.0, 2.0, -1.0])
    assert_allclose(found.effect, 2 / 3)
    assert not found.ratio
    assert (
        "siglip's gap of recall between the best level and the mean of all is 0.667 higher than clip's"
        in found.sentence
    )


def test_where_less_is_better_the_best_is_the_lowest():
    a, b = np.random.default_rng(0).normal(size=(2, 6, 5, 3))
    assert_allclose(sensitivity(a, b, better="lower").per_seed, sensitivity(-a, -b).per_seed)


def test_the_definition_of_wortsman_et_al_falls_out_of_losses_cut_at_chance():
    rng, chance = np.random.default_rng(1), 3.0
    losses = rng.uniform(0.5, 5.0, size=(2, 8, 7, 1))
    cut = np.minimum(losses, chance)
    a, b = (np.mean(np.minimum(arm, chance) - arm.min(1, keepdims=True), axis=1)[:, 0] for arm in losses)
    assert_allclose(sensitivity(*cut, better="lower").per_seed, a - b, rtol=1e-12)


@given(st.floats(-3, 3), st.floats(-3, 3))
def test_neither_a_shift_of_an_arm_nor_the_order_of_levels_matters(shift, other):
    a, b = np.random.default_rng(2).normal(size=(2, 5, 4, 2))
    found = sensitivity(a + shift, (b + other)[:, ::-1])
    assert_allclose(found.per_seed, sensitivity(a, b).per_seed, atol=1e-12)


def test_a_level_without_a_value_is_a_missing_seed_and_no_direction_is_refused():
    a, b = np.random.default_rng(3).normal(size=(2, 6, 4, 2))
    a[0, 1, 1] = np.nan
    assert sensitivity(a, b).n == 5
    with pytest.raises(InputError, match="has no better direction"):
        sensitivity(a, b, better="")
    with pytest.raises(InputError, match="allowed: equal shapes"):
        sensitivity(a, b[:, :2])


# --- rates relative to another ----------------------------------------------------------------------------------------


def test_factors_multiply_the_one_rate_and_1_leaves_a_run_what_it_was(tiny_text):
    study = parse_study(factor_text(tiny_text), "t", "t")
    plain = parse_study(
        factor_text(tiny_text, claim='contrast = "difference"')
        .replace("lr_multipliers", "train_pairs")
        .replace("train_pairs = [10.0, 0.1, 1]\n", ""),
        "t",
        "t",
    )
    runs = runs_of(study)
    assert {(run.lr_multiplier, run.lr) for run in runs} == {(10.0, 0.1), (0.1, 0.001), (1.0, 0.01)}
    assert {run.id for run in runs_of(plain)} == {run.id for run in runs if run.lr_multiplier == 1.0}
    assert len({run.id for run in runs}) == len(runs) == 3 * len(runs_of(plain))
    assert all("lr_multiplier" not in row for row in run_table(runs_of(plain)))
    assert study.hash != plain.hash


def test_under_tuning_they_multiply_what_was_chosen_and_the_search_has_none(tiny_text):
    text = factor_text(tiny_text) + "\n[tune]\nlr = [0.01, 0.03]\nseeds = 1\n"
    study = parse_study(text, "t", "t")
    assert {run.lr_multiplier for run in tuning_runs_of(study)} == {1.0}
    chosen = {("clip", 8): Setting(0.03), ("siglip-log-b", 8): Setting(0.01, (("bias", -5.0),))}
    rates = {(run.arm, run.lr_multiplier): run.lr for run in runs_of(study, chosen)}
    assert rates["clip", 10.0] == 0.3
    assert rates["siglip-log-b", 0.1] == 0.001
    assert {run.options for run in runs_of(study, chosen) if run.arm != "clip"} == {(("bias", -5.0),)}


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "lr = [0.01]",
            "lr = [0.01, 0.1]",
            r"t: grid\.lr: got \[0\.01, 0\.1\]; allowed with lr_multipliers: the one rate .*",
        ),
        ("[10.0, 0.1, 1]", "[1.0, 1.0]", r"t: grid\.lr_multipliers: got \[1\.0, 1\.0\]; allowed: values that differ"),
        ("[10.0, 0.1, 1]", "[1.0, 0.0]", r"t: grid\.lr_multipliers\[1\]: got 0\.0; allowed: .*greater than 0"),
        ("[10.0, 0.1, 1]", "[3.0]", r"t: claims\[1\]\.axis: grid\.lr_multipliers has one value; allowed: two or more"),
        (
            '"lr_sensitivity"\naxis = "lr"',
            '"lr_sensitivity"',
            r"t: claims\[1\]\.axis: required by contrast 'lr_sensitivity'.*",
        ),
        (
            'axis = "lr"',
            'axis = "lr"\ntransform = "relative_to_chance"',
            r"t: claims\[1\]\.transform: scale 'relative_to_chance' is only valid for measure 'loss'",
        ),
    ],
)
def test_a_mistake_is_one_sentence(tiny_text, old, new, sentence):
    text = factor_text(tiny_text)
    assert old in text
    with pytest.raises(InputError) as caught:
        parse_study(text.replace(old, new), "t", "t")
    assert re.fullmatch(sentence, str(caught.value)), str(caught.value)


def test_a_measure_without_a_better_direction_has_no_sensitivity(tiny_text):
    text = factor_text(tiny_text).replace('measure = "recall_at_1"', 'measure = "log_scale"')
    with pytest.raises(InputError, match=r"claims\[1\]\.measure: 'log_scale' has no better direction"):
        parse_study(text.replace('id = "noise"\nprimary = true', 'id = "noise"\nprimary = true'), "t", "t")


# --- end to end ------------------------------------------------------------------------------------------------------


def test_a_study_over_multiples_of_the_rate_is_judged_drawn_and_described(tiny_text, tmp_path):
    study = parse_study(factor_text(tiny_text), "t", "t", "smoke")
    results = load_results(run(study, "cpu", out=tmp_path / "run"))
    runs = results.runs
    runs["status"] = "finished"
    assert sorted(runs["lr_multiplier"].unique()) == [0.1, 1.0, 10.0]
    assert runs["lr"].unique().tolist() == [0.01]
    assert_allclose(runs["rate"], 0.01 * runs["lr_multiplier"])
    # A tent over the factors in place of what four steps have learnt: best 0.5, mean 0.5 - 2 height / 3.
    heights = {"clip": 0.3, "siglip-log-b": 0.15}
    tent = {
        row["run"]: 0.5 - heights[row["arm"]] * (1 + 0.1 * row["seed"]) * (row["lr_multiplier"] != 1.0)
        for row in runs.to_dict("records")
    }
    results.steps["recall_at_1"] = results.steps["run"].map(tent)
    claim = study.claims[1].model_copy(update={"transform": "linear"})
    assert_allclose(compared(results, claim, 0.95).effect, (0.15 - 0.3) * 2 / 3 * 1.05, rtol=1e-5)
    slope = claim.model_copy(update={"contrast": "slope"})
    assert "per doubling of the learning rate" in compared(results, slope, 0.95).sentence
    findings = analyze(results, checks=False)
    assert "× rate" in [head["label"] for head in cell_table(results)["columns"]]
    (curve,) = [one for one in figures_of(results, findings) if one.id == "along-1"]
    assert sorted(curve.table["lr_multiplier"].unique()) == [0.1, 1.0, 10.0]
    assert curve.figure.axes[0].get_xscale() == "log"
    assert "0.1 times the rate" in curve.alt
    told = " ".join(texts_of("method", results, findings).values())
    assert "Every arm was trained at 10, 0.1, 1 times the rate 0.01." in told


def test_a_loss_as_a_share_of_chance_is_free_of_its_scale_and_at_most_1(tiny_run):
    results = load_results(tiny_run)
    runs = results.runs.set_index("run")
    chance = {"clip": lambda B: math.log(B), "siglip-log-b": lambda B: math.log(B) + (B - 1) * math.log(B / (B - 1))}
    level = np.array([chance[row.arm](row.batch_size) for row in runs.itertuples()])
    values = runs["seed"].astype(float) + 0.5
    shares = transformed(results, "loss", values, "relative_to_chance")
    assert_allclose(shares, np.minimum(values / level, 1.0), rtol=1e-6)
    assert shares.max() == 1.0 > shares.min()
    claim = results.study.claims[0].model_copy(
        update={"measure": "loss", "contrast": "difference", "transform": "relative_to_chance", "reduction": "final"}
    )
    results.runs["status"] = "diverged"
    found = compared(results, claim, 0.95)
    assert found.outcome == "constant"
    assert found.effect == 0.0  # a diverged run is at chance, whatever its loss
    assert "as a share of chance" in found.sentence
