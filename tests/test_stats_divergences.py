"""Paired yes-or-no outcomes: exact tests, Tango's interval against a numerical twin, exact coverage."""

import math
from itertools import product

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.optimize import minimize_scalar
from scipy.stats import multinomial
from statsmodels.stats.contingency_tables import mcnemar

from stability import stats as st
from stability.registry import InputError
from stability.stats.divergences import _conditional, _tango


def outcomes(both, only_a, only_b, neither):
    a = [1] * (both + only_a) + [0] * (only_b + neither)
    b = [1] * both + [0] * only_a + [1] * only_b + [0] * neither
    return np.array(a, dtype=bool), np.array(b, dtype=bool)


@pytest.mark.parametrize("table", [(2, 6, 1, 3), (0, 6, 0, 4), (5, 0, 0, 5), (1, 3, 3, 1), (0, 10, 0, 0)])
def test_the_p_value_is_statsmodels_exact_mcnemar(table):
    found = st.divergence_difference(*outcomes(*table))
    both, only_a, only_b, neither = table
    assert_allclose(found.p_value, mcnemar([[both, only_a], [only_b, neither]], exact=True).pvalue)
    assert found.effect == pytest.approx((only_a - only_b) / sum(table))


@pytest.mark.parametrize(("only_a", "only_b", "n"), [(6, 1, 12), (9, 3, 40), (0, 4, 15), (5, 5, 20), (0, 0, 10)])
def test_tangos_bounds_solve_his_equation_with_a_likelihood_maximised_numerically(only_a, only_b, n):
    def score(difference):
        def minus_log_likelihood(q):  # q: share of b-only pairs, so a-only pairs have share q + difference
            shares = np.array([q + difference, q, 1 - 2 * q - difference])
            counts = np.array([only_a, only_b, n - only_a - only_b])
            return -np.sum(counts[counts > 0] * np.log(np.maximum(shares[counts > 0], 1e-300)))

        bounds = (max(0.0, -difference), (1 - difference) / 2)
        q = minimize_scalar(minus_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
        return (only_a - only_b - n * difference) / math.sqrt(n * (2 * q + difference * (1 - difference)))

    low, high = _tango(only_a, only_b, n, 0.025)
    assert_allclose((score(low), score(high)), (1.959963984540054, -1.959963984540054), rtol=1e-4)


def test_without_discordant_pairs_tangos_interval_has_a_closed_form():
    z = 1.959963984540054
    assert_allclose(_tango(0, 0, 10, 0.025), (-(z**2) / (10 + z**2), z**2 / (10 + z**2)), rtol=1e-9)


@pytest.mark.parametrize("confidence", [0.95, 0.99])
def test_interval_and_exact_test_never_disagree(confidence):
    for only_a, only_b, rest in product(range(12), range(12), (0, 5)):
        if only_a + only_b + rest >= 2:
            found = st.divergence_difference(*outcomes(0, only_a, only_b, rest), confidence=confidence)
            excludes_zero = found.interval[0] > 0 or found.interval[1] < 0
            assert excludes_zero == (found.p_value < 1 - confidence), (only_a, only_b, rest)


@pytest.mark.parametrize(("confidence", "fewest"), [(0.95, 6), (0.99, 8)])
def test_it_takes_6_one_way_pairs_at_95_and_8_at_99_percent(confidence, fewest):
    for count, expected in ((fewest - 1, "inconclusive"), (fewest, "supported")):
        found = st.divergence_difference(*outcomes(0, count, 0, 10 - count), confidence=confidence)
        assert st.verdict(found, expect="higher", margin=0.05).verdict == expected


def test_the_interval_covers_at_95_percent_by_exact_enumeration():
    n = 10
    tables = [(i, j) for i in range(n + 1) for j in range(n + 1 - i)]
    hulls = np.array(
        [
            [min(x[0] for x in both), max(x[1] for x in both)]
            for both in ((_tango(*t, n, 0.025), _conditional(*t, n, 0.025)) for t in tables)
        ]
    )
    for only_a, only_b in product((0.02, 0.1, 0.3, 0.5), (0.02, 0.1, 0.3, 0.45)):
        chances = multinomial.pmf([(i, j, n - i - j) for i, j in tables], n, [only_a, only_b, 1 - only_a - only_b])
        truth = only_a - only_b
        covered = chances[(hulls[:, 0] <= truth) & (truth <= hulls[:, 1])].sum()
        assert covered >= 0.94, (only_a, only_b, covered)


def test_swapping_flips_the_sign_and_permuting_seeds_changes_nothing():
    a, b = outcomes(2, 6, 1, 3)
    there, back = st.divergence_difference(a, b), st.divergence_difference(b, a)
    assert_allclose(there.interval, (-back.interval[1], -back.interval[0]))
    assert st.divergence_difference(a[::-1], b[::-1]).interval == there.interval


def test_several_cells_give_one_share_a_seed():
    rng = np.random.default_rng(0)
    a, b = rng.random((10, 9)) < 0.1, rng.random((10, 9)) < 0.6
    found = st.divergence_difference(a, b)
    assert found.n == 10
    assert_allclose(found.per_seed, a.mean(axis=1) - b.mean(axis=1))
    assert found.interval[1] < 0
    back = st.divergence_difference(b, a)
    assert_allclose(found.interval, (-back.interval[1], -back.interval[0]))


@pytest.mark.parametrize("cells", [1, 9])
def test_runs_that_all_diverge_are_equal_but_not_surely(cells):
    found = st.divergence_difference(np.ones((10, cells)), np.ones((10, cells)))
    assert found.effect == 0
    assert -0.3 < found.interval[0] < 0 < found.interval[1] < 0.3


@pytest.mark.parametrize("cells", [1, 9, 100])
@pytest.mark.parametrize("expect", ["lower", "equal"])
def test_if_no_run_diverges_nothing_is_tested_however_many_cells_there_are(cells, expect):
    none = np.zeros((10, cells))
    found = st.divergence_difference(none, none, names=("siglip", "clip"))
    assert (found.outcome, found.effect, found.n) == ("nothing-happened", 0, 10)
    found = st.verdict(found, expect=expect, margin=0.9)
    assert found.verdict == "not-testable"
    assert found.sentence == (
        f"Not testable: nothing happened: neither siglip nor clip diverged in any of their {20 * cells} runs."
    )


def test_one_arm_always_and_the_other_never_diverging_is_an_answer():
    found = st.divergence_difference(np.ones((10, 3)), np.zeros((10, 3)), names=("clip", "siglip"))
    assert found.effect == found.interval[1] == 1
    assert found.interval[0] > 0.4
    assert found.sentence.startswith("clip diverged in 30 of 30 runs and siglip in 0 of 30 (difference of shares 1,")


def test_unknown_outcomes_are_left_out_aloud_and_other_numbers_refused():
    found = st.divergence_difference([1, 0, np.nan, 1], [0, 0, 1, 0])
    assert (found.n, found.left_out) == (3, 1)
    with pytest.raises(InputError, match="outcomes that are not yes or no"):
        st.divergence_difference([0.5, 1], [0, 1])
    assert st.divergence_difference([True], [False]).outcome == "too-few-pairs"
    assert st.divergence_difference([], []).outcome == "too-few-pairs"
