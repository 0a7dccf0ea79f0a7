"""Power and seeds against statsmodels, simulation and quadrature; multiplicity; registered looks."""

import math
import sys
import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.integrate import quad
from scipy.stats import chi, chi2, norm
from scipy.stats import t as t_distribution
from statsmodels.stats.power import TTestPower

from stability import stats as st
from stability.registry import InputError


@pytest.mark.parametrize("n", [2, 5, 10, 40])
@pytest.mark.parametrize("effect", [0.0, 0.4, -1.0, 2.5])
@pytest.mark.parametrize("confidence", [0.95, 0.99])
def test_power_is_statsmodels_paired_power(n, effect, confidence):
    theirs = TTestPower().power(abs(effect), n, 1 - confidence, alternative="two-sided")
    # Far in the tail scipy's noncentral t, on which theirs rests, has no value; ours is then 1 up to rounding.
    assert_allclose(st.power(n, effect, confidence=confidence), 1.0 if np.isnan(theirs) else theirs, atol=1e-9)
    assert not np.isnan(theirs) or effect**2 * n > 200


def test_power_depends_on_the_effect_in_standard_deviations_alone():
    assert st.power(8, 3.0, 2.0) == st.power(8, 1.5)
    assert st.power(1, 5.0) == 0
    assert st.power(20, 1000.0) == 1


@pytest.mark.parametrize(
    ("n", "margin", "confidence"),
    [(3, 2.0, 0.95), (11, 1.0, 0.95), (36, 0.5, 0.95), (55, 0.5, 0.99)],
)
def test_the_power_of_equivalence_is_its_integral_over_the_sample_sd(n, margin, confidence):
    df, critical = n - 1, t_distribution.ppf(confidence, n - 1)

    def passes(sd):
        room = (margin - critical * sd / math.sqrt(n)) * math.sqrt(n)
        return (2 * norm.cdf(room) - 1) * chi.pdf(sd * math.sqrt(df), df) * math.sqrt(df)

    integral = quad(passes, 0, margin * math.sqrt(n) / critical)[0]
    assert_allclose(st.equivalence_power(n, margin, confidence=confidence), integral, atol=5e-4)


def test_the_power_of_equivalence_off_centre_matches_simulation():
    rng = np.random.default_rng(0)
    d = rng.normal(0.3, 1, (20_000, 15))
    half = t_distribution.ppf(0.95, 14) * d.std(axis=1, ddof=1) / math.sqrt(15)
    passed = np.mean((d.mean(axis=1) - half > -0.9) & (d.mean(axis=1) + half < 0.9))
    assert abs(st.equivalence_power(15, 0.9, effect=0.3) - passed) < 4 * math.sqrt(0.25 / 20_000)


@pytest.mark.parametrize("effect", [0.2, 0.5, 0.8, 1.5])
@pytest.mark.parametrize("target", [0.5, 0.8, 0.95])
def test_seeds_needed_are_statsmodels_rounded_up(effect, target):
    theirs = TTestPower().solve_power(effect, power=target, alpha=0.05, alternative="two-sided")
    assert st.seeds_needed(effect, target=target) == math.ceil(theirs)


@pytest.mark.parametrize("margin", [0.05, 0.4, 1.0, 6.0])
def test_seeds_for_equivalence_are_the_fewest(margin):
    needed = st.seeds_for_equivalence(margin)
    assert st.equivalence_power(needed, margin) >= 0.8 > st.equivalence_power(needed - 1, margin)


@pytest.mark.parametrize("sd", [0.3, 1.0])
def test_seeds_to_settle_plan_with_the_upper_80_percent_bound_of_the_sd(sd):
    n = 10
    bound = sd * math.sqrt((n - 1) / chi2.ppf(0.2, n - 1))
    wanted = max(st.seeds_needed(0.5, bound), st.seeds_for_equivalence(0.5, bound))
    assert st.seeds_to_settle(sd, n, margin=0.5) == wanted


def test_the_bound_of_the_sd_holds_in_80_percent_of_samples():
    sds = np.random.default_rng(0).normal(size=(20_000, 5)).std(axis=1, ddof=1)
    bounds = sds * math.sqrt(4 / chi2.ppf(0.2, 4))
    assert abs(np.mean(bounds > 1) - 0.8) < 0.012


def test_a_ratio_is_settled_on_the_log_scale():
    assert st.seeds_to_settle(0.3, 10, margin=0.25, ratio=True) == st.seeds_to_settle(0.3, 10, margin=math.log(1.25))


def test_seeds_to_settle_never_depend_on_the_observed_effect():
    noise = np.random.default_rng(1).normal(size=8)
    small, large = (st.paired_difference(noise + shift, np.zeros(8)) for shift in (0.0, 0.2))
    plans = [st.verdict(c, margin=0.2).seeds_to_settle for c in (small, large)]
    assert plans[0] == plans[1] > 8


def test_seeds_to_settle_of_odd_spreads():
    assert st.seeds_to_settle(math.nan, 10, margin=0.1) is None
    assert st.seeds_to_settle(1.0, 1, margin=0.1) is None
    assert st.seeds_to_settle(1e9, 10, margin=0.1) is None
    assert st.seeds_to_settle(0.0, 4, margin=0.1) == 6  # the exact sign interval of equal differences
    assert st.seeds_to_settle(0.0, 4, margin=0.1, confidence=0.99) == 8


def test_bonferroni_multiplies_and_a_nan_keeps_its_place_in_the_family():
    assert_allclose(st.adjust([0.01, math.nan, 0.6]), [0.03, 1.0, 1.0])
    assert st.adjust([]).tolist() == []


def test_benjamini_hochberg_by_hand():
    # sorted p k / i, then the running minimum from the right: .04, .04, .05333, 1
    assert_allclose(st.adjust([0.02, 0.01, math.nan, 0.04], "benjamini-hochberg"), [0.04, 0.04, 1.0, 0.16 / 3])


def test_the_order_of_claims_does_not_matter():
    p = np.random.default_rng(0).random(9)
    order = np.random.default_rng(1).permutation(9)
    for method in ("bonferroni", "benjamini-hochberg"):
        assert_allclose(st.adjust(p[order], method), st.adjust(p, method)[order])


def test_shared_confidence_is_bonferroni():
    assert st.shared_confidence(1) == 0.95
    assert_allclose(1 - st.shared_confidence(4), 0.05 / 4)


def test_importing_statsmodels_leaves_the_warning_filters_alone(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("statsmodels.stats")]:
        monkeypatch.delitem(sys.modules, name)
    before = list(warnings.filters)
    st.adjust([0.1, 0.2])
    st.equivalence([1.0, 2.0, 4.0], [1.0, 1.0, 1.0], margin=1.0)
    assert list(warnings.filters) == before


def test_registered_looks_share_alpha():
    assert st.looks() == dict.fromkeys((5, 10, 20), 0.05 / 3)
    assert sum(st.looks((4, 8), alpha=0.1).values()) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: st.looks((10, 5)), "looks at"),
        (lambda: st.looks(alpha=0.0), "alpha 0.0"),
        (lambda: st.adjust([1.2]), "p-values"),
        (lambda: st.adjust([0.2], "holm"), "adjustment 'holm'; allowed: bonferroni, benjamini-hochberg"),
        (lambda: st.shared_confidence(0), "0 claims; allowed: 1 or more"),
        (lambda: st.power(5, 1.0, 0.0), "standard deviation 0.0"),
        (lambda: st.seeds_needed(0.0), "needs more than 1,000,000 seeds"),
        (lambda: st.seeds_needed(1.0, target=1.0), "target power 1.0"),
        (lambda: st.seeds_to_settle(1.0, 5, margin=-1.0), "margin -1.0"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, message):
    with pytest.raises(InputError, match=message):
        call()
