"""Contrasts: what each does with (seeds, levels, cells), and what all of them share."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from stability import stats as st
from stability.contrasts import SUPPLIED, compare, contrast
from stability.registry import InputError

LEVELS = [0.0, 0.2, 0.4]
SUPPLY = {
    "confidence": 0.95,
    "levels": LEVELS,
    "log": False,
    "budget": 4.0,
    "names": ("siglip", "clip"),
    "measure": "recall",
}


def arms(name, seed=0, shape=(7, 3, 4)):
    rng = np.random.default_rng(seed)
    a, b = rng.lognormal(0.3, 0.6, shape), rng.lognormal(0.0, 0.9, shape)
    if contrast[name].traits.axes:
        # Runs collapse from some rate on: never at the lowest, always at the highest.
        return tuple(arm[:, :1] > np.array([math.inf, 1.2, 0.0])[None, :, None] for arm in (a, b))
    return (a > 1.2, b > 1.2) if contrast[name].traits.on_events else (a, b)


def by_name(name, a, b, **changes):
    return compare(name, a, b, supplied=SUPPLY | changes)


@pytest.mark.parametrize("name", contrast)
def test_every_contrast_declares_its_traits_and_asks_only_for_what_is_supplied(name):
    traits = contrast[name].traits
    assert traits.says
    assert traits.mixed in {"", "level", "slope", "change"}
    assert traits.on in {"transform", "raw", "times", "diverged", "collapsed"}
    assert set(contrast[name].options) <= set(SUPPLIED)
    assert contrast[name].summary.startswith("Return ")


@pytest.mark.parametrize("name", contrast)
def test_every_contrast_keeps_one_number_a_seed(name):
    found = by_name(name, *arms(name))
    assert (found.n, len(found.per_seed), found.outcome) == (7, 7, "tested")
    assert found.ratio == contrast[name].traits.ratio
    assert "n = 7 seeds" in found.sentence
    assert "siglip" in found.sentence
    assert "clip" in found.sentence


@pytest.mark.parametrize("name", contrast)
def test_swapping_the_arms_flips_every_contrast(name):
    a, b = arms(name)
    there, back = by_name(name, a, b), by_name(name, b, a)
    flipped = [1 / x for x in back.interval] if there.ratio else [-x for x in back.interval]
    assert_allclose(there.interval, flipped[::-1], rtol=1e-7)


@pytest.mark.parametrize("name", contrast)
def test_the_order_of_seeds_and_of_cells_changes_nothing(name):
    a, b = arms(name)
    seeds, cells = np.random.default_rng(1).permutation(7), [2, 0, 3, 1]
    moved = by_name(name, a[seeds][:, :, cells], b[seeds][:, :, cells])
    assert_allclose(moved.interval, by_name(name, a, b).interval, rtol=1e-9)


@pytest.mark.parametrize("name", contrast)
def test_the_order_of_levels_changes_nothing_if_their_values_move_along(name):
    a, b = arms(name)
    moved = by_name(name, a[:, ::-1], b[:, ::-1], levels=LEVELS[::-1])
    assert_allclose(moved.interval, by_name(name, a, b).interval, rtol=1e-9)


@pytest.mark.parametrize("name", contrast)
@pytest.mark.parametrize("shape", [(0, 3, 4), (1, 3, 4), (2, 3, 4), (5, 3, 1)])
def test_few_seeds_and_single_cells_have_an_outcome(name, shape):
    found = by_name(name, *arms(name, shape=shape))
    assert found.testable == (not math.isnan(found.p_value))
    assert st.verdict(found, margin=0.1).sentence


def test_difference_averages_cells_then_pairs_and_shows_logs_as_a_ratio():
    a, b = arms("difference")
    per_seed = (a - b).mean(axis=(1, 2))
    assert_allclose(by_name("difference", a, b).per_seed, per_seed)
    shown = by_name("difference", a, b, log=True)
    assert shown.ratio
    assert_allclose(shown.effect, math.exp(per_seed.mean()))


def test_ratio_of_raw_values_is_the_difference_of_logs():
    a, b = arms("ratio")
    assert_allclose(by_name("ratio", a, b).interval, by_name("difference", np.log(a), np.log(b), log=True).interval)


def test_slope_finds_the_slopes_that_were_put_in():
    noise = np.random.default_rng(2).normal(size=(2, 6, 1, 4))
    x = np.array(LEVELS)[None, :, None]
    found = by_name("slope", -1.0 * x + noise[0], -3.0 * x + noise[1])
    assert found.effect == pytest.approx(2.0)
    assert found.outcome == "constant"


def test_slope_is_higher_for_the_arm_that_falls_more_slowly():
    rng = np.random.default_rng(3)
    x = np.array(LEVELS)[None, :, None]
    a, b = (-slope * x + rng.normal(0, 0.05, (8, 3, 2)) for slope in (1.0, 2.0))
    assert st.verdict(by_name("slope", a, b), expect="higher", margin=0.1).verdict == "supported"


def test_interaction_is_a_difference_of_differences_between_the_outermost_levels():
    a, b = arms("interaction")
    per_seed = ((a[:, 2] - a[:, 0]) - (b[:, 2] - b[:, 0])).mean(axis=1)
    assert_allclose(by_name("interaction", a, b).per_seed, per_seed)
    a[:, 1] += 100
    assert_allclose(by_name("interaction", a, b).per_seed, per_seed)


def test_an_interaction_with_an_infinite_value_leaves_that_seed_out():
    a, b = arms("interaction")
    a[0, 0, 0] = a[0, 2, 0] = math.inf
    assert (by_name("interaction", a, b).n, by_name("interaction", a, b).left_out) == (6, 1)


def test_times_beyond_the_budget_count_as_the_budget():
    a, b = arms("time_to_threshold")
    late = np.where(a > 4, math.inf, a)
    assert_allclose(by_name("time_to_threshold", a, b).interval, by_name("time_to_threshold", late, b).interval)


def test_spread_pools_levels_and_cells():
    a, b = arms("spread")
    assert by_name("spread", a, b).interval == st.spread_ratio(a.reshape(7, 12), b.reshape(7, 12)).interval


def test_divergence_counts_cells_within_a_seed():
    a, b = arms("divergence")
    assert_allclose(by_name("divergence", a, b).per_seed, a.mean(axis=(1, 2)) - b.mean(axis=(1, 2)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: compare("slop", [], [], supplied={}, where="s.toml: c"),
            "s.toml: c: unknown contrast 'slop'; did you",
        ),
        (
            lambda: compare("ratio", [], [], supplied={}, options={"base": 2}, where="s.toml: c"),
            "s.toml: c.base: contrast 'ratio' has no such option",
        ),
        (
            lambda: compare("ratio", [], [], supplied={}, options={"confidence": 0.5}, where="s.toml: c"),
            "s.toml: c.confidence: the study sets this itself",
        ),
        (
            lambda: by_name("interaction", *arms("interaction"), levels=[1, 1, 1]),
            "at least two of them different",
        ),
        (
            lambda: by_name("interaction", *arms("interaction"), levels=[1, 2]),
            "one level for each entry of axis 1",
        ),
        (lambda: by_name("slope", *arms("slope"), levels=[1, 2]), "one for each entry of axis 1"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize("name", sorted(contrast))
def test_every_contrast_says_what_a_claim_of_it_means_whatever_it_expects(name):
    says = contrast[name].traits.says
    assert says.keys() == {"lower", "higher", "equal"}
    needs = contrast[name].traits.needs
    for phrase in says.values():
        assert ("{axis}" in phrase, "{threshold}" in phrase) == ("axis" in needs, "threshold" in needs)
