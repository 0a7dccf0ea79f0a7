"""Effects of independent sites: their differences and their random-effects mean, against closed forms and twins."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student
from scipy.stats import ttest_1samp, ttest_ind

from stability import stats
from stability.calibrate.sites import joined_rates, word_rates
from stability.registry import InputError
from stability.replication_agreement import agreement
from stability.stats.sites import Site, joined, paule_mandel, site_difference, site_of


def test_a_site_read_from_a_paired_t_interval_has_its_error_and_a_ratio_is_read_on_logarithms():
    values = np.array([0.1, 0.4, 0.2, 0.5, 0.35])
    found = stats.paired_difference(values, np.zeros(5), confidence=0.99)
    site = site_of(found.effect, found.interval, found.n, 0.99, ratio=False)
    assert (site.effect, site.df) == (pytest.approx(values.mean()), 4)
    assert site.error == pytest.approx(values.std(ddof=1) / math.sqrt(5))
    shown = tuple(math.exp(end) for end in found.interval)
    ratio = site_of(math.exp(found.effect), shown, 5, 0.99, ratio=True)
    assert (ratio.effect, ratio.error) == (pytest.approx(site.effect), pytest.approx(site.error))
    assert site_of(0.1, (-math.inf, math.inf), 5, 0.95, ratio=False) is None
    assert site_of(0.1, (0.0, 0.2), 5, 0.95, ratio=True) is None


def test_the_difference_of_two_sites_is_welchs_t_test():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, 6), rng.normal(1, 3, 9)
    sites = [Site(x.mean(), x.std(ddof=1) / math.sqrt(len(x)), len(x) - 1) for x in (a, b)]
    found, twin = site_difference(*sites, 0.95), ttest_ind(a, b, equal_var=False)
    low, high = twin.confidence_interval(0.95)
    assert found.interval == (pytest.approx(low), pytest.approx(high))
    assert found.p_value == pytest.approx(twin.pvalue)
    # With one site known exactly it is the t interval of the other.
    one = site_difference(sites[0], Site(0.0, 0.0, 3), 0.95)
    assert one.interval == pytest.approx(ttest_1samp(a, 0).confidence_interval(0.95))
    with pytest.raises(InputError, match="allowed: one above 0 at least"):
        site_difference(Site(0, 0, 3), Site(1, 0, 3), 0.95)


def twin_of(effects, errors, confidence, at_least_fixed):
    """The same by a scan for tau^2 and sums in plain Python."""
    k = len(effects)

    def mean_and_q(tau2):
        weights = [1 / (s * s + tau2) for s in errors]
        mean = sum(w * y for w, y in zip(weights, effects, strict=True)) / sum(weights)
        return mean, sum(w * (y - mean) ** 2 for w, y in zip(weights, effects, strict=True)), sum(weights)

    low, high = 0.0, 0.0
    if mean_and_q(0.0)[1] > k - 1:
        high = 1.0
        while mean_and_q(high)[1] > k - 1:
            high *= 2
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if mean_and_q(middle)[1] > k - 1 else (low, middle)
    mean, total, weight = mean_and_q(high)
    q = max(1.0, total / (k - 1)) if at_least_fixed else total / (k - 1)
    half = student.ppf((1 + confidence) / 2, k - 1) * math.sqrt(q / weight)
    return mean, (mean - half, mean + half), math.sqrt(high)


@given(
    st.lists(st.tuples(st.floats(-3, 3), st.floats(0.05, 2)), min_size=2, max_size=6),
    st.sampled_from([0.9, 0.95, 0.99]),
    st.booleans(),
)
def test_the_random_effects_mean_is_that_of_a_slow_twin(values, confidence, at_least_fixed):
    effects, errors = zip(*values, strict=True)
    sites = [Site(effect, error, 7) for effect, error in values]
    found = joined(sites, confidence, at_least_fixed=at_least_fixed)
    mean, interval, tau = twin_of(effects, errors, confidence, at_least_fixed)
    assert found.tau == pytest.approx(tau, rel=1e-5, abs=1e-6)
    assert found.effect == pytest.approx(mean, rel=1e-6, abs=1e-6)
    assert found.interval == pytest.approx(interval, rel=1e-5, abs=1e-5)
    assert found.sites == len(values)


def test_with_equal_errors_the_interval_is_the_t_interval_of_the_sites_effects():
    effects = np.array([0.1, 0.9, -0.3, 0.5])
    for error in (0.01, 5.0):
        found = joined([Site(effect, error, 7) for effect in effects], 0.95, at_least_fixed=False)
        low, high = ttest_1samp(effects, 0).confidence_interval(0.95)
        assert found.interval == (pytest.approx(low), pytest.approx(high))
        assert found.tau == pytest.approx(math.sqrt(max(0.0, effects.var(ddof=1) - error**2)))
    # Sites that agree better than their errors allow: tau is 0, and the interval that of a known error.
    half = student.ppf(0.975, 3) * 5.0 / 2
    assert joined([Site(effect, 5.0, 7) for effect in effects], 0.95).interval == pytest.approx(
        (0.3 - half, 0.3 + half)
    )
    assert paule_mandel(np.array([1.0, 1.0]), np.array([0.1, 0.2])) == 0.0


def test_one_site_or_one_without_an_error_cannot_be_joined():
    for sites in ([Site(0, 1, 3)], [Site(0, 1, 3), Site(0, 0.0, 3)]):
        with pytest.raises(InputError, match="allowed: two or more, with standard errors above 0"):
            joined(sites, 0.95)


# --- the words -------------------------------------------------------------------------------------------------------


def effect(low, high, verdict="supported", margin=0.1, ratio=False, n=8):
    center = math.sqrt(low * high) if ratio else (low + high) / 2
    kept = {"verdict": verdict, "margin": margin, "ratio": ratio, "n_pairs": n, "confidence": 0.95}
    return SimpleNamespace(effect=center, interval=(low, high), **kept)


@pytest.mark.parametrize(
    ("own", "other", "word"),
    [
        (effect(0.28, 0.32), effect(0.29, 0.33), "same"),
        (effect(0.28, 0.32), effect(0.08, 0.12), "weaker"),
        (effect(0.28, 0.32), effect(-0.1, 0.01), "weaker"),
        (effect(0.28, 0.32), effect(0.6, 0.7), "stronger"),
        (effect(-0.32, -0.28), effect(-0.7, -0.6), "stronger"),
        (effect(0.28, 0.32), effect(-0.7, -0.6), "opposite"),
        # Apart, on different sides, and both far inside the margin; then with a difference that is not.
        (effect(0.001, 0.003), effect(-0.003, -0.001, "equivalent"), "same"),
        (effect(0.05, 0.07), effect(-0.07, -0.05, "equivalent"), "opposite"),
        (effect(0.1, 0.5), effect(-0.1, 0.5), "open"),
        (effect(0.28, 0.32), effect(-math.inf, math.inf), "open"),
        (effect(0.28, 0.32), effect(0.28, 0.32, "not-testable"), "not testable"),
        # The case that comparing verdicts calls a disagreement: one lies across the margin, the other inside.
        (effect(0.903, 0.926, ratio=True), effect(0.913, 0.931, "equivalent", ratio=True), "same"),
    ],
)
def test_the_word_follows_from_the_intervals_and_not_from_the_verdicts(own, other, word):
    (site,) = agreement(own, {"b": other}).sites
    assert (site.name, site.word) == ("b", word)


def test_differences_of_ratios_are_ratios():
    found = agreement(effect(1.9, 2.1, ratio=True), {"b": effect(3.8, 4.2, ratio=True)})
    assert found.sites[0].difference == pytest.approx(2.0)
    assert found.sites[0].interval[0] > 1
    assert found.joined.effect == pytest.approx(math.sqrt(math.sqrt(1.9 * 2.1) * math.sqrt(3.8 * 4.2)), rel=1e-6)


# --- known truth -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sites", [3, 5])
@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_the_joined_interval_covers_the_mean_of_the_true_effects(sites, tau):
    rates = joined_rates(sites, tau, trials=600)
    assert rates.covered >= 0.93
    assert rates.covered_unadjusted <= rates.covered


def test_each_word_errs_no_more_than_promised():
    rates = word_rates(difference=0.0, trials=1500)
    assert rates["stronger"] + rates["weaker"] <= 0.07
    assert rates["opposite"] <= 0.01
    at_margin = word_rates(difference=1.0, trials=1500)
    assert at_margin["same"] <= 0.07
