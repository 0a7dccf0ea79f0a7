"""Spikes: planted ones are counted exactly, calm series have none, and the rule has no unit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stability.analysis import load_results, summarize
from stability.registry import InputError
from stability.stats import (
    loss_spikes_by_deviation,
    loss_spikes_by_height,
    spikes,
    update_spikes_by_level,
)
from stability.study import parse_study


def noisy(steps: int = 1000, seed: int = 0) -> np.ndarray:
    return 2 + 0.1 * np.random.default_rng(seed).standard_normal(steps)


@pytest.mark.parametrize("calm", [np.exp(-np.arange(2000) / 300), np.linspace(5, 1, 2000), np.full(2000, 3.0)])
def test_a_smooth_decay_has_no_spikes(calm):
    assert spikes(calm).steps == ()
    assert spikes(calm).counted == 1900


def test_planted_spikes_are_counted_exactly_and_neighbours_are_one():
    series = noisy()
    series[[200, 203, 500, 515, 900]] += 5
    found = spikes(series)
    assert found.steps == (200, 500, 515, 900)
    assert found.counted == 900
    assert found.rate == pytest.approx(1000 * 4 / 900)


def test_warm_up_is_left_out_both_as_spike_and_as_history():
    series = noisy()
    series[:300] += 50
    series[350] += 5
    assert spikes(series, start=300).counted == 600
    assert spikes(series, start=300).steps == ()  # 350 is still history
    series[450] += 5
    assert spikes(series, start=300).steps == (450,)


def test_a_jump_to_a_new_level_is_one_spike_and_a_fall_is_none():
    series = noisy()
    series[600:] += 5
    assert spikes(series).steps == (600,)
    series[600:] -= 10
    assert spikes(series).steps == ()


@settings(max_examples=25, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(-10, 10), st.integers(0, 5))
def test_the_unit_and_the_zero_of_the_series_do_not_matter(factor, shift, seed):
    series = noisy(400, seed)
    series[[150, 300]] += 5
    assert spikes(factor * (series + shift)).steps == spikes(series).steps == (150, 300)


def test_steps_that_are_not_finite_are_not_looked_at():
    series = noisy()
    series[700:] = np.nan
    series[400] += 5
    found = spikes(series)
    assert (found.steps, found.counted) == ((400,), 600)
    assert loss_spikes_by_deviation(series, start=0).counted == 600
    assert loss_spikes_by_height(series).counted == 500


@pytest.mark.parametrize("rule", [spikes, loss_spikes_by_deviation, loss_spikes_by_height, update_spikes_by_level])
def test_a_short_series_has_no_rate(rule):
    found = rule(np.ones(50))
    assert (found.steps, found.counted) == ((), 0)
    assert np.isnan(found.rate)


def test_the_rates_of_calm_noise_are_those_that_are_documented():
    rng = np.random.default_rng(0)
    draws = {
        "normal": (rng.standard_normal(40_000), 0.0, 0.05),
        "student": (rng.standard_t(4, 40_000), 0.5, 1.0),
        "lognormal": (np.exp(rng.standard_normal(40_000)), 14, 18),
    }
    for series, low, high in draws.values():
        assert low <= spikes(series).rate <= high


def test_the_published_rules():
    loss = noisy(3000)
    loss[[500, 1500, 1505, 2500]] += 5
    by_deviation = loss_spikes_by_deviation(loss)
    assert {1500, 2500} <= set(by_deviation.steps)
    assert not {500, 1505} & set(by_deviation.steps)
    calm = np.full(3000, 2.0)
    calm[[1500, 1505]] += 0.2
    assert loss_spikes_by_height(calm).steps == (1500, 1505)
    assert loss_spikes_by_height(calm / 64).steps == ()  # the rule has a unit
    rms = np.ones(3000)
    rms[[900, 1500, 1505, 2000]] = 2.3
    assert update_spikes_by_level(rms).steps == (1500, 2000)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spikes(np.ones((2, 3))), r"shape \(2, 3\); allowed: one value a step"),
        (lambda: spikes(np.ones(30), window=5), "window is 5; allowed: 10 steps or more"),
    ],
)
def test_wrong_input_is_one_plain_sentence(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_run_s_rate_is_that_of_its_logged_series_after_warm_up(tiny_run):
    results = load_results(tiny_run)
    steps = np.arange(1000)
    rows = []
    for run, planted in zip(results.runs["run"], range(len(results.runs)), strict=True):
        loss, norm = noisy(1000, planted), np.exp(noisy(1000, planted))
        spots = 200 + 50 * np.arange(planted % 3)
        loss[spots] += 5
        for later in range(3):
            norm[spots + later] *= 100
        rows.append(pd.DataFrame({"run": run, "step": steps, "loss": loss, "gradient_norm": norm}))
    train = results.study.train.model_copy(update={"steps": 1000, "warmup": 2})
    long = dataclasses.replace(
        results, study=results.study.model_copy(update={"train": train}), steps=pd.concat(rows, ignore_index=True)
    )
    for name, counted in (("loss_spike_rate", 898), ("gradient_norm_spike_rate", 894)):
        expected = [1000 * (place % 3) / counted for place in range(len(results.runs))]
        assert summarize(long, name, "tail_mean").loc[results.runs["run"]].tolist() == pytest.approx(expected)
    assert summarize(results, "update_rms_spike_rate", "tail_mean").isna().all()  # eight steps are too few


def test_a_claim_may_be_on_spikes_but_not_with_a_reduction(tiny_text):
    text = tiny_text.replace('measure = "gradient_noise_fraction"', 'measure = "loss_spike_rate"')
    assert parse_study(text, "tiny.toml", "tiny").primary.measure == "loss_spike_rate"
    text = text.replace('measure = "loss_spike_rate"', 'measure = "loss_spike_rate"\nreduction = "tail_mean"')
    with pytest.raises(InputError, match="'loss_spike_rate' is one number a run and takes no reduction"):
        parse_study(text, "tiny.toml", "tiny")
