"""Paired comparisons against closed forms, library routines and symmetries; odd data has a named outcome."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose
from scipy.stats import ttest_rel
from statsmodels.stats.weightstats import ttost_paired

from stability import stats as st
from stability.registry import InputError

ordinary = some.floats(-100, 100, allow_subnormal=False)


def pairs(seed=0, seeds=8, cells=None):
    rng = np.random.default_rng(seed)
    shape = (seeds,) if cells is None else (seeds, cells)
    return rng.normal(1.0, 1.0, shape), rng.normal(0.2, 1.5, shape)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_the_paired_difference_is_scipys_paired_t_test(confidence):
    a, b = pairs()
    ours = st.paired_difference(a, b, confidence=confidence)
    theirs = ttest_rel(a, b)
    assert_allclose(ours.interval, tuple(theirs.confidence_interval(confidence)), rtol=1e-12)
    assert_allclose(ours.equivalence_interval, tuple(theirs.confidence_interval(2 * confidence - 1)), rtol=1e-10)
    assert_allclose(ours.p_value, theirs.pvalue, rtol=1e-12)
    assert_allclose((ours.effect, ours.sd), (np.mean(a - b), np.std(a - b, ddof=1)), rtol=1e-12)


def test_the_t_interval_of_the_differences_1_2_3_is_the_textbook_one():
    found = st.paired_difference([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])
    half = 4.302652729911275 / math.sqrt(3)  # t quantile .975 with 2 degrees of freedom, and SD 1
    assert_allclose(found.interval, (2 - half, 2 + half))
    assert found.n == 3


def test_cells_are_averaged_so_n_counts_seeds_and_not_evaluations():
    a, b = pairs(cells=6)
    copies = st.paired_difference(np.repeat(a, 50, axis=1), np.repeat(b, 50, axis=1))
    one = st.paired_difference(a.mean(axis=1), b.mean(axis=1))
    assert copies.n == 8
    assert_allclose(copies.interval, one.interval)


def test_a_log_ratio_is_a_paired_t_of_logs_shown_as_a_ratio():
    a, b = (np.exp(values) for values in pairs())
    found, theirs = st.log_ratio(a, b), ttest_rel(np.log(a), np.log(b))
    assert_allclose(found.interval, np.exp(tuple(theirs.confidence_interval())))
    assert_allclose(found.effect, np.exp(np.mean(np.log(a / b))))
    assert found.ratio
    assert found.no_difference == 1


def test_a_constant_factor_multiplies_the_ratio_and_moves_nothing_else():
    a, b = (np.exp(values) for values in pairs())
    plain, scaled = st.log_ratio(a, b), st.log_ratio(3 * a, b)
    assert_allclose(np.array(scaled.interval) / plain.interval, 3)
    assert_allclose(scaled.sd, plain.sd)


def test_the_slope_difference_of_two_straight_lines_is_exact():
    levels = np.array([0.0, 0.2, 0.5])
    rng = np.random.default_rng(1)
    slopes = rng.normal(size=(2, 7))
    lines = slopes[:, :, None] * levels + rng.normal(size=(2, 7, 1))
    found = st.slope_difference(*lines, levels=levels)
    wanted = st.paired_difference(*slopes)
    assert_allclose((found.effect, *found.interval), (wanted.effect, *wanted.interval))


def test_slopes_are_numpys_least_squares_slopes_averaged_over_cells():
    rng = np.random.default_rng(2)
    levels, (a, b) = [0.0, 0.1, 0.3, 0.4], rng.normal(size=(2, 6, 4, 3))
    by_hand = [
        [np.mean([np.polyfit(levels, run[:, cell], 1)[0] for cell in range(3)]) for run in arm] for arm in (a, b)
    ]
    found, wanted = st.slope_difference(a, b, levels=levels), st.paired_difference(*by_hand)
    assert_allclose((found.effect, *found.interval), (wanted.effect, *wanted.interval))


def test_times_beyond_the_budget_count_as_the_budget():
    a, b = [100.0, 200.0, math.inf, 5000.0], [400.0, 300.0, 500.0, 600.0]
    found = st.time_ratio(a, b, budget=1000)
    wanted = st.log_ratio([100, 200, 1000, 1000], b)
    assert_allclose((found.effect, *found.interval), (wanted.effect, *wanted.interval))
    assert "a never got there in 2 of 4 runs and b in 0 of 4" in found.sentence


@pytest.mark.parametrize("margin", [0.1, 1.0, 3.0])
def test_equivalence_is_statsmodels_tost_and_agrees_with_its_interval(margin):
    a, b = pairs(3)
    found = st.equivalence(a, b, margin=margin)
    assert_allclose(found.p_value, ttost_paired(a, b, -margin, margin)[0], rtol=1e-10)
    low, high = found.equivalence_interval
    assert (found.p_value < 0.05) == (-margin < low and high < margin)


def test_equivalence_of_logs_takes_a_margin_of_ratios():
    a, b = pairs(4)
    found = st.equivalence(a, b, margin=0.5, log=True)
    assert_allclose(found.p_value, ttost_paired(a, b, -math.log(1.5), math.log(1.5))[0], rtol=1e-10)


def test_the_sign_flip_test_is_the_count_over_all_sign_patterns():
    differences = np.array([0.3, -0.1, 0.8, 0.4, 0.9, -0.2, 0.5])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 7)).reshape(7, -1)
    extreme = np.abs(differences @ signs) >= abs(differences.sum()) - 1e-12
    assert_allclose(st.sign_flip(differences), extreme.mean())
    assert math.isnan(st.sign_flip([1.0]))


def test_the_sign_flip_test_of_many_seeds_is_reproducible():
    differences = np.random.default_rng(5).normal(0.5, 1, 20)
    assert st.sign_flip(differences) == st.sign_flip(differences)
    assert abs(st.sign_flip(differences) - ttest_rel(differences, 0 * differences).pvalue) < 0.02


@given(
    arrays(float, (6, 2), elements=ordinary),
    arrays(float, (6, 2), elements=ordinary),
    some.permutations(range(6)),
)
@settings(max_examples=60, deadline=None)
def test_swapping_flips_the_sign_and_permuting_seeds_changes_nothing(a, b, order):
    there, back = st.paired_difference(a, b), st.paired_difference(b, a)
    assert_allclose(there.interval, (-back.interval[1], -back.interval[0]), atol=1e-9)
    assert there.p_value == pytest.approx(back.p_value)
    moved = st.paired_difference(a[order], b[order])
    assert_allclose(moved.interval, there.interval, atol=1e-9)
    assert moved.outcome == there.outcome == back.outcome


@given(arrays(float, 6, elements=some.floats(0.01, 100)), arrays(float, 6, elements=some.floats(0.01, 100)))
@settings(max_examples=60, deadline=None)
def test_swapping_inverts_a_ratio(a, b):
    there, back = st.log_ratio(a, b), st.log_ratio(b, a)
    assert_allclose(there.effect * back.effect, 1, rtol=1e-9)
    if there.interval[1] < math.inf:
        assert_allclose(there.interval[0] * back.interval[1], 1, rtol=1e-6)


@given(arrays(float, (5, 2), elements=some.floats(allow_nan=True, allow_infinity=True)), some.data())
@settings(max_examples=150, deadline=None)
def test_any_floats_whatever_give_a_named_outcome_and_no_warning(a, data):
    b = data.draw(arrays(float, (5, 2), elements=some.floats(allow_nan=True, allow_infinity=True)))
    for found in (
        st.paired_difference(a, b),
        st.paired_difference(a, b, log=True),
        st.log_ratio(a, b),
        st.slope_difference(a, b, levels=[0.0, 0.2]),
        st.time_ratio(a, b, budget=100.0),
        st.spread_ratio(a, b),
    ):
        assert not any(math.isnan(bound) for bound in found.interval + found.equivalence_interval)
        assert found.testable == (not math.isnan(found.p_value))
        assert st.verdict(found, expect="higher", margin=0.1).verdict != ""


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_pairs_allow_no_test(n):
    found = st.paired_difference(np.ones(n), np.zeros(n))
    assert found.outcome == "too-few-pairs"
    assert found.interval == (-math.inf, math.inf)
    assert math.isnan(found.p_value)
    assert st.log_ratio(np.ones(n), np.ones(n)).interval == (0, math.inf)


def test_two_pairs_are_a_test_with_one_degree_of_freedom():
    found = st.paired_difference([1.0, 2.0], [0.0, 0.0])
    half = 12.706204736432095 * 0.5
    assert_allclose(found.interval, (1.5 - half, 1.5 + half))


def test_differences_that_do_not_vary_take_the_exact_sign_interval():
    five, six = (st.paired_difference(np.full(n, 0.3), np.full(n, 0.1)) for n in (5, 6))
    assert five.outcome == six.outcome == "constant"
    assert five.interval == (-math.inf, math.inf)
    assert_allclose(five.equivalence_interval, (0.2, 0.2))
    assert_allclose(six.interval, (0.2, 0.2))
    assert six.p_value == 2 * 0.5**6
    assert "all 6 seeds give the same" in six.sentence


def test_rounding_errors_do_not_pass_for_a_spread():
    b = np.array([0.1, 0.2, 0.3, 0.7, 1.1, 2.3])
    assert st.paired_difference(b + 0.1, b).outcome == "constant"
    assert st.log_ratio(1.7 * b, b).outcome == "constant"
    identical = st.paired_difference(b, b)
    assert (identical.effect, identical.p_value) == (0.0, 1.0)


def test_pairs_without_a_finite_value_are_left_out_aloud():
    a, b = pairs()
    a[2], b[5] = math.nan, math.inf
    found = st.paired_difference(a, b)
    keep = np.delete(np.arange(8), [2, 5])
    assert found.interval == st.paired_difference(a[keep], b[keep]).interval
    assert (found.n, found.left_out) == (6, 2)
    assert "2 of 8 seeds had no finite value and are left out" in found.sentence


def test_a_value_that_is_not_positive_makes_a_ratio_untestable_instead_of_biased():
    found = st.log_ratio([1.0, -0.2, 2.0, 3.0], [1.0, 2.0, 3.0, 1.0])
    assert (found.outcome, found.n) == ("not-positive", 3)
    assert "1 of 4 seeds with a value at or below 0" in found.problem


def test_times_that_are_all_censored_are_not_equal_times():
    found = st.time_ratio([math.inf] * 8, [900.0] * 8, budget=500)
    assert found.outcome == "all-censored"
    assert "neither a nor b reached the threshold within the budget of 500" in found.sentence


def test_a_threshold_met_at_time_0_is_not_timed():
    found = st.time_ratio([0.0, 10.0, 20.0], [30.0, 10.0, 20.0], budget=500)
    assert found.outcome == "not-positive"


def test_one_side_constant_is_an_ordinary_comparison():
    b = pairs()[1]
    assert st.paired_difference(np.ones(8), b).outcome == "tested"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: st.paired_difference([1.0, 2.0], [1.0]),
            r"arms of shapes \(2,\) and \(1,\); allowed: equal shapes",
        ),
        (lambda: st.paired_difference(1.0, 2.0), "seeds on axis 0"),
        (lambda: st.paired_difference(np.ones((3, 0)), np.ones((3, 0))), "at least one value a seed"),
        (
            lambda: st.paired_difference([1.0, 2.0], [2.0, 1.0], confidence=0.5),
            "confidence 0.5; allowed: above 0.5",
        ),
        (
            lambda: st.slope_difference(np.ones((3, 2)), np.ones((3, 2)), levels=[1.0]),
            "one for each entry of axis 1",
        ),
        (
            lambda: st.slope_difference(np.ones((3, 2)), np.ones((3, 2)), levels=[1, 1]),
            "at least two of them different",
        ),
        (
            lambda: st.time_ratio([1.0, 2.0], [2.0, 1.0], budget=math.inf),
            "budget inf; allowed: a finite number",
        ),
        (
            lambda: st.equivalence([1.0, 2.0], [2.0, 1.0], margin=0.0),
            "margin 0.0; allowed: a finite number above 0",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (
            st.log_ratio([0.8, 0.9, 0.85, 0.88], [1.0, 1.0, 1.0, 1.0], names=("siglip", "clip"), measure="noise"),
            "siglip's noise is 14% lower than clip's (ratio 0.857, 95% CI 0.789 to 0.93, n = 4 seeds).",
        ),
        (
            st.time_ratio([100, 120, 110], [300, 360, 340], budget=500, names=("siglip", "clip"), measure="recall 0.3"),
            "siglip takes 67% fewer steps than clip to reach recall 0.3 "
            "(ratio of steps 0.33, 95% CI 0.316 to 0.344, n = 3 seeds).",
        ),
        (
            st.log_ratio([5.0, 6.0, 7.0], [1.0, 2.0, 1.0]),
            "a's value is 4.72 times b's (ratio 4.72, 95% CI 1.63 to 13.6, n = 3 seeds).",
        ),
    ],
)
def test_sentences_are_plain_words(found, sentence):
    assert found.sentence == sentence
