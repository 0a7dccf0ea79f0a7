"""From run files to findings: reductions and scales against slow twins, verdicts under known truth."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from stability.analysis import (
    Results,
    analyze,
    findings_text,
    load_results,
    run_frame,
    steps_to_threshold,
    summarize,
    transformed,
)
from stability.grid import runs_of
from stability.losses import loss
from stability.losses.chance import chance_level
from stability.report import write_report
from stability.results import _area
from stability.study import parse_study


@pytest.fixture(scope="module")
def results(tiny_run) -> Results:
    return load_results(tiny_run)


def rows_of(results: Results, run: str) -> pd.DataFrame:
    return results.steps[results.steps["run"] == run]


@pytest.mark.parametrize("reduction", ["final", "best", "tail_mean"])
def test_a_reduction_is_its_definition(results, reduction):
    values = summarize(results, "recall_at_1", reduction)
    run = results.runs["run"][5]
    rows = rows_of(results, run).dropna(subset=["recall_at_1"])
    windows = {
        "final": rows["recall_at_1"].iloc[-1:],
        "best": rows["recall_at_1"].nlargest(1),
        "tail_mean": rows["recall_at_1"][rows["step"] >= 0.8 * 8],
    }
    assert_allclose(values[run], windows[reduction].mean(), rtol=1e-6)


def test_a_pooled_measure_is_a_ratio_of_means_not_a_mean_of_ratios(results):
    values = summarize(results, "gradient_noise_fraction", "tail_mean")
    run = results.runs["run"][0]
    rows = rows_of(results, run).query("step >= 6.4")
    top, bottom = rows["gradient_noise_trace_towers"].mean(), rows["gradient_second_moment_towers"].mean()
    assert_allclose(values[run], top / bottom, rtol=1e-5)


def test_the_area_under_a_curve_is_that_of_its_trapezoids_whatever_the_spacing_of_the_steps():
    curve = pd.DataFrame({"step": [10, 20, 50], "value": [0.0, 1.0, 1.0]})
    assert _area(curve) == (0.5 * 10 + 1.0 * 30) / 40
    assert _area(curve[:1]) == 0.0


def test_the_time_to_a_threshold_is_the_first_measured_step_or_infinity(results):
    times = steps_to_threshold(results, "recall_at_1", 0.02)
    assert len(times) == len(results.runs)
    for run, time in times.items():
        rows = rows_of(results, run).dropna(subset=["recall_at_1"])
        reached = rows["step"][rows["recall_at_1"] >= 0.02]
        assert time == (reached.min() if len(reached) else math.inf)
    assert np.isinf(steps_to_threshold(results, "recall_at_1", 1.1)).all()


def test_a_chance_corrected_logarithm_is_zero_at_perfection_and_floored_near_chance(results):
    runs = results.runs["run"][:3]
    values = pd.Series([1.0, 0.5, 0.0], index=runs)
    chance = summarize(results, "recall_at_1_chance", "final")[runs].to_numpy()
    expected = [0.0, math.log((0.5 - chance[1]) / (1 - chance[1])), math.log(0.1 * chance[2] / (1 - chance[2]))]
    assert_allclose(transformed(results, "recall_at_1", values, "log_above_chance"), expected, rtol=1e-6)


def test_every_claim_has_a_finding_in_words_and_the_json_has_no_nan(results, tiny):
    findings = analyze(results)
    assert [finding.id for finding in findings.claims] == [claim.id for claim in tiny.claims]
    text = findings_text(findings)
    plain = json.loads(text, parse_constant=pytest.fail)
    assert plain["schema"] == 1
    assert plain["verdict"] == plain["claims"][0]["verdict"]
    assert plain["study_hash"] == tiny.hash
    promised = (
        "id primary text source measure contrast verdict effect interval equivalence_interval confidence margin "
        "n_pairs p_value p_adjusted seeds_to_settle sentence"
    )
    assert all({*promised.split()} <= set(claim) and claim["sentence"].endswith(".") for claim in plain["claims"])
    assert findings_text(analyze(results)) == text


# --- verdicts under known truth: synthetic runs of the tiny study ----------------------------------------------------


def synthetic(tiny_text: str, recall, noise_fraction=lambda run: 0.5, loss=lambda run: 1.0) -> Results:
    """Return results in which each run's measures are given by functions of the run, at steps 0, 4 and 8."""
    study = parse_study(tiny_text.replace("seeds = 3", "seeds = 10"), "t.toml", "t")
    rows = []
    for run in runs_of(study):
        for step in range(9):
            rows.append(
                {
                    "run": run.id,
                    "step": step,
                    "loss": loss(run) if step < 8 else math.nan,
                    "recall_at_1": recall(run) * (step > 0) if step % 4 == 0 else math.nan,
                    "recall_at_1_chance": 0.01 if step % 4 == 0 else math.nan,
                    "gradient_noise_trace_towers": noise_fraction(run) if step % 4 == 0 else math.nan,
                    "gradient_second_moment_towers": 1.0 if step % 4 == 0 else math.nan,
                }
            )
    steps = pd.DataFrame(rows)
    manifest = {"groups": [{"status": "finished", "git_commit": "", "runs": [run.id for run in runs_of(study)]}]}
    manifest |= {"versions": {}, "device": {"type": "cpu"}}
    return Results(study, manifest, run_frame(study, manifest, steps), steps, study.measures)


def jitter(run) -> float:
    return 1 + 0.01 * math.sin(12.9898 * run.seed + (run.arm == "clip"))


def verdicts(results: Results) -> dict[str, str]:
    return {finding.id: finding.verdict for finding in analyze(results).claims}


def test_effects_that_are_there_are_found_with_their_size(tiny_text):
    ours = "siglip-log-b"
    results = synthetic(
        tiny_text,
        recall=lambda run: 0.5 * math.exp(-(1.0 if run.arm == ours else 2.0) * run.noise) * jitter(run),
        noise_fraction=lambda run: (0.3 if run.arm == ours else 0.6) * jitter(run),
    )
    found = {finding.id: finding for finding in analyze(results).claims}
    assert found["noise"].verdict == "supported"
    assert found["noise"].effect == pytest.approx(0.5, rel=0.02)
    assert found["slope"].verdict == "supported"
    assert found["slope"].effect == pytest.approx(1.0, rel=0.1)
    assert found["noise"].n_pairs == 10


def test_swapping_the_arms_exchanges_supported_and_contradicted(tiny_text):
    def at(better: str) -> dict[str, str]:
        return verdicts(
            synthetic(
                tiny_text,
                recall=lambda run: 0.5 * math.exp(-(1.0 if run.arm == better else 2.0) * run.noise) * jitter(run),
                noise_fraction=lambda run: (0.3 if run.arm == better else 0.6) * jitter(run),
            )
        )

    ours, theirs = at("siglip-log-b"), at("clip")
    assert (ours["noise"], theirs["noise"]) == ("supported", "contradicted")
    assert (ours["slope"], theirs["slope"]) == ("supported", "contradicted")


def test_equal_arms_are_equivalent(tiny_text):
    assert (
        verdicts(synthetic(tiny_text, recall=lambda run: 0.5 * jitter(run), noise_fraction=jitter))["noise"]
        == "equivalent"
    )


def test_recall_near_chance_is_not_testable_and_says_which_arm(tiny_text):
    results = synthetic(tiny_text, recall=lambda run: 0.02 if run.arm == "clip" else 0.5 * jitter(run))
    slope = next(finding for finding in analyze(results).claims if finding.id == "slope")
    assert slope.verdict == "not-testable"
    assert "clip at batch size 8 reaches only 2.0 times the chance level" in slope.sentence


def test_a_diverged_run_counts_as_chance_where_a_measure_is_bounded_and_too_many_make_the_rest_untestable(tiny_text):
    results = synthetic(
        tiny_text,
        recall=lambda run: 0.5 * jitter(run),
        noise_fraction=jitter,
        loss=lambda run: 99.0 if (run.arm, run.seed) == ("clip", 0) or (run.arm == "clip" and run.seed == 1) else 1.0,
    )
    assert (results.runs["status"] == "diverged").sum() == 8
    assert set(results.runs["diverged_at"].dropna()) == {2.0}
    findings = {finding.id: finding for finding in analyze(results).claims}
    assert findings["noise"].verdict == "not-testable"
    assert "2 of 10 seeds" in findings["noise"].sentence
    assert findings["slope"].n_pairs == 10
    assert findings["sooner"].n_pairs == 10
    assert findings["sooner"].effect < 1


def test_permuting_the_seeds_changes_no_verdict_and_no_interval(tiny_text):
    results = synthetic(tiny_text, recall=lambda run: 0.5 * jitter(run) ** (1 + run.noise), noise_fraction=jitter)
    runs = results.runs.copy()
    runs["seed"] = (runs["seed"] * 7 + 3) % 10
    before, after = analyze(results), analyze(replace(results, runs=runs))
    for ours, theirs in zip(before.claims, after.claims, strict=True):
        assert ours.verdict == theirs.verdict
        assert_allclose(ours.interval, theirs.interval, rtol=1e-9)


def test_the_order_in_which_groups_were_finished_changes_nothing_in_the_report(tiny_run, tmp_path):
    copied = shutil.copytree(tiny_run, tmp_path / "r")
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["groups"] = manifest["groups"][::-1]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    ours, theirs = (write_report(run_dir) for run_dir in (shutil.copytree(tiny_run, tmp_path / "o"), copied))
    for kind, path in ours.items():
        assert path.read_bytes() == theirs[kind].read_bytes(), kind


def test_a_loss_that_declares_no_chance_level_is_judged_by_the_least_that_a_constant_similarity_reaches(
    tiny_run, monkeypatch
):
    clip = loss["clip"]
    declared = load_results(tiny_run).runs["status"].tolist()
    monkeypatch.setitem(loss._variants, "clip", replace(clip, traits=replace(clip.traits, chance=None)))
    assert chance_level(loss["clip"], 16) == pytest.approx(math.log(16))
    assert load_results(tiny_run).runs["status"].tolist() == declared
    monkeypatch.setitem(loss._variants, "clip", replace(clip, traits=replace(clip.traits, chance=lambda size: 0.0)))
    assert set(load_results(tiny_run).runs.query("arm == 'clip'")["status"]) == {"diverged"}


def test_a_claim_that_diverged_runs_make_untestable_says_how_many_there_were(results):
    status = np.where(results.runs["arm"] == "clip", "diverged", "finished")
    finding = analyze(replace(results, runs=results.runs.assign(status=status)), checks=False).claims[0]
    assert finding.verdict == "not-testable"
    assert finding.reason.endswith("; of the 24 runs of its arms 12 diverged (they end no better than chance)")
    assert finding.sentence == f"Not testable: {finding.reason}."
