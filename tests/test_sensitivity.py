"""The sensitivity appendix: distribution-free intervals, the mixed model, and what a disagreement is called."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from numpy.testing import assert_allclose
from scipy.stats import wilcoxon
from test_analysis import jitter, synthetic

from stability import stats as st
from stability.analysis import analyze, findings_text
from stability.contrasts import compare, contrast
from stability.registry import InputError
from stability.sensitivity import NOTHING, Question, sensitivity
from stability.stats.mixed import mixed_model
from stability.stats.nonparametric import rank_estimate, sign_flip_estimate, signed_rank_chances


def test_the_chances_of_a_rank_sum_are_those_of_all_signs():
    sums = [sum(rank for rank, up in enumerate(signs, 1) if up) for signs in itertools.product((0, 1), repeat=7)]
    assert_allclose(signed_rank_chances(7), np.bincount(sums) / 2**7)


@given(seed=some.integers(0, 2**32), n=some.integers(2, 14), shift=some.floats(-1, 1))
@settings(max_examples=60, deadline=None)
def test_ranks_are_scipy_s_and_their_interval_excludes_0_exactly_where_they_reject(seed, n, shift):
    per_seed = np.random.default_rng(seed).normal(size=n) + shift
    found = rank_estimate(per_seed, 0.95)
    assert_allclose(found.p_value, wilcoxon(per_seed, method="exact").pvalue)
    averages = [(x + y) / 2 for x, y in itertools.combinations_with_replacement(per_seed, 2)]
    assert_allclose(found.center, np.median(averages))
    assert (found.interval[0] > 0 or found.interval[1] < 0) == (found.p_value <= 0.05)
    assert (found.equivalence_interval[0] > 0 or found.equivalence_interval[1] < 0) == (found.p_value <= 0.1)


@given(seed=some.integers(0, 2**32), n=some.integers(2, 10), shift=some.floats(-1, 1))
@settings(max_examples=40, deadline=None)
def test_the_interval_of_sign_flips_excludes_0_exactly_where_they_reject(seed, n, shift):
    per_seed = np.random.default_rng(seed).normal(size=n) + shift
    found = sign_flip_estimate(per_seed, 0.95)
    assert (found.interval[0] > 0 or found.interval[1] < 0) == (found.p_value <= 0.05)


@pytest.mark.parametrize("estimate", [sign_flip_estimate, rank_estimate])
@pytest.mark.parametrize("n", [5, 6, 8])
def test_among_all_signs_of_the_same_sizes_at_least_95_percent_of_intervals_hold_the_centre(estimate, n):
    sizes = np.random.default_rng(0).exponential(size=n)
    found = [estimate(sizes * signs, 0.95) for signs in itertools.product((-1, 1), repeat=n)]
    held = np.mean([each.interval[0] <= 0 <= each.interval[1] for each in found])
    assert held >= 0.95
    assert held == 1 or n > 5  # five signs cannot reach .05
    assert held <= 0.97 or n <= 6


def test_many_seeds_take_random_subsets_and_the_same_ones_each_time():
    per_seed = np.random.default_rng(1).normal(0.5, 1, 30)
    found, again = (sign_flip_estimate(per_seed, 0.95) for _ in range(2))
    assert found == again
    half = 2.045 * per_seed.std(ddof=1) / math.sqrt(30)
    assert_allclose(found.interval, (per_seed.mean() - half, per_seed.mean() + half), rtol=0.15)


@pytest.mark.parametrize("estimate", [sign_flip_estimate, rank_estimate])
def test_a_confidence_of_one_is_refused(estimate):
    with pytest.raises(InputError, match="confidence 1"):
        estimate(np.arange(5.0), 1)


def runs(seed, seeds=10, levels=3, cells=2, arm=0.7, effect=0.5):
    """Two arms with luck of the seed, of the arm within the seed, and of the cell."""
    rng = np.random.default_rng(seed)
    rng_seed = rng.normal(size=(seeds, 1, 1))
    a, b = (rng_seed + arm * rng.normal(size=(seeds, 1, 1)) + rng.normal(size=(seeds, levels, cells)) for _ in range(2))
    return a + effect, b


def test_in_a_balanced_design_the_mixed_model_is_the_paired_t():
    a, b = runs(0)
    found, primary = mixed_model(a, b, confidence=0.95), st.paired_difference(a, b)
    assert found.fit == "fitted"
    assert_allclose(found.estimate.center, primary.effect)
    assert_allclose(found.estimate.interval, primary.interval, rtol=1e-2)


def test_the_mixed_model_s_slope_is_the_difference_of_slopes():
    a, b = runs(1)
    levels = np.array([0.0, 0.2, 0.4])
    a = a + 2 * levels[:, None]
    found = mixed_model(a, b, confidence=0.95, levels=levels)
    assert_allclose(found.estimate.center, st.slope_difference(a, b, levels=levels).effect)


def test_a_variance_that_is_0_is_a_named_outcome():
    a, b = runs(2, arm=0.0, seeds=6)
    # Differences that vary less over seeds than over cells leave the arm within the seed no variance.
    b = b + (a - b).mean(axis=(1, 2), keepdims=True)
    found = mixed_model(a + 0.3, b, confidence=0.95)
    assert found.fit == "boundary"
    assert "variance" in found.reason


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        (np.ones((8, 1, 1)), np.zeros((8, 1, 1)), "several numbers a run"),
        (np.ones((2, 3, 2)), np.zeros((2, 3, 2)), "at least 3 seeds"),
        (np.ones((8, 3, 2)), np.ones((8, 3, 2)), "do not vary"),
    ],
)
def test_a_design_that_has_no_mixed_model_says_why(a, b, reason):
    found = mixed_model(a, b, confidence=0.95)
    assert (found.fit, found.estimate) == ("not-applicable", None)
    assert reason in found.reason


def asked(name, a, b, expect="higher", margin=0.1):
    supplied = {"levels": (0.0, 0.2, 0.4), "log": False, "budget": 9.0, "names": ("a", "b"), "measure": "value"}
    supplied["confidence"] = 0.95
    primary = compare(name, a, b, supplied=supplied)
    question = Question(name, supplied, expect, margin)
    return sensitivity(primary, st.verdict(primary, expect=expect, margin=margin).verdict, (a, b), question)


def test_a_clear_difference_is_clear_to_all():
    a, b = runs(3, effect=5.0)
    found = asked("difference", a, b)
    assert found.agrees
    assert found.sentence == (
        "The verdict, supported, is the same by sign flips, by ranks, by a mixed model and without any one seed."
    )
    assert [check.outcome for check in found.checks] == ["done"] * 4


def test_a_verdict_that_hangs_on_one_seed_is_said_to():
    differences = np.array([1.0, 1.1, 0.9, 1.05, 0.95, 1.02, 0.98, 8.0]).reshape(-1, 1, 1)
    found = asked("difference", differences, np.zeros_like(differences))
    assert not found.agrees
    assert "By sign flips it is supported, not inconclusive (effect 1.88, interval " in found.sentence
    assert "Leaving out one seed changes the verdict, inconclusive: supported without seed 7." in found.sentence
    mixed = next(check for check in found.checks if check.name == "mixed-model")
    assert (mixed.outcome, mixed.verdict) == ("not-applicable", "")


def test_five_seeds_are_too_few_for_signs_and_the_sentence_says_so():
    a = np.array([1.0, 1.1, 0.9, 1.05, 0.95]).reshape(-1, 1, 1)
    found = asked("difference", a, np.zeros_like(a))
    assert "By ranks it is inconclusive, not supported (effect 1, interval unbounded): 5 seeds are too few" in (
        found.sentence
    )


def test_the_range_without_one_seed_is_that_of_the_means():
    a, b = runs(4, levels=1, cells=1)
    per_seed = (a - b).reshape(-1)
    without = [np.delete(per_seed, seed).mean() for seed in range(len(per_seed))]
    check = asked("difference", a, b).checks[-1]
    assert_allclose(check.interval, (min(without), max(without)))


@pytest.mark.parametrize("name", contrast)
def test_every_contrast_is_checked_on_its_own_scale(name):
    a, b = (np.exp(arm) for arm in runs(5, effect=0.2))
    if contrast[name].traits.axes:
        # Runs collapse from some level on: never at the lowest, always at the highest.
        a, b = (np.where(np.arange(3)[:, None] == 1, arm > 1, np.arange(3)[:, None] == 2) * 1.0 for arm in (a, b))
    elif contrast[name].traits.on_events:
        a, b = (a > 1).astype(float), (b > 1).astype(float)
    found = asked(name, a, b)
    assert [check.name for check in found.checks] == ["sign-flips", "ranks", "mixed-model", "leave-one-seed-out"]
    primary = found.checks[-1].effect
    for check in found.checks:
        if check.verdict:
            assert check.interval[0] <= check.effect <= check.interval[1]
            assert_allclose(check.effect, primary, atol=1.0)
    assert (found.checks[2].outcome != "not-applicable") == bool(contrast[name].traits.mixed)


def test_what_was_not_tested_is_not_checked():
    a = np.ones((1, 3, 2))
    assert asked("difference", a, a) == NOTHING


def test_findings_carry_the_checks_and_no_verdict_hangs_on_them(tiny_text):
    results = synthetic(tiny_text, recall=lambda run: 0.5 * jitter(run), noise_fraction=jitter)
    findings = analyze(results)
    plain = json.loads(findings_text(findings), parse_constant=pytest.fail)
    for claim, finding in zip(plain["claims"], findings.claims, strict=True):
        assert set(claim["sensitivity"]) == {"agrees", "sentence", "checks"}
        assert claim["sensitivity"]["sentence"] == finding.sensitivity.sentence
    bare = analyze(results, checks=False)
    assert [claim.verdict for claim in bare.claims] == [claim.verdict for claim in findings.claims]
    assert all(not claim.sensitivity.checks for claim in bare.claims)
    assert any(claim.sensitivity.checks for claim in findings.claims)
