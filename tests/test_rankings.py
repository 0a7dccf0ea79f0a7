"""Rankings: intervals for all pairs at once, letters for ties, in findings.json and in the report."""

from __future__ import annotations

import itertools
import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import stats as scipy_stats

from stability.analysis import analyze, findings_text, load_results
from stability.execute import run
from stability.registry import InputError
from stability.stats import paired_difference, ranking
from stability.stats.rankings import letters_of
from stability.study import parse_study
from tests.report_blocks import figures_of, texts_of


def sample(seed=0, seeds=8, arms=5):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(seeds, arms)) + rng.normal(size=(seeds, 1)) + np.arange(arms) * 0.8


NAMES = ["a", "b", "c", "d", "e"]


# --- intervals -------------------------------------------------------------------------------------------------------


def test_with_two_arms_the_interval_is_that_of_the_paired_difference():
    values = sample(arms=2)
    found = ranking(values, ["a", "b"], confidence=0.9)
    expected = paired_difference(values[:, 1], values[:, 0], confidence=0.9)
    (pair,) = found.pairs
    assert pair.names == ("b", "a")
    assert_allclose(pair.interval, expected.interval, rtol=1e-12)
    assert_allclose(found.arms[1].interval, [-end for end in expected.interval[::-1]], rtol=1e-12)


def test_each_of_the_pairs_has_a_share_of_the_error():
    values = sample()
    found = ranking(values, NAMES)
    for pair in found.pairs:
        a, b = (values[:, NAMES.index(name)] for name in pair.names)
        test = scipy_stats.ttest_rel(a, b).confidence_interval(1 - 0.05 / 10)
        assert_allclose(pair.interval, (test.low, test.high), rtol=1e-9)
        assert_allclose(pair.difference, np.mean(a - b), rtol=1e-9)


@given(st.permutations(range(5)), st.permutations(range(8)), st.floats(-5, 5))
def test_neither_the_order_of_arms_and_seeds_nor_what_a_seed_adds_to_all_arms_matters(arms, seeds, shift):
    values = sample()
    plain = ranking(values, NAMES)
    turned = ranking((values + shift)[seeds][:, arms], [NAMES[arm] for arm in arms])
    assert [(p.name, p.letters) for p in turned.arms] == [(p.name, p.letters) for p in plain.arms]
    assert_allclose([p.interval for p in turned.arms], [p.interval for p in plain.arms], atol=1e-9)


def test_lower_is_better_reverses_the_order():
    values = sample()
    up, down = ranking(values, NAMES), ranking(values, NAMES, better="lower")
    assert [place.name for place in down.arms] == [place.name for place in up.arms][::-1]
    assert all(pair.difference <= 0 for pair in down.pairs)


def test_a_seed_without_a_value_is_left_out_for_all_and_one_seed_ranks_nothing():
    values = sample()
    values[3, 2] = np.nan
    found = ranking(values, NAMES)
    assert (found.n, found.left_out) == (7, 1)
    assert_allclose(found.arms[0].mean, np.delete(values, 3, 0).mean(0).max())
    assert ranking(values[:1], NAMES).problem == "1 of 1 seeds have a value for every arm"
    with pytest.raises(InputError, match="allowed: \\(seeds, arms\\)"):
        ranking(values, NAMES[:3])


def test_differences_that_do_not_vary_are_apart_once_their_sign_alone_says_so():
    few, many = (ranking(np.tile([1.0, 2.0, 2.0], (seeds, 1)), ["a", "b", "c"]) for seeds in (4, 12))
    assert [place.letters for place in few.arms] == ["a", "a", "a"]
    assert few.arms[1].interval == (-math.inf, math.inf)
    assert [(place.name, place.letters) for place in many.arms] == [("b", "a"), ("c", "a"), ("a", "b")]


# --- letters ---------------------------------------------------------------------------------------------------------


@st.composite
def pairs_apart(draw):
    count = draw(st.integers(2, 7))
    return count, draw(st.sets(st.sampled_from([*itertools.combinations(range(count), 2)])))


@given(pairs_apart())
def test_two_arms_share_a_letter_exactly_if_they_are_not_apart(drawn):
    count, apart = drawn
    letters = letters_of(count, apart)
    assert all(letters)
    for i, j in itertools.combinations(range(count), 2):
        assert bool({*letters[i]} & {*letters[j]}) == ((i, j) not in apart)


# --- calibration -----------------------------------------------------------------------------------------------------


def any_wrong(seeds, arms, spread, trials, seed):
    rng = np.random.default_rng(seed)
    wrong = 0
    for _ in range(trials):
        values = rng.normal(size=(seeds, arms)) * spread + rng.normal(size=(seeds, 1))
        found = ranking(values, [str(arm) for arm in range(arms)])
        wrong += any(pair.is_distinct for pair in found.pairs)
    return wrong / trials


def test_equal_arms_are_told_apart_in_no_more_than_5_percent_of_studies():
    assert any_wrong(8, 5, 1.0, 300, seed=1) <= scipy_stats.binom.ppf(0.999, 300, 0.05) / 300


@pytest.mark.slow
@pytest.mark.parametrize("arms", [4, 12, 20])
@pytest.mark.parametrize("seeds", [5, 10, 20])
@pytest.mark.parametrize("uneven", [1.0, 4.0], ids=["even", "uneven"])
def test_the_promise_holds_for_many_arms_whose_spreads_differ(arms, seeds, uneven):
    wrong = any_wrong(seeds, arms, np.geomspace(1, uneven, arms), 1000, seed=2)
    assert wrong <= scipy_stats.binom.ppf(0.999, 1000, 0.05) / 1000


@pytest.mark.slow
def test_tukey_s_range_would_not_keep_it_where_spreads_differ():
    seeds, arms, trials = 10, 12, 400
    rng, wrong = np.random.default_rng(3), 0
    df = (seeds - 1) * (arms - 1)
    critical = scipy_stats.studentized_range.ppf(0.95, arms, df)
    for _ in range(trials):
        values = rng.normal(size=(seeds, arms)) * np.geomspace(1, 4, arms) + rng.normal(size=(seeds, 1))
        means = values.mean(0)
        rest = values - values.mean(1, keepdims=True) - means + values.mean()
        wrong += np.ptp(means) > critical * np.sqrt((rest**2).sum() / df / seeds)
    assert wrong / trials > 0.09


# --- studies ---------------------------------------------------------------------------------------------------------


WHOLE = re.compile(
    r"\[probes\.(matched_gradient_noise|geometry|separability|cross_check|curvature|gradient_noise)\]\n(\w.*\n)*"
)


def ranked_text(tiny_text, table='measure = "recall_at_1"'):
    text = WHOLE.sub("", tiny_text).replace("gradient_noise_fraction", "recall_at_1").replace("[8, 16]", "[8]")
    text = text.replace('arms = ["clip", "siglip-log-b"]', 'arms = ["clip", "siglip-log-b", "dcl"]')
    return text.replace("[scales.smoke]", f"[[rankings]]\n{table}\n\n[scales.smoke]")


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ('measure = "recal_at_1"', r"t: rankings\[0\]\.measure: got 'recal_at_1'; allowed: a measure with a better .*"),
        ('measure = "log_scale"', r"t: rankings\[0\]\.measure: got 'log_scale'; allowed: a measure with a better .*"),
        (
            'measure = "loss"\nlosses = ["clip"]',
            r"t: rankings\[0\]\.losses: got \['clip'\]; allowed: two arms or more.*",
        ),
        (
            'measure = "loss"\nlosses = ["clip", "dlc"]',
            r"t: rankings\[0\]\.losses\[1\]: 'dlc' is not in grid\.arms.*'dcl'.*",
        ),
        (
            'measure = "loss"\ntransform = "log_above_chance"',
            r"t: rankings\[0\]\.transform: 'loss' has no chance level .*",
        ),
        (
            'measure = "loss"\n[[rankings]]\nmeasure = "loss"',
            r"t: rankings\[0\]\.measure: 'loss' is ranked twice in the same way",
        ),
        ('measure = "loss"\nlimit = 3', r"t: rankings\[0\]\.limit: unknown key.*"),
    ],
)
def test_a_mistake_in_a_ranking_is_one_sentence(tiny_text, table, sentence):
    with pytest.raises(InputError) as caught:
        parse_study(ranked_text(tiny_text, table), "t", "t")
    assert re.fullmatch(sentence, str(caught.value)), str(caught.value)


def test_a_ranking_changes_the_hash_but_no_run(tiny_text):
    from stability.grid import runs_of

    study = parse_study(ranked_text(tiny_text), "t", "t")
    plain = parse_study(ranked_text(tiny_text).replace('[[rankings]]\nmeasure = "recall_at_1"\n', ""), "t", "t")
    assert study.hash != plain.hash
    assert [run.id for run in runs_of(study)] == [run.id for run in runs_of(plain)]


@pytest.fixture(scope="module")
def ranked_run(tiny_text, tmp_path_factory):
    table = 'measure = "recall_at_1"\n\n[[rankings]]\nmeasure = "loss"\ntransform = "relative_to_chance"\n'
    table += 'losses = ["clip", "dcl"]'
    study = parse_study(ranked_text(tiny_text, table), "t", "t")
    return load_results(run(study, "cpu", out=tmp_path_factory.mktemp("ranked") / "run"))


def test_findings_and_report_hold_the_order_and_every_pair(ranked_run):
    findings = analyze(ranked_run, checks=False)
    recall, loss = findings.rankings
    assert {place.name for place in recall.ranking.arms} == {"clip", "siglip-log-b", "dcl"}
    assert {place.name for place in loss.ranking.arms} == {"clip", "dcl"}
    assert recall.ranking.confidence == loss.ranking.confidence == 1 - 0.05 / 2
    assert (recall.transform, loss.transform, recall.better, loss.better) == (
        "log_above_chance",
        "relative_to_chance",
        "higher",
        "lower",
    )
    plain = json.loads(findings_text(findings))
    assert [one["measure"] for one in plain["rankings"]] == ["recall_at_1", "loss"]
    assert len(plain["rankings"][0]["ranking"]["pairs"]) == 3
    drawn = [one for one in figures_of(ranked_run, findings) if one.id.startswith("ranking")]
    assert [one.id for one in drawn] == ["ranking-1", "ranking-2"]
    assert list(drawn[0].table["arm"]) == [place.name for place in recall.ranking.arms]
    assert "is first, in group a" in drawn[0].alt
    assert "The ranking by Recall@1" in texts_of("method", ranked_run, findings)


def test_a_study_without_rankings_says_nothing_of_them(tiny_run):
    assert "rankings" not in json.loads(findings_text(analyze(load_results(tiny_run), checks=False)))
