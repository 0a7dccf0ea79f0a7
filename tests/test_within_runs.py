"""Claims that hold two measures of the same runs against each other, from the study file to the report."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from closed_form_results import STUDY, curves
from numpy.testing import assert_allclose

from stability import stats
from stability.analysis import analyze, compared
from stability.calibrate.rates import upper_band
from stability.calibrate.scenarios import NoiseModel, shape
from stability.exports import tables
from stability.grid import runs_of
from stability.registry import InputError
from stability.report.data import ReportData
from stability.report.figures.forest import forest_plot
from stability.report.model import answers
from stability.report.tables import cell_table
from stability.results import Results
from stability.sample_size import seeds_by_claim
from stability.study import parse_study, with_loss
from stability.vocabulary import AXES
from tests.report_blocks import texts_of

OWN, OTHER = "gradient_noise_fraction_as_siglip", "gradient_noise_fraction_as_clip"
CLAIM = f"""
[[claims]]
id = "matched"
text = "At CLIP's parameters SigLIP's gradients are less noisy"
measure = "{OWN}"
against_measure = "{OTHER}"
contrast = "difference"
compare = ["clip", "clip"]
expect = "lower"
margin = 0.1
"""
PROBES = "[probes.matched_gradient_noise]\nevery = 20\n[probes.geometry]\nevery = 20\n[probes.curvature]\nseeds = 1"
PLAIN = STUDY.format(title="Within", probes=PROBES)
LABELS = ("gradient noise fraction (towers as siglip)", "gradient noise fraction (towers as clip)")


def study_of(text=PLAIN + CLAIM):
    return parse_study(text, "t.toml", "t")


def results_with(study, logs, arm="clip"):
    """Return results whose runs of *arm* have these logarithms of both fractions, (runs, 2), at every step."""
    made = curves(study)
    runs = made.runs.loc[made.runs["arm"] == arm, "run"]
    steps = made.steps.copy()
    for column, name in enumerate((OWN, OTHER)):
        trace, second = study.measures[name].pooled
        steps[second] = 1.0
        steps[trace] = np.exp(steps["run"].map(dict(zip(runs, logs[:, column], strict=True))))
    return replace(made, steps=steps)


@pytest.fixture(scope="module")
def study():
    return study_of()


@pytest.fixture(scope="module")
def results(study):
    runs = 6 * 2 * 2  # seeds, batch sizes, levels of noise
    rng = np.random.default_rng(3)
    return results_with(study, rng.normal((-1.0, -0.5), 0.1, (runs, 2)))


@pytest.fixture(scope="module")
def findings(results):
    return analyze(results)


def test_two_measures_are_subtracted_within_the_run_and_tested_over_the_seeds(study, results, findings):
    arm = results.runs[results.runs["arm"] == "clip"]
    at = results.steps[results.steps["step"] == 20].set_index("run")
    own, other = (np.log(at[study.measures[name].pooled[0]].reindex(arm["run"]).to_numpy()) for name in (OWN, OTHER))
    by_seed = [np.array([(own - other)[arm["seed"] == seed].mean() for seed in range(6)])]
    by_hand = stats.paired_difference(by_seed[0], np.zeros(6), confidence=1 - 0.05 / 3, log=True)
    found = findings.claims[2]
    assert found.measures == (OWN, OTHER)
    assert_allclose([found.effect, *found.interval], [by_hand.effect, *by_hand.interval])
    assert_allclose(found.p_value, by_hand.p_value)
    assert (found.verdict, found.n_pairs, found.ratio) == ("supported", 6, True)
    assert found.sentence.startswith(f"Supported: clip's {LABELS[0]} is 4")
    assert f"% lower than its {LABELS[1]} (ratio 0." in found.sentence
    assert_allclose(found.p_adjusted, stats.adjust([claim.p_value for claim in findings.claims])[2])
    agreed = {check.name for check in found.sensitivity.checks if check.verdict == "supported"}
    assert agreed >= {"mixed-model", "leave-one-seed-out"}


def test_swapping_the_measures_inverts_the_ratio_and_exchanges_the_verdicts(results, findings):
    swapped = CLAIM.replace(OWN, "x").replace(OTHER, OWN).replace('"x"', f'"{OTHER}"')
    other = analyze(replace(results, study=study_of(PLAIN + swapped)), checks=False).claims[2]
    assert_allclose(other.effect, 1 / findings.claims[2].effect)
    assert_allclose(other.interval, [1 / end for end in reversed(findings.claims[2].interval)])
    assert other.verdict == "contradicted"


@pytest.mark.parametrize(
    ("contrast", "words"),
    [
        (
            '"slope"\naxis = "noise"',
            "slope of log {} per unit of noise",
        ),
        ('"interaction"\naxis = "noise"', "growth factor of {} from the lowest to the highest noise"),
        ('"ratio"', "{}"),
        ('"spread"', "log {}"),
    ],
)
def test_the_sentence_names_both_measures_whatever_the_contrast(results, contrast, words):
    claim = CLAIM.replace('"difference"', contrast)
    found = compared(replace(results, study=study_of(PLAIN + claim)), study_of(PLAIN + claim).claims[2], 0.95)
    assert found.sentence.startswith(f"clip's {words.format(LABELS[0])} ")
    assert f" its {words.format(LABELS[1])} (" in found.sentence
    assert found.testable


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ('"difference"', "recall@1 above chance"),
        ('"ratio"', "recall@1"),
        ('"spread"', "log recall@1 above chance"),
        ('"difference"\nreduction = "best"', "recall@1 above chance at its best"),
        (
            '"slope"\naxis = "noise"\nreduction = "mean_after_warmup"',
            "slope of log recall@1 above chance averaged over training",
        ),
        ('"difference"\nreduction = "final"', "recall@1 above chance"),
        ('"difference"\ntransform = "linear"', "recall@1"),
    ],
)
def test_a_sentence_says_on_which_scale_and_when_a_bounded_measure_is_compared(keys, words):
    own = (
        CLAIM.replace(OWN, "recall_at_1").replace(f'against_measure = "{OTHER}"\n', "").replace('"clip"]', '"siglip"]')
    )
    study = study_of(PLAIN + own.replace('"difference"', keys))
    told = compared(curves(study), study.claims[2], 0.95).sentence
    assert told.startswith((f"clip's {words} is", f"clip's {words} per unit of noise is", f"clip's {words} varies"))


MISTAKES = [
    (
        OTHER,
        "gradient_noise_fraction_as_clipp",
        f"against_measure: no probe of this study makes '{OTHER}p'; did you",
    ),
    (
        f'against_measure = "{OTHER}"',
        f'against_measure = "{OWN}"',
        f"against_measure: '{OWN}' is the claim's own measure; allowed: another",
    ),
    (
        '["clip", "clip"]',
        '["clip", "siglip"]',
        "compare: got ['clip', 'siglip']; allowed with against_measure, which compares",
    ),
    ('["clip", "clip"]', '["clap", "clap"]', "compare[0]: 'clap' is not in grid.arms; did you mean 'clip'?"),
    (
        '"difference"',
        '"divergence"',
        "against_measure: contrast 'divergence' compares arms, not measures; leave it out",
    ),
    (
        '"difference"',
        '"time_to_threshold"\nthreshold = 0.5',
        "against_measure: contrast 'time_to_threshold' compares arms",
    ),
    (OTHER, "loss", f"against_measure: '{OWN}' and 'loss' are in no unit and nats; allowed: measures of one unit"),
    (
        OTHER,
        "log_scale",
        f"against_measure: '{OWN}' is on the scale log and 'log_scale' on linear; give the claim a ",
    ),
    (
        OTHER,
        "sharpness_ratio",
        "against_measure: probes.curvature.seeds leaves out runs that a claim on",
    ),
    ('"difference"', '"lr_sensitivity"\naxis = "batch_size"', f"measure: '{OWN}' has no better direction"),
    (f'against_measure = "{OTHER}"', f'against_measure = ["{OTHER}"]', "against_measure: got ["),
    (
        f'against_measure = "{OTHER}"\n',
        "",
        "compare: got 'clip' twice; allowed: two arms that differ, or one arm and two measures",
    ),
]


@pytest.mark.parametrize(("old", "new", "sentence"), MISTAKES, ids=[new or "no against" for _, new, _ in MISTAKES])
def test_what_cannot_be_held_against_each_other_is_one_sentence(old, new, sentence):
    assert old in CLAIM
    with pytest.raises(InputError, match=f"^{re.escape('t.toml: claims[2].' + sentence)}"):
        study_of(PLAIN + CLAIM.replace(old, new, 1))


def test_a_scale_for_both_makes_measures_of_two_scales_comparable():
    claim = CLAIM.replace(OTHER, "log_scale").replace('"difference"', '"difference"\ntransform = "linear"')
    assert study_of(PLAIN + claim).claims[2].measures == (OWN, "log_scale")


def test_only_a_study_with_such_a_claim_has_another_hash_and_the_file_reads_back(study):
    plain = study_of(PLAIN)
    assert "against_measure" not in json.dumps(plain.canonical())
    assert study.canonical()["claims"][2]["against_measure"] == OTHER
    assert study.hash not in (plain.hash, study_of(PLAIN + CLAIM.replace(OTHER, "margin")
        .replace('"difference"', '"difference"\ntransform = "log"')).hash)  # fmt: skip
    assert study_of(study.text).claims == study.claims


def test_a_newcomer_is_asked_about_its_own_runs_once(study):
    twice = PLAIN + CLAIM + CLAIM.replace('"matched"', '"there"').replace('["clip", "clip"]', '["siglip", "siglip"]')
    derived = parse_study(with_loss(study_of(twice), "cyclip", ["clip", "siglip"]), "d.toml", "d")
    within = [claim for claim in derived.claims if claim.against_measure]
    assert [(claim.id, claim.compare) for claim in within] == [("matched-cyclip", ("cyclip", "cyclip"))]
    assert within[0].text.startswith("Gradient noise fraction (towers as siglip) is lower under cyclip than its")
    assert [claim.compare[0] for claim in derived.claims] == ["cyclip"] * 5


def test_findings_and_tables_name_the_other_measure_where_there_is_one(results, findings):
    plain = findings.to_json()["claims"]
    assert [claim.get("against_measure") for claim in plain] == [None, None, OTHER]
    assert "against_measure" not in plain[0]
    assert tables(results, findings)["findings"]["against_measure"].tolist() == ["", "", OTHER]


def test_the_report_says_what_was_subtracted_from_what(results, findings):
    drawn = forest_plot(results, findings)
    answer = next(answer for answer in answers(ReportData(results, findings)) if answer["id"] == "matched")
    assert answer["arms"] == ("gradient noise fraction as siglip against gradient noise fraction as clip, both of clip")
    told = texts_of("method", results, findings)
    assert "(towers as clip) of the same runs of clip: the two numbers of a run" in told["The claim matched"]
    assert "expected lower, margin 0.1" in told["The claim matched"]
    assert "held-out pairs" in told["Both losses at the same parameters"]
    assert f"matched: supported, ratio clip's {OWN} to {OTHER} 0." in drawn.alt
    heads = [column["label"] for column in cell_table(results)["columns"]]
    assert {label[:1].upper() + label[1:] for label in LABELS} <= set(heads)


def test_seeds_are_planned_from_the_differences_of_the_measures(study, results, findings):
    need = seeds_by_claim(study, results)[2]
    assert_allclose(need.sd, compared(results, study.claims[2], need.confidence).sd)
    assert need.width == pytest.approx(math.log(1.1))
    assert 2 <= need.likely <= need.safe


def test_either_measure_too_close_to_chance_makes_a_bounded_claim_not_testable():
    claim = CLAIM.replace(OWN, "recall_at_1").replace(OTHER, "zero_shot_accuracy")
    made = curves(study_of(PLAIN + claim))
    good = made.steps.assign(zero_shot_accuracy=made.steps["recall_at_1"], zero_shot_accuracy_chance=0.01)
    low = good.assign(zero_shot_accuracy=good["recall_at_1"].where(good["recall_at_1"].isna(), 0.02))
    assert analyze(replace(made, steps=good), checks=False).claims[2].verdict != "not-testable"
    found = analyze(replace(made, steps=low), checks=False).claims[2]
    assert found.verdict == "not-testable"
    assert "clip at batch size 8 reaches only 2.0 times the chance level of Zero-shot accuracy" in found.reason


def test_sides_at_the_ceiling_of_their_measure_are_a_limitation(study):
    runs = 6 * 2 * 2
    said = {}
    for own, other in ((0.99, 0.995), (0.9, 0.995)):
        logs = np.log(np.tile([own, other], (runs, 1))) + np.random.default_rng(0).normal(0, 1e-4, (runs, 2))
        made = results_with(study, logs)
        said[own] = texts_of("limitations", made, analyze(made, checks=False))
    title = "Gradient noise fraction (towers as siglip) saturated"
    assert "above 98% of the highest value that there is, 1, at batch 8 (0.99 and 0.995 of it)" in said[0.99][title]
    assert "at batch 16 (0.99 and 0.995 of it)" in said[0.99][title]
    assert title not in said[0.9]


@pytest.fixture(scope="module")
def many():
    """Results of 300 studies of ten seeds as one: a run has both measures once, at the end."""
    plain = PLAIN.split("[[claims]]")[0] + CLAIM.replace("text =", "primary = true\ntext =")
    for old, new in (("seeds = 6", "seeds = 3000"), ("noise = [0.0, 0.4]", "noise = [0.0]"), ("[8, 16]", "[8]")):
        plain = plain.replace(old, new)
    study = study_of(plain)
    runs = pd.DataFrame(
        [{"run": run.id, **{key: getattr(run, key) for key in ("arm", "seed", *AXES)}} for run in runs_of(study)]
    )
    second = {study.measures[name].pooled[1]: 1.0 for name in (OWN, OTHER)}
    steps = pd.DataFrame({"run": runs["run"], "step": study.train.steps, **second})
    return Results(study, {}, runs.assign(status="finished"), steps, study.measures)


@pytest.mark.parametrize("name", shape)
def test_two_measures_alike_in_law_get_a_direction_no_more_often_than_promised(many, name):
    """A run's two measures share most of their luck: whatever its shape, the interval errs at most as it says."""
    seeds, trials = 10, 300
    arms = NoiseModel(np.random.default_rng(11), name, seeds=len(many.runs), correlation=0.9).arms()
    traces = {
        many.study.measures[one].pooled[0]: np.exp(0.1 * rng_seed[:, 0, 0])
        for one, rng_seed in zip((OWN, OTHER), arms, strict=True)
    }
    whole = compared(replace(many, steps=many.steps.assign(**traces)), many.study.claims[0], 0.95)
    wrong = 0
    for differences in np.array(whole.per_seed).reshape(trials, seeds):
        found = stats.paired_difference(differences, np.zeros(seeds), log=True)
        wrong += not found.interval[0] <= 1 <= found.interval[1]
    assert 0 < wrong <= upper_band(trials) * trials
