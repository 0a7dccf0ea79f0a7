"""Spikes: planted ones are counted exactly, calm series have none, and the rule has no unit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stability.analysis import load_results, summarize
from stability.probes import Measure
from stability.registry import InputError
from stability.stats import (
    SPIKE_RULES,
    healing_spikes,
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


def noise_of(tail: float, steps: int, rng: np.random.Generator) -> np.ndarray:
    """Autocorrelated noise (.5 from step to step) of variance near 1: normal, or Student's t of *tail* degrees."""
    innovations = rng.standard_normal(steps) if np.isinf(tail) else rng.standard_t(tail, steps) / np.sqrt(2)
    values = np.zeros(steps)
    for step in range(1, steps):
        values[step] = 0.5 * values[step - 1] + innovations[step]
    return np.sqrt(0.75) * values


@pytest.mark.parametrize("tail", [np.inf, 4.0])
def test_the_rule_of_gradient_norms_finds_planted_spikes_and_hardly_ever_heavy_tails(tail):
    """Log norms of normal (so lognormal norms) and Student-t noise; a tenfold rise that fades over ten steps."""
    rng, rule = np.random.default_rng(7), SPIKE_RULES["lasting"]
    quiet = rule(0.25 * noise_of(tail, 60_000, rng))
    assert quiet.rate * 10 < 1  # per 10,000 steps
    series = 0.25 * noise_of(tail, 20_000, rng)
    planted = 300 + 400 * np.arange(48)
    for at in planted:
        series[at : at + 60] += np.log(10) * np.exp(-np.arange(60) / 10)
    found = np.array(rule(series).steps)
    assert np.mean([np.abs(found - at).min() <= 3 for at in planted]) >= 0.9
    assert len(found) <= len(planted) + 2


def test_a_single_high_gradient_norm_is_a_spike_of_the_steps_rule_only():
    series = noisy()
    series[500] += 50
    assert SPIKE_RULES["steps"](series).steps == (500,)
    assert SPIKE_RULES["lasting"](series).steps == ()
    series[500:503] += 50
    assert SPIKE_RULES["lasting"](series).steps == (500,)
    with pytest.raises(InputError, match="lasting is 4; allowed: an odd number of steps"):
        spikes(series, lasting=4)


def test_a_rise_of_a_fixed_batch_that_heals_is_a_spike_and_one_that_stays_is_none():
    readings = noisy(300) / 10 + 2
    readings[100:103] += [1.0, 2.0, 1.0]
    readings[200:] += 2.0
    assert healing_spikes(readings).steps == (100,)
    assert healing_spikes(10 * readings).steps == (100,)
    readings[203:] -= 2.0
    assert healing_spikes(readings).steps == (100, 200)
    readings[150] = np.nan
    assert healing_spikes(readings).counted == 279


def test_a_quarter_of_the_rise_may_be_left_within_twenty_readings():
    for left, within, expected in ((0.24, 20, (50,)), (0.26, 20, ()), (0.24, 21, ())):
        readings = np.full(100, 1.0)
        readings[50 : 50 + within] = 2.0
        readings[50 + within :] = 1.0 + left
        assert healing_spikes(readings).steps[:1] == expected


def test_a_rule_for_fixed_batches_finds_planted_spikes_and_no_noise():
    rng = np.random.default_rng(8)
    falling = 1 + 3 * np.exp(-np.arange(6000) / 1000)
    readings = falling * (1 + 0.01 * noise_of(np.inf, 6000, rng))
    assert healing_spikes(readings).steps == ()
    planted = 100 + 200 * np.arange(29)
    for at in planted:
        readings[at : at + 40] += 0.5 * falling[at] * np.exp(-np.arange(40) / 3)
    found = np.array(healing_spikes(readings).steps)
    assert np.mean([np.abs(found - at).min() <= 1 for at in planted]) >= 0.9
    assert len(found) <= len(planted)


def test_readings_of_a_fixed_batch_count_per_thousand_steps(tiny_run):
    results = load_results(tiny_run)
    readings = noisy(200) / 10 + 2
    readings[100] += 5
    rate = Measure("spikes", "", "", spikes="read", spike_rule="healing")
    column, at = Measure("read", "", ""), np.arange(1000)
    read = np.where(at % 5 == 0, np.repeat(readings, 5), np.nan)
    steps = pd.concat([pd.DataFrame({"run": run, "step": at, "read": read}) for run in results.runs["run"]])
    train = results.study.train.model_copy(update={"steps": 1000, "warmup": 0})
    study = results.study.model_copy(update={"train": train})
    long = dataclasses.replace(
        results, study=study, steps=steps, measures={**results.measures, "spikes": rate, "read": column}
    )
    assert summarize(long, "spikes", "tail_mean").tolist() == pytest.approx([1000 / (180 * 5)] * len(results.runs))
