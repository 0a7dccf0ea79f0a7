"""Spread ratios against statsmodels, slow twins and symmetries."""

import math

import numpy as np
import pytest
import statsmodels.api as sm
from numpy.testing import assert_allclose
from scipy.stats import t as t_distribution

from stability import stats as st


def arms(seed=0, seeds=9, cells=1, ratio=1.6):
    rng = np.random.default_rng(seed)
    shared, own_a, own_b = rng.normal(size=(3, seeds, cells))
    return ratio * (shared + own_a) + 3, shared + own_b - 1


def pitman_morgan(a, b, ratio):
    """The p-value of SD(a) / SD(b) = ratio: regress difference on sum with statsmodels' HC4 errors."""
    total, gap = a / ratio + b, a / ratio - b
    design = sm.add_constant(total)
    fit = sm.OLS(gap, design).fit()
    leverage = fit.get_influence().hat_matrix_diag
    weights = fit.resid**2 * (1 - leverage) ** -np.minimum(4.0, len(a) * leverage / 2)
    bread = np.linalg.inv(design.T @ design)
    error = math.sqrt((bread @ (design.T * weights) @ design @ bread)[1, 1])
    return 2 * t_distribution.sf(abs(fit.params[1]) / error, len(a) - 2)


@pytest.mark.parametrize("seed", range(4))
def test_one_cell_is_pitman_morgan_with_hc4_errors_and_its_interval_inverts_it(seed):
    a, b = (arm[:, 0] for arm in arms(seed))
    found = st.spread_ratio(a, b)
    assert_allclose(found.effect, np.std(a, ddof=1) / np.std(b, ddof=1))
    assert_allclose(found.p_value, pitman_morgan(a, b, 1.0), rtol=1e-8)
    assert_allclose([pitman_morgan(a, b, end) for end in found.interval], 0.05, rtol=1e-6)
    assert_allclose([pitman_morgan(a, b, end) for end in found.equivalence_interval], 0.1, rtol=1e-6)


def test_many_cells_are_a_jackknife_over_seeds_of_the_mean_log_ratio():
    a, b = arms(cells=5)

    def mean_log_ratio(keep):
        return np.mean([math.log(np.std(a[keep, c], ddof=1) / np.std(b[keep, c], ddof=1)) for c in range(5)])

    n, everyone = len(a), np.arange(len(a))
    without = np.array([mean_log_ratio(np.delete(everyone, i)) for i in everyone])
    error = math.sqrt((n - 1) / n * np.sum((without - without.mean()) ** 2))  # Efron and Tibshirani (1993), 11.5
    half = t_distribution.ppf(0.975, n - 1) * error
    found = st.spread_ratio(a, b)
    centre = mean_log_ratio(everyone)
    assert_allclose(np.log([found.effect, *found.interval]), [centre, centre - half, centre + half])


@pytest.mark.parametrize("cells", [1, 4])
def test_swapping_inverts_scaling_multiplies_and_shifting_or_permuting_changes_nothing(cells):
    a, b = arms(cells=cells)
    there = st.spread_ratio(a, b)
    back, scaled, moved = (
        st.spread_ratio(b, a),
        st.spread_ratio(7 * a, b),
        st.spread_ratio(a[::-1] + 5, b[::-1]),
    )
    assert_allclose(back.interval, (1 / there.interval[1], 1 / there.interval[0]), rtol=1e-8)
    assert_allclose(scaled.interval, np.multiply(there.interval, 7), rtol=1e-8)
    assert_allclose(moved.interval, there.interval, rtol=1e-8)


def test_a_spread_that_one_arm_lacks_has_no_ratio():
    a, b = arms()
    found = st.spread_ratio(np.ones_like(a), b, names=("siglip", "clip"), measure="recall")
    assert (found.outcome, found.n) == ("no-spread", 9)
    assert found.problem == "recall does not vary across seeds for siglip, or for one seed alone"


def test_a_spread_that_rests_on_one_seed_is_none():
    a = arms()[0]
    alone = np.zeros_like(a)
    alone[3] = 1
    assert st.spread_ratio(a, alone).outcome == "no-spread"


def test_a_cell_that_is_constant_in_both_arms_is_left_out_aloud():
    a, b = arms(cells=3)
    found = st.spread_ratio(np.c_[a, np.ones(9)], np.c_[b, np.zeros(9)])
    assert found.interval == st.spread_ratio(a, b).interval
    assert "1 of 4 cells do not vary in either arm and are left out" in found.sentence
    assert st.spread_ratio(np.ones((9, 2)), np.ones((9, 2))).outcome == "no-spread"


@pytest.mark.parametrize("cells", [1, 4])
def test_equal_arms_have_equal_spreads(cells):
    a = arms(cells=cells)[0]
    found = st.spread_ratio(a, a)
    assert (found.outcome, found.interval) == ("constant", (1.0, 1.0))
    assert st.spread_ratio(2 * a, a).effect == pytest.approx(2)


def test_three_pairs_are_too_few_and_lost_pairs_are_counted():
    a, b = arms(seeds=5)
    a[1], b[2] = math.nan, math.inf
    found = st.spread_ratio(a, b)
    assert (found.outcome, found.n, found.left_out) == ("too-few-pairs", 3, 2)


def test_ties_give_a_finite_answer():
    a = np.array([1.0, 1, 1, 2, 2, 2, 3, 3])
    b = np.array([0.0, 0, 1, 1, 0, 0, 1, 1])
    assert 0 < st.spread_ratio(a, b).interval[0] < st.spread_ratio(a, b).interval[1] < math.inf
