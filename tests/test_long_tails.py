"""Long tails: frequencies of classes among training pairs, and recall in the head and in the tail."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stability.analysis import analyze, load_results
from stability.datasets import dataset
from stability.datasets.frequencies import counts_of, halves_by_frequency, offered, resampled, with_frequencies
from stability.execute import run
from stability.grid import groups_of, runs_of, study_of
from stability.probes.downstream import recall_of_queries
from stability.registry import InputError
from stability.streams import stream
from stability.study import Study, parse_study
from stability.train import Trainer

CPU = torch.device("cpu")
TAILED = sorted(name for name, variant in dataset.items() if "zipf" in variant.options)
MIXED = sorted(name for name, variant in dataset.items() if "class_mix" in variant.options)
SMALL = {"latent": {"pairs": 400}, "shapes": {"pairs": 400, "size": 8}}


def study_text(data: str = "", grid: str = "", more: str = "", name: str = "latent") -> str:
    size = "pairs = 160\nlatent_dim = 3\nview_dim = 6\n" if name == "latent" else ""
    text = "mlp" if name == "latent" else '{ name = "token_transformer", width = 8, heads = 2, depth = 1 }'
    return f"""
title = "T"
question = "Q?"
[data]
name = "{name}"
{size}{data}
[model]
image = {{ name = "mlp", width = 8, depth = 1 }}
text = {text if text.startswith("{") else f'"{text}"'}
embed_dim = 4
[train]
steps = 6
[grid]
arms = ["clip", "siglip"]
batch_size = [8]
lr = [1e-2]
seeds = 2
{grid}
[probes.retrieval]
every = 3
{more}
"""


def study_with(data: str = "", grid: str = "", more: str = "", name: str = "latent") -> Study:
    return parse_study(study_text(data, grid, more, name), "t.toml", "t")


def trainer_of(study: Study) -> Trainer:
    group = groups_of(runs_of(study), lambda run: 32)[0]
    return Trainer(study_of(study, group), group, study.pairs(), CPU)


# --- frequencies -----------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 5), min_size=1, max_size=12), st.integers(1, 500))
def test_counts_are_the_shares_rounded_up_or_down_and_sum_to_the_total(weights, total):
    if sum(weights) < 1e-3:
        weights = [weight + 1 for weight in weights]
    counts = counts_of(torch.tensor(weights, dtype=torch.float64), total)
    shares = [weight / sum(weights) * total for weight in weights]
    assert int(counts.sum()) == total
    assert all(abs(count - share) < 1 for count, share in zip(counts.tolist(), shares, strict=True))


@given(st.integers(0, 50), st.floats(0.05, 3.0))
def test_frequencies_of_ranks_are_k_to_the_minus_s_and_pairs_of_a_class_occur_equally_often(seed, exponent):
    group = torch.randint(5, (300,), generator=stream(seed, "group"))
    train = torch.arange(200)
    index, rank = with_frequencies(train, group, exponent, None, "d", stream(seed, "order"))
    assert torch.equal(rank, group)
    total = sum(k**-exponent for k in range(1, 6))
    for k in range(5):
        own = index[group[index] == k]
        assert abs(len(own) - 200 * (k + 1) ** -exponent / total) < 1
        times = own.bincount(minlength=200)[group[:200] == k]
        assert int(times.max()) - int(times.min()) <= 1
    assert len(index) == 200
    assert {*index.tolist()} <= {*train.tolist()}


@given(st.integers(0, 50))
def test_a_smaller_group_is_a_subset_of_a_larger_and_pairs_that_stay_keep_their_places(seed):
    group, train = torch.tensor([0] * 10 + [1] * 10), torch.arange(20)
    few, many = (resampled(train, group, torch.tensor([20 - count, count]), stream(seed, "order")) for count in (3, 6))
    kept = [{*index[group[index] == 1].tolist()} for index in (few, many)]
    assert kept[0] < kept[1]
    assert [len(one) for one in kept] == [3, 6]
    first = group[few] == 1
    assert torch.equal(few[first], train[first])
    assert torch.equal(resampled(train, group, torch.tensor([10, 10]), stream(seed, "order")), train)


@pytest.mark.parametrize("name", TAILED)
def test_data_without_an_exponent_are_as_before_and_held_out_pairs_always_stay(name):
    plain, zero, tailed = (dataset[name](**SMALL.get(name, {}), **how) for how in ({}, {"zipf": 0.0}, {"zipf": 1.0}))
    for field in ("image", "text", "caption", "label", "held_out", "prompts", "frequency_rank"):
        assert torch.equal(getattr(plain, field), getattr(zero, field)), field
        assert torch.equal(getattr(plain, field), getattr(tailed, field)), field
    assert torch.equal(plain.train, zero.train)
    assert not torch.equal(plain.train, tailed.train)
    assert {*tailed.train.tolist()} < {*plain.train.tolist()}


@pytest.mark.parametrize("name", TAILED)
def test_training_pairs_of_every_dataset_follow_the_exponent(name):
    pairs = dataset[name](**SMALL.get(name, {}), zipf=1.0)
    counts = pairs.frequency_rank[pairs.train].bincount()
    weights = [1 / k for k in range(1, len(counts) + 1)]
    shares = [len(pairs.train) * weight / sum(weights) for weight in weights]
    assert counts.tolist() == pytest.approx(shares, abs=1)
    assert len(counts) == (10 if name == "digits" else 8)
    if name == "digits":
        assert torch.equal(pairs.frequency_rank, pairs.label)


@pytest.mark.parametrize("name", MIXED)
def test_a_mix_of_classes_sets_their_shares_and_ranks(name):
    classes = 10 if name == "digits" else 8
    weights = [0, 3] + [1] * (classes - 2)
    pairs = dataset[name](**SMALL.get(name, {}), class_mix=weights)
    counts = pairs.label[pairs.train].bincount(minlength=classes).tolist()
    assert counts == pytest.approx([len(pairs.train) * weight / sum(weights) for weight in weights], abs=1)
    rank = {int(label): int(rank) for label, rank in zip(pairs.label, pairs.frequency_rank, strict=True)}
    assert rank == {0: classes - 1, 1: 0, **{k: k - 1 for k in range(2, classes)}}


# --- head and tail ---------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.integers(0, 200), st.integers(1, 9))
def test_recall_of_queries_is_that_of_a_textbook_loop(seed, ranks):
    generator = stream(seed, "similarity")
    similarity = torch.rand(12, 12, generator=generator)
    caption = torch.randint(6, (12,), generator=generator)
    rank = torch.randint(ranks, (12,), generator=generator)
    for half, queries in zip(("head", "tail"), halves_by_frequency(rank, ranks), strict=True):
        # Of an odd number of ranks, the middle one belongs to neither half.
        inside = (lambda r: r + 1 <= ranks / 2) if half == "head" else (lambda r: r >= ranks / 2)
        wanted = [i for i in range(12) if inside(int(rank[i]))]
        hits, same = [], []
        for i in wanted:
            to_text = max(range(12), key=lambda j, i=i: float(similarity[i, j]))
            to_image = max(range(12), key=lambda j, i=i: float(similarity[j, i]))
            hits += [caption[to_text] == caption[i], caption[to_image] == caption[i]]
            same += [float(caption[j] == caption[i]) for j in range(12)]
        found, chance = recall_of_queries(similarity, caption, queries)
        if not wanted:
            assert torch.isnan(found)
            continue
        assert found.item() == pytest.approx(sum(map(float, hits)) / len(hits))
        assert chance.item() == pytest.approx(sum(same) / len(same))


@pytest.mark.parametrize("name", ["latent", "digits"])
def test_head_and_tail_make_up_the_recall_of_all(name):
    trainer = trainer_of(study_with("zipf = 1.0", name=name))
    for _ in range(3):
        trainer.advance()
    values, held_out = trainer.read("retrieval").values, trainer.population.held_out
    sizes = [len(held_out.head), len(held_out.tail)]
    assert sum(sizes) == len(held_out.image)
    mean = (values["recall_at_1_head"] * sizes[0] + values["recall_at_1_tail"] * sizes[1]) / sum(sizes)
    torch.testing.assert_close(mean, values["recall_at_1"])


def test_only_studies_that_set_frequencies_measure_head_and_tail():
    halves = {"recall_at_1_head", "recall_at_1_tail", "recall_at_1_head_chance", "recall_at_1_tail_chance"}
    plain = study_with()
    assert not halves & plain.measures.keys()
    assert not halves & trainer_of(plain).read("retrieval").values.keys()
    for data in ("zipf = 1.0", "zipf = 0.0", "class_mix = [1, 2, 3, 4, 5, 6, 7, 8]"):
        study = study_with(data)
        assert halves <= study.measures.keys()
        assert halves <= trainer_of(study).read("retrieval").values.keys()
    assert offered({"zipf": None}) == ()


def test_a_run_without_a_tail_keeps_its_id():
    ids = [{one.id for one in runs_of(study_with(data))} for data in ("", "zipf = 0.0", "zipf = 1.0")]
    assert ids[0] == ids[1]
    assert not ids[0] & ids[2]


def test_an_axis_of_exponents_has_its_control_and_a_claim_along_it(tmp_path):
    claim = """[[claims]]
id = "tail"
primary = true
text = "siglip's recall in the tail falls more"
measure = "recall_at_1_tail"
contrast = "slope"
axis = "data.zipf"
compare = ["siglip", "clip"]
expect = "lower"
margin = 0.1
"""
    study = study_with(grid='"data.zipf" = [0.0, 1.5]', more=claim)
    results = load_results(run(study, device="cpu", out=tmp_path / "runs"))
    assert results.steps.dropna(subset=["recall_at_1_tail"])["run"].nunique() == 8
    assert analyze(results, checks=False).claims[0].id == "tail"


@pytest.mark.parametrize("option", ["zipf = 2.0", "class_mix = [8, 1, 1, 1, 1, 1, 1, 1]"])
def test_a_shift_to_a_tail_keeps_held_out_pairs_head_and_tail(option):
    study = study_with(f"[data.shift]\nstep = 2\n{option}")
    assert "recall_at_1_head" in study.measures
    trainer = trainer_of(study)
    before = trainer.population
    held_out, label = before.held_out, study.pairs().label
    first = label[study.pairs().train].bincount()
    trainer.move_to(2)
    after = trainer.population.held_out
    assert after is not held_out
    for field in ("image", "text", "head", "tail"):
        assert torch.equal(getattr(after, field), getattr(held_out, field))
    assert label[study.shifted_pairs().train].bincount()[0] > 1.5 * first[0]
    assert torch.equal(trainer.population.data.image, study.shifted_pairs().image[study.shifted_pairs().train])


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("zipf = -1.0", "data.zipf: got -1.0; allowed: 0.0 or more"),
        ('zipf = "steep"', "data.zipf: got 'steep'; allowed: "),
        ("class_mix = [1, 2]", "got class_mix = [1, 2]; allowed: a list of 8 weights, one a class"),
        (
            "class_mix = [0, 0, 0, 0, 0, 0, 0, 0]",
            "allowed: a list of 8 weights, one a class, each 0 or more and not all",
        ),
        ("class_mix = [-1, 1, 1, 1, 1, 1, 1, 1]", "allowed: a list of 8 weights"),
        ("class_mix = 3", "got class_mix = 3; allowed: a list of 8 weights"),
        (
            "zipf = 1.0\nclass_mix = [1, 1, 1, 1, 1, 1, 1, 1]",
            "got both zipf = 1 and class_mix; allowed: one of the two",
        ),
    ],
)
def test_frequencies_that_cannot_be_met_are_refused_in_one_sentence(data, sentence):
    with pytest.raises(InputError, match=re.escape(sentence)) as error:
        study_with(data)
    assert "\n" not in str(error.value)


def test_the_example_of_the_guide_is_an_axis_of_its_study():
    page = (Path(__file__).parent.parent / "docs" / "vary.md").read_text(encoding="utf-8")
    whole = re.search(r"```toml\n(.*?)```", page, flags=re.DOTALL).group(1)
    example = re.search(r'```toml title="long tail"\n(.*?)```', page, flags=re.DOTALL).group(1)
    text = whole.replace('[data]\nname = "digits"\n', example)
    study = parse_study(text, "t.toml", "t")
    assert study.data.options == {"zipf": 1.0}
    assert "recall_at_1_tail" in study.measures
