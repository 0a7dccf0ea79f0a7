"""Collapse of runs, and the learning rates from which on they collapse: closed forms, simulated truth, a real grid."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

import stability as package
from stability import stats as st
from stability.analysis import analyze, load_results, run_frame
from stability.exports import tables
from stability.registry import InputError
from stability.stats.collapse import best_loss, late_recall
from stability.study import parse_study

NONE = np.empty(0)
CHANCE, STEPS, WARMUP = 4.16, 400, 50


def course(loss, recall=NONE, every=20, ceiling=200.0, warmup=WARMUP):
    recall = np.asarray(recall, dtype=float)
    return st.Course(np.asarray(loss, dtype=float), CHANCE, warmup, every * np.arange(len(recall)), recall, ceiling)


def learned(steps=STEPS, to=0.5, pace=60.0):
    return to + (CHANCE - to) * np.exp(-np.arange(steps) / pace)


def then_collapsed(at):
    return np.where(np.arange(STEPS) < at, learned(), CHANCE - 0.002)


# --- when a run collapsed --------------------------------------------------------------------------------------------


def test_a_run_that_falls_back_to_just_below_chance_collapsed_where_it_did_and_did_not_diverge():
    run = course(then_collapsed(200))
    assert st.diverged_at(run.loss, CHANCE, WARMUP) is None
    # The smoothed loss needs most of its window of 20 steps to rise to 90% of the way.
    assert 200 <= st.collapsed_at(run, best=0.5, learnable=False) < 220


def test_a_run_that_diverged_has_collapsed_at_the_latest_there():
    never = course(np.full(STEPS, CHANCE + 0.1))
    assert (
        st.collapsed_at(never, best=math.inf, learnable=False) == st.diverged_at(never.loss, CHANCE, WARMUP) == WARMUP
    )
    broken = course(np.where(np.arange(STEPS) < 100, learned(), np.nan))
    assert st.collapsed_at(broken, best=0.5, learnable=True) == 100


def test_what_holds_for_the_loss_needs_a_best_loss_that_shows_learning():
    stuck = course(np.full(STEPS, CHANCE - 0.01))
    assert st.collapsed_at(stuck, best=0.5, learnable=False) == WARMUP
    assert st.collapsed_at(stuck, best=CHANCE - 0.02, learnable=False) is None


def test_the_limit_of_the_loss_is_nine_tenths_of_the_way_from_best_to_chance():
    for share, expected in ((0.89, None), (0.91, WARMUP)):
        flat = course(np.full(STEPS, 0.5 + share * (CHANCE - 0.5)))
        assert st.collapsed_at(flat, best=0.5, learnable=False) == expected


def test_the_limit_of_recall_is_five_times_chance_late_in_the_run():
    flat = np.full(STEPS, 2.0)
    for times, expected in ((5.1, None), (4.9, 200)):
        recall = np.where(np.arange(21) < 10, 60.0, times)
        assert st.collapsed_at(course(flat, recall), best=0.5, learnable=True) == expected
        # Where no run of the cell retrieves anything, the time was too short, or the data cannot be learned.
        assert st.collapsed_at(course(flat, recall), best=0.5, learnable=False) is None
    # Five times chance may be unreachable among few held-out pairs.
    assert st.collapsed_at(course(flat, recall, ceiling=8.0), best=0.5, learnable=True) is None


def test_a_run_that_still_falls_or_has_just_warmed_up_has_not_had_the_time():
    slow = course(CHANCE - 0.25 * np.arange(STEPS) / STEPS, np.full(21, 2.0))
    assert st.collapsed_at(slow, best=0.5, learnable=True) is None
    early = course(np.full(STEPS, CHANCE - 0.01), np.full(21, 2.0), warmup=330)
    assert st.collapsed_at(early, best=0.5, learnable=True) is None


def test_a_spike_that_recovers_is_no_collapse():
    loss = learned()
    loss[200:230] = 9.0
    assert st.collapsed_at(course(loss), best=0.5, learnable=False) is None


def test_best_and_late_values_leave_warm_up_and_early_readings_out():
    loss = np.where(np.arange(STEPS) < 40, 0.1, 2.0)
    assert best_loss(course(loss, warmup=80)) == pytest.approx(2.0)
    assert late_recall(course(loss, [9.0] * 16 + [4.0] * 4), 0.2) == pytest.approx(4.0)
    assert math.isnan(late_recall(course(loss), 0.2))
    assert best_loss(course(np.full(STEPS, np.nan))) == math.inf


def test_simulated_runs_are_told_apart():
    """Healthy, spiking and slow runs of noisy losses do not collapse; runs that end at chance do, just below it too."""
    rng = np.random.default_rng(0)
    wrong = dict.fromkeys(("healthy", "spiking", "slow", "early", "late"), 0)
    for _ in range(200):
        noise = 0.15 * rng.standard_normal(STEPS)
        spike = 6.0 * np.exp(-np.abs(np.arange(STEPS) - rng.integers(150, 330)) / 5)
        kinds = {
            "healthy": (learned(), False),
            "spiking": (learned() + spike, False),
            "slow": (learned(pace=1000), False),
            "early": (np.full(STEPS, CHANCE - rng.uniform(0, 0.02)), True),
            "late": (then_collapsed(rng.integers(100, 300)), True),
        }
        for kind, (loss, collapsed) in kinds.items():
            found = st.collapsed_at(course(loss + noise * loss / CHANCE), best=0.5, learnable=False)
            wrong[kind] += (found is not None) != collapsed
    assert max(wrong.values()) <= 4, wrong


# --- the ratio of critical rates -------------------------------------------------------------------------------------

RATES = 0.01 * 2.0 ** np.arange(7)


def grid_of(critical, rates=RATES):
    """Return which runs collapse whose critical rates are (seeds,) or (seeds, cells)."""
    critical = np.asarray(critical)
    return rates.reshape(-1, *[1] * (critical.ndim - 1)) > critical[:, None]


def test_a_critical_rate_is_the_geometric_mean_of_the_two_rates_around_it():
    a, b = grid_of([0.03, 0.05, 0.1, 0.3]), grid_of([0.1, 0.1, 0.3, 0.3])
    found = st.critical_rate_ratio(a, b, rates=RATES, names=("siglip", "clip"))
    middles = [np.log([0.02 * 2**0.5, 0.04 * 2**0.5, 0.08 * 2**0.5, 0.16 * 2**0.5])[k] for k in range(4)]
    assert_allclose(found.per_seed, np.array(middles) - np.array([middles[2], middles[2], middles[3], middles[3]]))
    assert found.allowance == pytest.approx(math.log(2) / 2)  # clip's lie in two brackets
    by_t = st.paired_difference(found.per_seed, np.zeros(4))
    assert_allclose(np.log(found.interval), np.add(by_t.interval, (-found.allowance, found.allowance)))
    assert found.sentence.startswith(
        "siglip collapses from a 50% lower rate on than clip (ratio of critical rates 0.5, "
    )
    assert "a factor of 1.41 that the grid of rates hides" in found.sentence


def test_the_order_of_rates_does_not_matter_and_cells_are_averaged():
    rng = np.random.default_rng(0)
    a, b = (grid_of(0.08 * np.exp(0.5 * rng.standard_normal((9, 2)))) for _ in range(2))
    found = st.critical_rate_ratio(a, b, rates=RATES)
    assert st.critical_rate_ratio(a[:, ::-1], b[:, ::-1], rates=RATES[::-1]) == found
    first, second = (st.critical_rate_ratio(a[:, :, k], b[:, :, k], rates=RATES) for k in (0, 1))
    assert_allclose(found.per_seed, np.mean([first.per_seed, second.per_seed], axis=0))


def test_a_collapse_below_a_rate_without_one_does_not_count_and_is_told():
    a = grid_of([0.05, 0.05, 0.1, 0.2, 0.3, 0.1])
    b, turned = a.copy(), a.copy()
    turned[0, 0] = True
    plain, found = (st.critical_rate_ratio(one, b, rates=RATES, names=("s", "c")) for one in (a, turned))
    assert found.per_seed == plain.per_seed
    assert "; in 1 of 6, s collapsed at a lower rate but not at a higher one" in found.sentence


def test_a_critical_rate_beyond_the_grid_is_placed_near_and_far_and_the_interval_spans_both():
    critical = [0.03, 0.05, 0.1, 0.2, 0.3, 0.15, 0.9]
    a, b = grid_of(critical), grid_of([0.1] * 6 + [0.05])
    found = st.critical_rate_ratio(a, b, rates=RATES, names=("s", "c"))
    other = np.log(0.08 * 2**0.5) - np.log(0.04 * 2**0.5)
    ends = [np.log(0.64) + steps * np.log(2) for steps in (0.5, 2.0)]
    spans = []
    for end in ends:
        per_seed = np.array([*found.per_seed[:6], end - np.log(0.04 * 2**0.5)])
        spans.append(st.paired_difference(per_seed, np.zeros(7)).interval)
    assert found.per_seed[6] == pytest.approx(ends[0] - np.log(0.04 * 2**0.5))
    assert other > 0
    lowest, highest = min(low for low, _ in spans), max(high for _, high in spans)
    assert_allclose(np.log(found.interval), [lowest - found.allowance, highest + found.allowance])
    assert "; s's lies beyond the grid in 1 of 7 cases" in found.sentence


@pytest.mark.parametrize(
    ("critical", "words"),
    [
        ([9.0] * 6, "s collapses at none of the 7 rates, so its critical rate lies above them"),
        ([0.001] * 6, "s collapses at all of the 7 rates, so its critical rate lies below them"),
        (
            [0.001, 0.1, 0.1, 0.1, 0.1, 9.0],
            "s's critical rate lies beyond the 7 rates in 2 of 6 cases (1 below, 1 above), and at most 20% may",
        ),
    ],
)
def test_an_arm_beyond_the_grid_is_not_testable_in_words(critical, words):
    found = st.critical_rate_ratio(grid_of(critical), grid_of([0.1] * 6), rates=RATES, names=("s", "c"))
    assert (found.testable, found.problem) == (False, words)
    assert st.verdict(found, expect="equal", margin=5.0).sentence == f"Not testable: {words}."


def test_a_coarse_grid_cannot_show_what_it_hides_but_a_fine_one_can():
    rng = np.random.default_rng(1)
    critical = 0.08 * np.exp(0.3 * rng.standard_normal(12))
    fine = 0.02 * 1.2 ** np.arange(16)
    same = [st.critical_rate_ratio(*[grid_of(critical, r)] * 2, rates=r) for r in (RATES, fine)]
    words = [st.verdict(one, expect="equal", margin=0.25).verdict for one in same]
    assert words == ["inconclusive", "supported"]
    assert st.verdict(same[0], expect="equal", margin=0.25).seeds_to_settle is None


@pytest.mark.parametrize("seeds", [5, 8, 20])
def test_on_a_grid_of_factor_2_wrong_directions_stay_below_5_percent_and_intervals_cover(seeds):
    """Critical rates of half a doubling, or hardly any, of spread over seeds, the same and unlike in the two arms."""
    rng, trials = np.random.default_rng(seeds), 150
    grid = 2.0 ** np.arange(-5, 6)
    for spreads in ((0.35, 0.35), (0.1, 0.1), (0.35, 0.02)):
        wrong = detected = covered = 0
        for _ in range(trials):
            place = rng.uniform(-0.35, 0.35)
            shared, *own = rng.standard_normal((3, seeds)) * np.sqrt(0.5)
            logs = [place + sd * (shared + mine) for sd, mine in zip(spreads, own, strict=True)]
            for ratio in (1.0, 4.0):
                arms = [
                    grid_of(np.exp(log + side * math.log(ratio) / 2), grid)
                    for log, side in zip(logs, (1, -1), strict=True)
                ]
                found = st.critical_rate_ratio(*arms, rates=grid)
                covered += found.interval[0] <= ratio <= found.interval[1]
                if ratio == 1:
                    wrong += not found.interval[0] <= 1 <= found.interval[1]
                else:
                    detected += found.interval[0] > 1
        assert wrong / trials <= 0.05
        assert covered / (2 * trials) >= 0.95
        assert detected / trials >= (0.25 if seeds == 5 else 0.9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: st.critical_rate_ratio([[1]], [[1]], rates=[0.1]), "two or more positive numbers"),
        (lambda: st.critical_rate_ratio([[1, 1]], [[1, 1]], rates=[0.1, 0.1]), "rates that differ"),
        (lambda: st.critical_rate_ratio([[1, 1]], [[1, 1]], rates=[1, 2, 3]), "one rate for each entry of axis 1"),
        (lambda: st.critical_rate_ratio([[1, 2]], [[1, 1]], rates=[1, 2]), "not yes or no"),
        (lambda: st.critical_rate_ratio([[1, 1]], [[1, 1], [0, 1]], rates=[1, 2]), "allowed: equal shapes"),
    ],
)
def test_wrong_input_is_one_plain_sentence(call, message):
    with pytest.raises(InputError, match=message):
        call()


# --- studies ---------------------------------------------------------------------------------------------------------

STUDY = """
title = "Critical rates"
question = "From which learning rate on does training collapse?"
[data]
name = "latent"
pairs = 512
[model]
image = { name = "mlp", width = 8, depth = 1 }
text = { name = "mlp", width = 8, depth = 1 }
embed_dim = 8
[train]
steps = 120
warmup = 10
lr_schedule = "constant"
scalar_lr_multiplier = 10.0
[grid]
arms = ["siglip", "clip"]
batch_size = [16]
lr = [0.01, 0.1, 1.0, 10.0]
seeds = 3
[probes.retrieval]
every = 20
[probes.fixed_held_out_loss]
every = 5
[[claims]]
id = "critical-rate"
primary = true
text = "SigLIP collapses from a lower learning rate on than CLIP"
measure = "loss"
contrast = "critical_rate"
axis = "lr"
compare = ["siglip", "clip"]
expect = "lower"
margin = 0.25
[[claims]]
id = "collapse"
text = "SigLIP collapses more often than CLIP over these rates"
measure = "loss"
contrast = "collapse"
compare = ["siglip", "clip"]
expect = "higher"
margin = 0.1
[[claims]]
id = "spikes"
text = "SigLIP's held-out loss spikes more often than CLIP's"
measure = "held_out_spike_rate"
contrast = "difference"
compare = ["siglip", "clip"]
expect = "higher"
margin = 0.5
"""


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    where = tmp_path_factory.mktemp("collapse")
    (where / "rates.toml").write_text(STUDY)
    return package.run(where / "rates.toml", device="cpu", out=where / "run")


def test_a_grid_of_rates_collapses_at_its_upper_end_and_has_a_report_of_it(run_dir):
    results = load_results(run_dir)
    runs = results.runs
    collapsed = runs.groupby(["arm", "lr"])["collapsed"].mean().unstack()
    assert (collapsed[0.01] == 0).all()
    assert (collapsed[10.0] == 1).all()
    assert set(runs["run"][runs["status"] == "diverged"]) <= set(runs["run"][runs["collapsed"] == 1])
    assert (runs["collapsed_at"].notna() == (runs["collapsed"] == 1)).all()
    assert not (runs["collapsed_at"] > runs["diverged_at"]).any()
    findings = analyze(results)
    exported = tables(results, findings)
    assert {"collapsed", "collapsed_at"} <= {*exported["runs"].columns}
    assert {"collapsed", "collapsed_at"} <= {*exported["columns"]["column"]}


def test_the_fixed_batch_is_the_same_at_every_step_and_differs_by_seed(run_dir):
    results = load_results(run_dir)
    read = results.steps[["run", "step", "fixed_held_out_loss"]].dropna()
    assert sorted(read["step"].unique()) == list(range(0, 121, 5))
    assert (
        read[read["step"] == 0]
        .merge(results.runs, on="run")
        .groupby(["arm", "seed"])["fixed_held_out_loss"]
        .nunique()
        .eq(1)
        .all()
    )


def with_curves(results, loss_of):
    """Return results with other losses and no probe: ``loss_of(run row) -> (steps,)``."""
    rows = [
        pd.DataFrame({"run": row.run, "step": np.arange(121), "loss": np.append(loss_of(row), np.nan)})
        for row in results.runs.itertuples()
    ]
    steps = pd.concat(rows, ignore_index=True)
    for name in results.steps.columns.difference(steps.columns):
        steps[name] = np.nan
    runs = run_frame(results.study, results.manifest, steps)
    return dataclasses.replace(results, steps=steps, runs=runs)


def synthetic(results, limits, share=0.98):
    """Results whose runs collapse, to just below chance, above the rate of their arm and seed in *limits*."""

    def loss_of(row):
        chance = math.log(16) if row.arm == "clip" else math.log(16) + 15 * math.log(16 / 15)
        return np.full(120, share * chance if row.lr > limits[row.arm][row.seed] else 0.3 * chance)

    return with_curves(results, loss_of)


def test_claims_on_collapse_read_the_states_of_runs(run_dir):
    results = synthetic(load_results(run_dir), {"siglip": [0.05, 0.05, 0.5], "clip": [5.0, 5.0, 0.5]})
    assert (results.runs["status"] == "finished").all()
    assert results.runs["collapsed"].sum() == 3 + 3 + 2 + 1 + 1 + 2
    critical, collapse, _ = analyze(results).claims
    # In decades: siglip's lie at -1.5, -1.5 and -0.5, clip's at 0.5, 0.5 and -0.5.
    assert critical.effect == pytest.approx(10 ** (-4 / 3))
    assert collapse.effect > 0
    assert "collapsed in 8 of 12 runs" in collapse.sentence


def test_events_that_never_happen_are_not_equal_but_not_testable(run_dir):
    results = synthetic(load_results(run_dir), {"siglip": [99.0] * 3, "clip": [99.0] * 3})
    quiet = results.steps.assign(fixed_held_out_loss=np.where(results.steps["step"] % 5 == 0, 1.0, np.nan))
    findings = analyze(dataclasses.replace(results, steps=quiet))
    assert [claim.verdict for claim in findings.claims] == ["not-testable"] * 3
    reasons = [claim.reason for claim in findings.claims]
    assert reasons[0] == "siglip collapses at none of the 4 rates, so its critical rate lies above them"
    assert reasons[1] == "nothing happened: neither siglip nor clip collapsed in any of their 24 runs"
    # After warm-up 22 readings are left, of which two have a window before them.
    assert reasons[2] == "nothing happened: neither siglip nor clip had a spike in any of their 24 runs"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lr = [0.01, 0.1, 1.0, 10.0]", "lr = [0.01]", "axis: grid.lr has one value; allowed: three or more"),
        (
            "lr = [0.01, 0.1, 1.0, 10.0]",
            "lr = [0.01, 0.1]",
            "axis: grid.lr has 2 values; allowed with contrast 'critical_rate': three or more",
        ),
        ('axis = "lr"', "", "axis: required by contrast 'critical_rate', but missing"),
        ('axis = "lr"', 'axis = "noise"', "axis: got 'noise'; allowed with contrast 'critical_rate': lr"),
        (
            "lr = [0.01, 0.1, 1.0, 10.0]",
            "lr = [0.01]\nlr_multipliers = [1, 10, 100]\n[tune]",
            "contrast: 'critical_rate' compares rates, and with",
        ),
    ],
)
def test_a_claim_that_the_grid_cannot_serve_is_refused_when_the_study_is_read(old, new, message):
    text = STUDY.replace(old, new)
    if "[tune]" in new:
        text = STUDY.replace(old, new.removesuffix("[tune]")) + (
            "[tune]\nlr = [0.01, 0.02]\nseeds = 1\nmeasure = 'recall_at_1'\n"
        )
    with pytest.raises(InputError) as refused:
        parse_study(text, "rates.toml", "rates")
    assert message in str(refused.value)


def test_multiples_of_one_rate_are_rates():
    text = STUDY.replace("lr = [0.01, 0.1, 1.0, 10.0]", "lr = [0.01]\nlr_multipliers = [1, 10, 100]")
    assert parse_study(text, "rates.toml", "rates").primary.contrast == "critical_rate"
