"""Verdicts of every contrast in the catalogue: what swapping does to them, and what odd data are called."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from stability import stats as st
from stability.contrasts import compare, contrast

LEVELS = (0.0, 0.2, 0.4)
BUDGET = 4.0
OPPOSITE = {"higher": "lower", "lower": "higher", "equal": "equal"}
EXCHANGED = {"supported": "contradicted", "contradicted": "supported"}


def compared(name, a, b):
    levels = range(np.shape(a)[1]) if contrast[name].traits.axes else LEVELS
    supplied = {"levels": levels, "log": False, "budget": BUDGET, "names": ("a", "b"), "measure": "value"}
    return compare(name, a, b, supplied=supplied | {"confidence": 0.95})


def drawn(name, seed, seeds, effect, shape=(3, 2)):
    """Two arms of positive numbers that may differ in level, slope and spread; of outcomes where these are compared."""
    rng = np.random.default_rng(seed)
    if contrast[name].traits.axes:
        critical = 3.5 + np.array([1.5 * effect, 0])[:, None, None, None] + 0.6 * rng.standard_normal((2, seeds, 1, 2))
        return tuple((np.arange(8)[:, None] > critical).astype(float))
    if contrast[name].traits.on_events:
        return tuple((rng.random((seeds, *shape)) < rate).astype(float) for rate in (0.5 + 0.45 * effect, 0.5))
    rises = effect * np.arange(len(LEVELS))[:, None] if shape[0] == len(LEVELS) else effect
    a, b = np.exp(0.3 * rng.standard_normal((2, seeds, *shape)))
    return a * np.exp(rises * (1 + 0.3 * rng.standard_normal((seeds, 1, 1)))), b


@pytest.mark.parametrize("name", contrast)
@given(
    seed=some.integers(0, 2**32),
    seeds=some.integers(3, 12),
    effect=some.sampled_from([-1.0, -0.3, 0.0, 0.3, 1.0]),
    expect=some.sampled_from(["higher", "lower", "equal"]),
    margin=some.sampled_from([0.03, 0.3, 1.0]),
)
@settings(max_examples=40, deadline=None)
def test_swapping_data_exchanges_the_sides_and_swapping_direction_too_keeps_the_verdict(
    name, seed, seeds, effect, expect, margin
):
    a, b = drawn(name, seed, seeds, effect)
    there, back = compared(name, a, b), compared(name, b, a)
    word = st.verdict(there, expect=expect, margin=margin).verdict
    assert st.verdict(back, expect=OPPOSITE[expect], margin=margin).verdict == word
    if expect != "equal":
        assert st.verdict(back, expect=expect, margin=margin).verdict == EXCHANGED.get(word, word)


@pytest.mark.parametrize("name", contrast)
def test_every_contrast_can_be_supported_and_contradicted(name):
    a, b = drawn(name, seed=1, seeds=40, effect=1.0)
    words = {st.verdict(compared(name, a, b), expect=expect, margin=0.001).verdict for expect in ("higher", "lower")}
    assert words == {"supported", "contradicted"}


def ordinary(name, seeds=8):
    return drawn(name, seed=3, seeds=seeds, effect=0.3)


def diverged_everywhere(name, a, b):
    """What the analysis hands on of arms that diverged in every run: outcomes, infinite times, or no number at all."""
    whole = {"diverged": 1.0, "collapsed": 1.0, "times": math.inf}.get(contrast[name].traits.on, math.nan)
    return np.full_like(a, whole), np.full_like(b, whole)


def with_value(value, every):
    def change(name, a, b):
        a = a.copy()
        a[: len(a) if every else 1] = value
        return a, b

    return change


ODD = {
    "all equal": lambda name, a, b: (np.ones_like(a), np.ones_like(b)),
    "all diverged": diverged_everywhere,
    "one side constant": lambda name, a, b: (np.ones_like(a), b),
    "one NaN": with_value(math.nan, every=False),
    "all NaN": with_value(math.nan, every=True),
    "two of eight NaN": lambda name, a, b: (np.where(np.arange(len(a))[:, None, None] < 2, math.nan, a), b),
    "n = 2": lambda name, a, b: (a[:2], b[:2]),
    "n = 1": lambda name, a, b: (a[:1], b[:1]),
    "n = 0": lambda name, a, b: (a[:0], b[:0]),
}
NUMBERS_ONLY = {
    "one infinite": with_value(math.inf, every=False),
    "all infinite on both sides": lambda name, a, b: (np.full_like(a, math.inf), np.full_like(b, math.inf)),
    "one zero": with_value(0.0, every=False),
    "one negative": with_value(-1.0, every=False),
    "too large to square": lambda name, a, b: (a * 1e200, b * 1e200),
}


@pytest.mark.parametrize("odd", {**ODD, **NUMBERS_ONLY})
@pytest.mark.parametrize("name", contrast)
def test_odd_data_have_a_named_outcome_a_sentence_and_no_direction_that_they_do_not_show(name, odd):
    if odd in NUMBERS_ONLY and contrast[name].traits.on_events:
        pytest.skip("outcomes are yes, no or unknown")
    a, b = (ODD | NUMBERS_ONLY)[odd](name, *ordinary(name))
    found = compared(name, a, b)
    assert found.outcome in {"tested", "constant", "too-few-pairs", "not-positive", "no-spread", "all-censored"}
    assert found.testable == math.isfinite(found.p_value)
    assert found.testable or found.problem
    assert not math.isnan(found.interval[0] + 0 * found.effect if found.testable else 0.0)
    verdict = st.verdict(found, expect="higher", margin=0.1)
    assert verdict.sentence.endswith(".")
    assert "nan" not in verdict.sentence.lower()
    if not found.testable or found.n < 3:
        assert verdict.verdict == "not-testable"
    if odd in ("all equal", "all diverged", "all infinite on both sides"):
        assert verdict.verdict in {"equivalent", "inconclusive", "not-testable"}


@pytest.mark.parametrize("name", contrast)
def test_two_seeds_settle_nothing(name):
    assert st.verdict(compared(name, *ordinary(name, 2)), margin=0.1).verdict == "not-testable"


@pytest.mark.parametrize("name", contrast)
def test_a_quarter_of_the_seeds_without_a_value_is_not_testable_and_counted(name):
    a, b = ODD["two of eight NaN"](name, *ordinary(name))
    found = compared(name, a, b)
    assert found.left_out == 2
    assert st.verdict(found, margin=0.1).verdict == "not-testable"


def test_times_that_never_come_on_either_side_are_all_censored():
    never = np.full((8, 3, 2), math.inf)
    found = compared("time_to_threshold", never, never)
    assert found.outcome == "all-censored"
    assert "neither a nor b reached value within the budget of 4" in st.verdict(found, margin=0.1).sentence


def test_a_side_that_never_comes_is_slower_by_what_the_budget_shows():
    a, b = np.full((8, 3, 2), math.inf), ordinary("time_to_threshold")[1]
    assert st.verdict(compared("time_to_threshold", a, b), expect="higher", margin=0.01).verdict == "supported"
