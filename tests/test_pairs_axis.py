"""The axis of pairs: nested parts of the training split, equal for all losses, and slopes per doubling over it."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from stability.analysis import analyze, compared, load_results
from stability.datasets import rows
from stability.execute import run
from stability.grid import groups_of, run_table, runs_of, tuning_runs_of
from stability.registry import InputError
from stability.report.tables import cell_table
from stability.study import parse_study
from stability.train import Trainer
from stability.train.data import population_data, subset_indices
from tests.report_blocks import figures_of, texts_of

CPU = torch.device("cpu")
WHOLE = re.compile(
    r"\[probes\.(matched_gradient_noise|geometry|separability|cross_check|curvature|gradient_noise)\]\n(\w.*\n)*"
)


def pairs_text(tiny_text, pairs="[64, 16]", axis="train_pairs"):
    text = WHOLE.sub("", tiny_text).replace("gradient_noise_fraction", "recall_at_1")
    text = text.replace("batch_size = [8, 16]", f"batch_size = [8]\ntrain_pairs = {pairs}")
    return text.replace('axis = "noise"', f'axis = "{axis}"')


def pairs_study(tiny_text, scale=None, **how):
    return parse_study(pairs_text(tiny_text, **how), "t.toml", "t", scale)


# --- parts -----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 50), st.integers(1, 60), st.integers(1, 60))
def test_a_smaller_part_lies_in_a_larger_and_neither_repeats_a_pair(seed, one, other):
    small, large = (
        subset_indices(seed, 60, min(one, other)).tolist(),
        subset_indices(seed, 60, max(one, other)).tolist(),
    )
    assert len({*small}) == len(small) == min(one, other)
    assert {*small} <= {*large} <= {*range(60)}
    assert large == sorted(large)


def test_seeds_have_parts_of_their_own_and_the_whole_is_a_part():
    assert not torch.equal(subset_indices(0, 60, 20), subset_indices(1, 60, 20))
    assert torch.equal(subset_indices(3, 60, 60), torch.arange(60))


def test_runs_of_all_losses_and_levels_see_the_same_pairs_and_nothing_else(tiny_text):
    study = pairs_study(tiny_text)
    pairs = study.pairs()
    clean = rows(pairs.image, pairs.train)
    for arm in study.grid.arms:
        for count in (16, 64):
            runs = [run for run in runs_of(study) if run.arm == arm and run.train_pairs == count]
            feed = population_data(runs, pairs, "fixed", CPU)
            assert feed.available == count
            for place, run_ in enumerate(runs):
                own = subset_indices(run_.seed, len(pairs.train), count)
                assert torch.equal(feed.image[place], clean[own])
                texts = {tuple(row) for row in rows(pairs.text, pairs.train)[own].tolist()}
                assert {tuple(row) for row in feed.text[place].tolist()} <= texts  # a mismatch stays inside the part
                assert torch.equal(feed.caption[place], rows(pairs.caption, pairs.train)[own])
            some = feed.select([2, 0])
            assert torch.equal(some.caption, feed.caption[[2, 0]])


def test_fresh_noise_reads_the_captions_of_its_own_replica(tiny_text):
    study = parse_study(
        pairs_text(tiny_text).replace('name = "digits"', 'name = "digits"\ncorruption = "fresh"'), "t", "t"
    )
    runs = [run for run in runs_of(study) if run.arm == "clip" and run.train_pairs == 16]
    pairs = study.pairs()
    feed = population_data(runs, pairs, "fresh", CPU)
    index = torch.arange(8).expand(len(runs), 8)
    batch = feed.batch(index, feed.generators("train"))
    for place, run_ in enumerate(runs):
        own = subset_indices(run_.seed, len(pairs.train), 16)
        caption = rows(pairs.caption, pairs.train)[own]
        before, after = rows(pairs.text, pairs.train)[own][:8], batch["text"][place]
        moved = (before != after).any(-1)
        # A mismatched pair really mismatches: no text is replaced by one of the same caption.
        known = {tuple(text): int(one) for text, one in zip(before.tolist(), caption[:8], strict=True)}
        assert all(known[tuple(after[i].tolist())] != int(caption[i]) for i in moved.nonzero().flatten().tolist())
        assert bool(moved.any()) == (run_.noise > 0)


def test_further_modalities_follow_their_pairs():
    text = """
title = "Three"
question = "?"
data = { name = "latent", modalities = 3, pairs = 200 }
model = { image = "linear", text = "linear", extra_modalities = "linear", embed_dim = 4 }
train = { steps = 2 }
grid = { arms = ["clip"], batch_size = [8], train_pairs = [16, 32], lr = [0.01], seeds = 2 }
"""
    study = parse_study(text, "t", "t")
    pairs = study.pairs()
    runs = [run for run in runs_of(study) if run.train_pairs == 16]
    feed = population_data(runs, pairs, "fixed", CPU)
    index = torch.tensor([[0, 5, 7, 9], [15, 1, 2, 3]])
    batch = feed.batch(index, feed.generators("train"))
    for place, run_ in enumerate(runs):
        own = pairs.train[subset_indices(run_.seed, len(pairs.train), 16)][index[place]]
        assert torch.equal(batch["modality-3"][place], pairs.extra_modalities[0][own])
        assert torch.equal(batch["image"][place], pairs.image[own])
    trainer = Trainer(study, groups_of(runs, lambda run: 4)[0], pairs, CPU)
    assert trainer.step()["loss"].isfinite().all()


# --- runs ------------------------------------------------------------------------------------------------------------


def test_groups_hold_one_number_of_pairs_and_runs_without_the_axis_keep_their_ids(tiny_text):
    with_axis, without = (
        pairs_study(tiny_text),
        parse_study(pairs_text(tiny_text, axis="noise").replace("train_pairs = [64, 16]\n", ""), "t", "t"),
    )
    runs = runs_of(with_axis)
    assert len(runs) == 2 * len(runs_of(without)) == len({run.id for run in runs})
    for group in groups_of(runs, lambda run: 32):
        assert len({run.train_pairs for run in group.runs}) == 1
    assert {row.get("train_pairs") for row in run_table(runs)} == {16, 64}
    assert all("train_pairs" not in row for row in run_table(runs_of(without)))


def test_the_search_is_done_on_the_largest_part(tiny_text):
    text = pairs_text(tiny_text) + "\n[tune]\nlr = [0.01, 0.03]\nseeds = 1\n"
    runs = tuning_runs_of(parse_study(text, "t", "t"))
    assert {run.train_pairs for run in runs} == {64}


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        (
            "[4, 64]",
            r"t\.toml: grid\.train_pairs\[0\]: got 4; allowed: from 8, the largest batch size, to \d+, .*'digits'",
        ),
        ("[16, 99999]", r"t\.toml: grid\.train_pairs\[1\]: got 99999; allowed: from 8, .*"),
        ("[16, 16]", r"t\.toml: grid\.train_pairs: got \[16, 16\]; allowed: values that differ"),
        ("[16]", r"t\.toml: claims\[1\]\.axis: grid\.train_pairs has one value; allowed: two or more"),
        ("[0, 16]", r"t\.toml: grid\.train_pairs\[0\]: got 0; allowed: .*greater than 0"),
    ],
)
def test_a_wrong_number_of_pairs_is_one_sentence(tiny_text, pairs, sentence):
    with pytest.raises(InputError) as caught:
        pairs_study(tiny_text, pairs=pairs)
    assert re.fullmatch(sentence, str(caught.value)), str(caught.value)


def test_a_claim_over_pairs_is_a_slope_per_doubling_and_the_report_shows_the_axis(tiny_text, tmp_path):
    study = pairs_study(tiny_text, scale="smoke")
    results = load_results(run(study, "cpu", out=tmp_path / "run"))
    runs = results.runs
    runs["status"] = "finished"
    assert sorted(runs["train_pairs"].unique()) == [16, 64]
    # Put exact lines over log2(pairs) in place of what four steps have learnt.
    slopes = {"clip": 0.01, "siglip-log-b": 0.03}
    line = {
        row["run"]: 0.2 + slopes[row["arm"]] * (1 + 0.1 * row["seed"]) * np.log2(row["train_pairs"])
        for row in runs.to_dict("records")
    }
    results.steps["recall_at_1"] = results.steps["run"].map(line)
    claim = study.claims[1].model_copy(update={"transform": "linear"})
    found = compared(results, claim, 0.95)
    assert_allclose(found.effect, 0.02 * 1.05, rtol=1e-5)
    assert "slope of recall@1 per doubling of the number of training pairs" in found.sentence
    findings = analyze(results, checks=False)
    table = cell_table(results)
    assert "Pairs" in [head["label"] for head in table["columns"]]
    drawn = figures_of(results, findings)
    assert any("train_pairs" in one.table.columns for one in drawn)
    told = " ".join(texts_of("method", results, findings).values())
    assert "Runs have 16, 64 training pairs. For each seed all arms use the same pairs" in told


def test_a_claim_over_batch_size_is_per_doubling_and_one_over_noise_is_not(tiny_text):
    from stability.analysis.pairing import levels_of

    study = parse_study(tiny_text, "t", "t")
    assert levels_of(study, "batch_size") == (3.0, 4.0)
    assert levels_of(study, "noise") == (0.0, 0.4)
