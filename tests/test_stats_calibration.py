"""Simulations of known truth: error rates, coverage and power of what the verdicts rest on.

False positives may not exceed the upper binomial band; exact and conservative tests lie below it.
"""

import math
from functools import partial

import numpy as np
import pytest

from stability import stats as st
from stability.calibrate.rates import upper_band
from stability.calibrate.scenarios import NoiseModel

SHAPES = ("normal", "t4", "skewed", "ties")


def pairs(rng, shape, seeds, cells=1):
    """Two arms that share most of a seed's luck: shared noise of SD 2, and of SD 1 of their own."""
    return tuple(math.sqrt(5) * arm[:, 0] for arm in NoiseModel(rng, shape, seeds, correlation=0.8).arms(cells=cells))


def error_rates(compare, draw, truth, runs, seed=0):
    """Return how often the interval holds the truth and how often it excludes no difference."""
    rng = np.random.default_rng(seed)
    found = [compare(*draw(rng)) for _ in range(runs)]
    covered = np.mean([c.interval[0] <= truth <= c.interval[1] for c in found])
    rejected = np.mean([not c.interval[0] <= c.no_difference <= c.interval[1] for c in found])
    return covered, rejected


def shifted(rng, shape, seeds, effect):
    a, b = pairs(rng, shape, seeds)
    return a + effect, b


def spread_apart(rng, shape, seeds, cells, ratio):
    a, b = pairs(rng, shape, seeds, cells)
    return ratio * a, b


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_paired_t_errs_at_5_percent_and_covers(seeds):
    runs = 2000
    covered, rejected = error_rates(st.paired_difference, lambda rng: pairs(rng, "normal", seeds), 0.0, runs)
    assert rejected <= upper_band(runs)
    assert covered >= 0.93


def test_the_paired_t_has_the_power_it_promises():
    runs, effect = 2000, 1.0
    draw = partial(shifted, shape="normal", seeds=10, effect=effect)
    covered, rejected = error_rates(st.paired_difference, draw, effect, runs, seed=1)
    promised = st.power(10, effect, math.sqrt(2))
    assert abs(rejected - promised) < 4 * math.sqrt(promised * (1 - promised) / runs)
    assert covered >= 0.93


@pytest.mark.parametrize("cells", [1, 6])
def test_the_spread_ratio_errs_at_5_percent_and_covers(cells):
    runs = 300 if cells == 1 else 500
    covered, rejected = error_rates(st.spread_ratio, lambda rng: pairs(rng, "normal", 10, cells), 1.0, runs, seed=2)
    assert rejected <= upper_band(runs)
    assert covered >= 0.93


def test_pooling_cells_is_what_gives_a_spread_its_power():
    rates = []
    for cells in (1, 9):
        draw = partial(spread_apart, shape="normal", seeds=10, cells=cells, ratio=1.5)
        rates.append(error_rates(st.spread_ratio, draw, 1.5, 150, seed=3)[1])
    assert rates[1] > 2 * rates[0]


@pytest.mark.parametrize(("seeds", "cells"), [(10, 1), (10, 6), (20, 3)])
def test_divergence_errs_below_5_percent_and_covers(seeds, cells):
    def draw(rng, rates=(0.4, 0.4)):
        rng_seed = rng.random((seeds, 1))
        own = rng.random((2, seeds, cells))
        return tuple((0.5 * rng_seed + 0.5 * mine) < rate for mine, rate in zip(own, rates, strict=True))

    runs = 400
    covered, rejected = error_rates(st.divergence_difference, draw, 0.0, runs, seed=4)
    assert rejected <= upper_band(runs)
    assert covered >= 0.93


def test_tost_seldom_calls_a_difference_as_large_as_the_margin_equivalent():
    rng, runs, margin = np.random.default_rng(5), 1500, 1.5
    words = [
        st.verdict(st.paired_difference(*shifted(rng, "normal", 12, margin)), margin=margin).verdict
        for _ in range(runs)
    ]
    assert words.count("equivalent") / runs <= upper_band(runs)
    assert words.count("contradicted") / runs <= upper_band(runs, 0.025)


def test_registered_looks_err_below_5_percent():
    rng, runs, wrong = np.random.default_rng(6), 800, 0
    for _ in range(runs):
        a, b = pairs(rng, "normal", 20)
        wrong += any(
            not c.interval[0] <= 0 <= c.interval[1]
            for c in (st.paired_difference(a[:n], b[:n], confidence=1 - alpha) for n, alpha in st.looks().items())
        )
    assert wrong / runs <= upper_band(runs)


def test_planned_seeds_reach_their_power():
    needed, runs = st.seeds_needed(0.8), 1500
    effect = 0.8 * math.sqrt(2)  # the differences of two noises of SD 1 have SD sqrt(2)
    draw = partial(shifted, shape="normal", seeds=needed, effect=effect)
    rejected = error_rates(st.paired_difference, draw, effect, runs, seed=7)[1]
    assert rejected > 0.8 - 4 * math.sqrt(0.16 / runs)


def wrong_directions(shape, seeds, claims, studies, rng):
    """Share of studies of no effect where any claim, at its shared confidence, was given a direction."""
    confidence = st.shared_confidence(claims)
    wrong = 0
    for _ in range(studies):
        words = [
            st.verdict(st.paired_difference(*pairs(rng, shape, seeds), confidence=confidence), margin=0.01).verdict
            for _ in range(claims)
        ]
        wrong += "supported" in words or "contradicted" in words
    return wrong / studies


def test_five_claims_together_err_below_5_percent():
    assert wrong_directions("normal", 10, 5, 150, np.random.default_rng(8)) <= upper_band(150)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seeds", [3, 5, 10, 20])
def test_five_claims_together_err_below_5_percent_for_every_shape(shape, seeds):
    assert wrong_directions(shape, seeds, 5, 1000, np.random.default_rng(9)) <= upper_band(1000)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seeds", [3, 5, 10, 20])
def test_level_comparisons_err_at_5_percent_for_every_shape(shape, seeds):
    runs, levels = 6000, np.array([0.0, 0.2, 0.4])
    covered, rejected = error_rates(st.paired_difference, lambda rng: pairs(rng, shape, seeds), 0.0, runs)
    assert rejected <= upper_band(runs)
    assert covered >= 0.93

    def slopes(a, b):
        return st.slope_difference(a, b, levels=levels)

    covered, rejected = error_rates(slopes, lambda rng: pairs(rng, shape, seeds, 3), 0.0, runs)
    assert rejected <= upper_band(runs)
    assert covered >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seeds", [5, 10, 20])
def test_time_ratios_err_at_5_percent_when_a_third_is_censored(shape, seeds):
    def draw(rng):
        return tuple(np.exp(4 + 0.3 * arm) for arm in pairs(rng, shape, seeds))

    runs = 3000
    _, rejected = error_rates(lambda a, b: st.time_ratio(a, b, budget=75.0), draw, 1.0, runs)
    assert rejected <= upper_band(runs)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seeds", [5, 10, 20])
@pytest.mark.parametrize("cells", [1, 9])
def test_spread_ratios_err_at_5_percent_for_every_shape(shape, seeds, cells):
    # Equal spreads are enough: the interval of any other ratio is this one, scaled.
    runs = 3000
    covered, rejected = error_rates(st.spread_ratio, lambda rng: pairs(rng, shape, seeds, cells), 1.0, runs)
    assert covered >= 0.93
    assert rejected <= upper_band(runs)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 10, 20])
@pytest.mark.parametrize("cells", [1, 3, 9])
def test_divergence_errs_below_5_percent_at_every_rate(seeds, cells):
    for rate in (0.05, 0.3, 0.5):
        for tie in (0.0, 0.5, 1.0):  # 1: all cells of a run share one fate

            def draw(rng, rate=rate, tie=tie):
                whole, each = rng.random((2, seeds, 1)), rng.random((2, seeds, cells))
                same = rng.random((2, seeds, 1)) < tie
                return tuple(np.where(same, whole, each) < rate)

            covered, rejected = error_rates(st.divergence_difference, draw, 0.0, 1500)
            assert rejected <= upper_band(1500)
            assert covered >= 0.93
