"""Verdicts: the order of the questions, their symmetries, and odd data."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from hypothesis.extra.numpy import arrays

from stability import stats as st
from stability.registry import InputError
from stability.stats import wording

NOISE = np.array([-1.2, 0.3, 0.8, -0.5, 0.1, 1.1, -0.9, 0.4, -0.3, 0.2])
OPPOSITE = {"higher": "lower", "lower": "higher", "equal": "equal"}


def measured(effect, sd=1.0, **keywords):
    differences = effect + sd * (NOISE - NOISE.mean()) / NOISE.std(ddof=1)
    return st.paired_difference(differences, np.zeros(10), **keywords)


@pytest.mark.parametrize(
    ("effect", "expect", "margin", "word"),
    [
        (2.0, "higher", 0.5, "supported"),
        (2.0, "lower", 0.5, "contradicted"),
        (-2.0, "lower", 0.5, "supported"),
        (-2.0, "higher", 0.5, "contradicted"),
        (0.1, "higher", 0.2, "inconclusive"),
        (0.1, "higher", 1.0, "equivalent"),
        (2.0, "higher", 5.0, "equivalent"),
        (0.1, "equal", 1.0, "supported"),
        (2.0, "equal", 5.0, "supported"),
        (2.0, "equal", 0.5, "contradicted"),
        (-2.0, "equal", 0.5, "contradicted"),
        (2.0, "equal", 1.5, "inconclusive"),  # real, but perhaps within the margin
        (0.1, "equal", 0.2, "inconclusive"),
    ],
)
def test_the_order_of_the_questions(effect, expect, margin, word):
    found = st.verdict(measured(effect), expect=expect, margin=margin)
    assert found.verdict == word
    assert found.sentence.startswith(word.capitalize() + ": a's value is ")
    assert word == "inconclusive" or found.seeds_to_settle is None


def test_an_equivalent_difference_that_is_real_is_said_to_be_real():
    real = st.verdict(measured(2.0), margin=5.0)
    assert "the difference is real all the same" in real.reason
    assert real.sentence.endswith("; the difference is real, but smaller than the margin of 5.")
    open_ = st.verdict(measured(0.1), margin=1.0)
    assert "real" not in open_.reason
    assert open_.sentence.endswith("; any difference is smaller than the margin of 1.")
    assert "not settled" not in open_.sentence


def test_an_equivalence_shows_the_interval_that_decides_where_the_other_crosses_the_margin():
    found = measured(0.1)
    (low, high), (inner_low, inner_high) = found.interval, found.equivalence_interval
    margin = (max(-low, high) + max(-inner_low, inner_high)) / 2
    assert low < -margin or high > margin
    sentence = st.verdict(found, margin=margin).sentence
    assert sentence.endswith(
        f" (90% interval of equivalence, {wording.number(inner_low)} to {wording.number(inner_high)})."
    )
    assert "interval of equivalence" not in st.verdict(found, margin=2 * margin).sentence


def test_a_direction_whose_size_is_open_says_so():
    found = measured(2.0)  # the interval, 1.28 to 2.72
    assert st.verdict(found, margin=1.5).sentence.endswith("; it may be smaller than the margin of 1.5.")
    assert "may be smaller" not in st.verdict(found, margin=1.0).sentence
    assert st.verdict(found, expect="lower", margin=1.5).sentence.endswith(
        "; it may be smaller than the margin of 1.5."
    )
    assert "may be smaller" not in st.verdict(found, expect="equal", margin=1.0).sentence


def test_no_seeds_are_promised_when_those_at_hand_should_have_settled_it():
    close = measured(2.0)  # the interval, 1.28 to 2.72, holds the margin
    found = st.verdict(close, expect="equal", margin=1.5)
    assert st.seeds_to_settle(close.sd, 10, margin=1.5) <= 10
    assert (found.verdict, found.seeds_to_settle) == ("inconclusive", None)
    assert found.sentence.endswith("; more seeds may not settle it.")


def test_the_margin_of_a_ratio_is_symmetric_in_logs():
    low = measured(-0.1, 0.05, log=True)  # 90% interval of the ratio: .879 to .931
    assert st.verdict(low, expect="lower", margin=0.2).verdict == "equivalent"  # within [.833, 1.2]
    assert st.verdict(low, expect="lower", margin=0.1).verdict == "supported"  # [.909, 1.1] cuts it
    assert st.verdict(low, expect="higher", margin=0.1).verdict == "contradicted"


def test_the_adjusted_confidence_decides_both_questions():
    one, many = (measured(0.75, confidence=c) for c in (0.95, 0.99))
    assert [st.verdict(c, margin=0.1).verdict for c in (one, many)] == ["supported", "inconclusive"]
    assert [st.verdict(c, margin=1.4).verdict for c in (one, many)] == ["equivalent", "inconclusive"]


def test_an_open_claim_names_the_seeds_that_would_settle_it():
    found = st.verdict(measured(0.1), margin=0.2)
    assert found.seeds_to_settle == st.seeds_to_settle(1.0, 10, margin=0.2) > 10
    assert f"; about {found.seeds_to_settle} seeds would settle it." in found.sentence


def test_too_few_pairs_are_not_testable():
    two = st.paired_difference([3.0, 3.1], [1.0, 1.05])
    found = st.verdict(two, margin=0.1)
    assert found.verdict == "not-testable"
    assert found.sentence == "Not testable: 2 pairs of runs, and a verdict needs at least 3."
    assert st.verdict(two, margin=0.1, min_pairs=2).verdict != "not-testable"
    assert st.verdict(measured(2.0), margin=0.1, min_pairs=11).verdict == "not-testable"


def test_failures_beyond_the_limit_are_not_testable_and_never_silent():
    a = measured(2.0).per_seed + (math.nan,) * 2
    found = st.paired_difference(a, np.zeros(12))
    assert st.verdict(found, margin=0.1).verdict == "not-testable"
    assert (
        "2 of 12 seeds had a failed run or no usable value, above the limit of 10%"
        in st.verdict(found, margin=0.1).reason
    )
    tolerant = st.verdict(found, margin=0.1, failure_limit=0.2)
    assert tolerant.verdict == "supported"
    assert "2 of 12 seeds had no finite value and are left out" in tolerant.sentence
    assert st.verdict(measured(2.0), margin=0.1, failures=3).verdict == "not-testable"
    assert st.verdict(measured(2.0), margin=0.1, failures=1).verdict == "supported"


@pytest.mark.parametrize(
    ("comparison", "reason"),
    [
        (st.paired_difference([], []), "0 usable pairs"),
        (st.paired_difference([1.0], [0.0]), "1 usable pair, and a test needs at least 2"),
        (
            st.paired_difference([math.nan] * 9, np.ones(9)),
            "9 of 9 seeds had a failed run or no usable value",
        ),
        (st.log_ratio([1.0, 0.0, 2.0, 3.0], [1.0, 2.0, 3.0, 1.0]), "no log ratio"),
        (st.spread_ratio(np.ones(8), NOISE[:8]), "does not vary across seeds for a"),
        (st.time_ratio([math.inf] * 8, [math.inf] * 8, budget=9.0), "neither a nor b reached the threshold"),
    ],
)
def test_data_that_allow_no_test_say_why(comparison, reason):
    found = st.verdict(comparison, margin=0.1)
    assert found.verdict == "not-testable"
    assert reason in found.reason
    assert found.sentence == f"Not testable: {found.reason}."


def test_arms_that_are_identical_in_every_seed_are_equivalent_once_there_are_enough():
    words = [st.verdict(st.paired_difference(NOISE[:n], NOISE[:n]), margin=0.1).verdict for n in (4, 5, 10)]
    assert words == ["inconclusive", "equivalent", "equivalent"]


@given(
    arrays(float, 8, elements=some.floats(0.5, 2)),
    arrays(float, 8, elements=some.floats(0.5, 2)),
    some.sampled_from(["higher", "lower", "equal"]),
    some.sampled_from([0.03, 0.3, 1.0]),
)
@settings(max_examples=50, deadline=None)
def test_swapping_exchanges_supported_and_contradicted_and_swapping_twice_keeps_the_verdict(a, b, expect, margin):
    exchanged = {"supported": "contradicted", "contradicted": "supported"}
    for compare in (st.paired_difference, st.log_ratio, st.spread_ratio):
        there, back = compare(a, b), compare(b, a)
        word = st.verdict(there, expect=expect, margin=margin).verdict
        assert st.verdict(back, expect=OPPOSITE[expect], margin=margin).verdict == word
        if expect != "equal":
            assert st.verdict(back, expect=expect, margin=margin).verdict == exchanged.get(word, word)


def test_a_verdict_never_rests_on_an_unbounded_interval():
    unbounded = dataclasses.replace(measured(2.0), interval=(-math.inf, math.inf), sd=math.nan)
    unbounded = dataclasses.replace(unbounded, equivalence_interval=(-math.inf, math.inf))
    found = st.verdict(unbounded, margin=10.0)
    assert (found.verdict, found.seeds_to_settle) == ("inconclusive", None)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"expect": "better", "margin": 0.1}, "expect 'better'; allowed: higher, lower, equal"),
        ({"margin": 0.0}, "margin 0.0; allowed: a finite number above 0"),
        ({"margin": math.nan}, "margin nan"),
        ({"margin": 0.1, "failure_limit": 1.5}, "failure_limit 1.5; allowed: a share from 0 to 1"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(keywords, message):
    with pytest.raises(InputError, match=message):
        st.verdict(measured(1.0), **keywords)
