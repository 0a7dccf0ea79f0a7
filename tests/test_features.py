"""Features of locked towers: the numbers of a step without them, whoever trains beside, in memory or from a file."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.testing import assert_close

from stability.corruptions import corruption
from stability.datasets import rows
from stability.encoders import Modality, encoder
from stability.grid import groups_of, runs_of
from stability.registry import InputError
from stability.study import parse_study
from stability.train import Trainer, features
from stability.train.features import Features, features_of
from stability.train.frozen import MOST_FEATURES, split_frozen_prefix
from stability.train.memory import bytes_per_replica

CPU = torch.device("cpu")
IMAGE = 'image = { name = "mlp", width = 8, depth = 1 }'
TEXT = 'text = { name = "token_transformer", width = 4, heads = 1 }'


@pytest.fixture
def catalogue(monkeypatch):
    """Encoders registered in a test are forgotten after it."""
    monkeypatch.setattr(encoder, "_variants", dict(encoder._variants))


@pytest.fixture
def study(tiny_text):
    def made(image=IMAGE, text=TEXT, data='name = "digits"', level="noise = [0.0, 0.4]"):
        whole = tiny_text.replace(IMAGE, image).replace(TEXT, text).replace('name = "digits"', data)
        return parse_study(whole.replace("noise = [0.0, 0.4]", level, 1), "t.toml", "t", None)

    return made


def trainer_of(study, kept=True, runs=slice(None)):
    chosen = [run for run in runs_of(study) if run.arm == "clip" and run.batch_size == 8][runs]
    (group,) = groups_of(chosen, lambda run: 64)
    trainer = Trainer(study, group, study.pairs(), CPU)
    if not kept:
        trainer.population = replace(trainer.population, features={})
    return trainer


def assert_same_training(study, steps=4):
    """A population with features trains as one without, up to the rounding of a float32.

    Loss and gradient norm say so; of a parameter whose gradient is all rounding, as the bias of the keys of an
    attention, Adam takes steps of full size.
    """
    with_features, without = trainer_of(study, runs=slice(1, 4)), trainer_of(study, kept=False, runs=slice(1, 4))
    assert with_features.population.features
    for _ in range(steps):
        ours, theirs = with_features.step(), without.step()
        assert ours.keys() == theirs.keys()
        for name in ("loss", "gradient_norm"):
            assert_close(ours[name], theirs[name], rtol=2e-5, atol=1e-6, msg=name)
        assert torch.equal(ours["false_negative_fraction"], theirs["false_negative_fraction"])


# --- where a tower is cut --------------------------------------------------------------------------------------------


def frozen(module):
    return module.requires_grad_(False)


def test_a_cut_tower_computes_what_the_whole_does():
    tower = nn.Sequential(nn.Flatten(), frozen(nn.Linear(6, 5)), nn.GELU(), nn.Linear(5, 3), frozen(nn.Linear(3, 2)))
    x = torch.randn(4, 2, 3)
    cut = split_frozen_prefix(tower, x)
    assert (cut.names, cut.shape, cut.bytes) == (("1.weight", "1.bias"), (5,), 20)
    params = {name: value.detach() + 1 for name, value in tower.named_parameters()}
    after = {name: value for name, value in params.items() if name not in cut.names}
    found = functional_call(cut.rest, after, cut.features(params, x))
    assert torch.equal(found, functional_call(tower, params, x))
    assert not cut.features(params, x).requires_grad


def test_a_locked_tower_is_cut_at_its_end_whatever_its_layers():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.map = nn.Linear(3, 2)

        def forward(self, x):
            return self.map(x) * 2

    cut = split_frozen_prefix(frozen(Twice()), torch.randn(2, 3))
    assert cut.shape == (2,)
    x = torch.randn(4, 3)
    assert torch.equal(cut.rest(x), x)


shared = nn.Linear(3, 3)
hooked = frozen(nn.Linear(3, 3))
hooked.register_forward_hook(lambda *_: None)
scaled = frozen(nn.Linear(3, 3))
scaled.renormalized = ("weight",)


@pytest.mark.parametrize(
    "tower",
    [
        nn.Sequential(nn.Linear(3, 3), frozen(nn.Linear(3, 3))),
        nn.Sequential(nn.Flatten(), nn.GELU(), nn.Linear(3, 3)),
        nn.Sequential(frozen(shared), nn.Linear(3, 3), shared),
        nn.Sequential(hooked, nn.Linear(3, 2)),
        nn.Sequential(scaled, nn.Linear(3, 2)),
        frozen(nn.Linear(3, MOST_FEATURES + 1)),
        frozen(nn.Linear(3, 3)).to(torch.bfloat16),
        nn.Bilinear(3, 3, 2),
    ],
    ids=["locked behind", "nothing to lock", "shared", "hooked", "renormalized", "wide", "half", "trained"],
)
def test_where_nothing_is_gained_or_sure_a_tower_is_not_cut(tower):
    dtype = next(tower.parameters()).dtype
    assert split_frozen_prefix(tower, torch.randn(2, 3, dtype=dtype)) is None


def test_a_tower_that_maps_first_to_many_numbers_is_cut_further_up():
    tower = frozen(nn.Sequential(nn.Linear(3, MOST_FEATURES + 1), nn.Linear(MOST_FEATURES + 1, 4)))
    tower.append(nn.Linear(4, 2))
    assert split_frozen_prefix(tower, torch.randn(2, 3)).shape == (4,)
    assert split_frozen_prefix(tower[:1].append(nn.Linear(MOST_FEATURES + 1, 2)), torch.randn(2, 3)) is None


# --- tables ----------------------------------------------------------------------------------------------------------


def linear_cut(size=3, out=2):
    return split_frozen_prefix(frozen(nn.Linear(size, out, bias=False)), torch.zeros(2, size))


def test_features_of_a_linear_tower_are_a_product_and_equal_weights_share_them():
    weight = torch.randn(2, 2, 3)
    params = {"weight": weight[[0, 1, 0]]}
    samples = torch.randn(600, 3)
    kept = features_of(linear_cut(), params, samples, shared=True)
    assert kept.table.shape == (2, 600, 2)
    assert kept.owner.tolist() == [0, 1, 0]
    for place in range(2):
        assert_close(kept.table[place], samples @ weight[place].T)
    index = torch.randint(600, (3, 4, 5))
    expected = torch.stack([samples[index[place]] @ params["weight"][place].T for place in range(3)])
    assert_close(kept.rows(index), expected)


def test_replicas_with_samples_of_their_own_have_features_of_their_own():
    params = {"weight": torch.randn(2, 3).expand(3, 2, 3)}
    samples = torch.randn(2, 5, 3)[[0, 1, 0]]
    kept = features_of(linear_cut(), params, samples, shared=False)
    assert kept.owner.tolist() == [0, 1, 0]
    assert_close(kept.table, samples[:2] @ params["weight"][0].T)


def test_features_do_not_depend_on_who_trains_beside(study):
    made = study(image='image = { name = "mlp", frozen = true }')
    several, one = trainer_of(made).population, trainer_of(made, runs=slice(2, 3)).population
    ours = several.features["image"]
    assert torch.equal(ours.table[ours.owner[2]], one.features["image"].table[0])


def test_a_large_table_lies_in_the_cache_to_the_same_bits(tmp_path, monkeypatch):
    params, samples = {"weight": torch.randn(2, 2, 3)}, torch.randn(600, 3)
    in_memory = features_of(linear_cut(), params, samples, shared=True)
    monkeypatch.setattr(features, "IN_MEMORY", 0)
    for known in ("", "", "fingerprint image"):
        mapped = features_of(linear_cut(), params, samples, shared=True, cache=str(tmp_path), samples_digest=known)
        assert torch.equal(mapped.table, in_memory.table)
        assert torch.equal(mapped.owner, in_memory.owner)
    entries = sorted(tmp_path.iterdir())
    assert len(entries) == 2  # the samples by their bits, or by the fingerprint that is known
    damaged = entries[0] / "features.npy"
    damaged.write_bytes(damaged.read_bytes()[:-4] + b"\0\0\0\0")
    for known in ("", "fingerprint image"):
        mapped = features_of(linear_cut(), params, samples, shared=True, cache=str(tmp_path), samples_digest=known)
        assert torch.equal(mapped.table, in_memory.table)


def test_a_tower_of_the_same_weights_that_computes_something_else_does_not_find_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "IN_MEMORY", 0)
    samples = torch.randn(5, 3)
    towers = [frozen(nn.Sequential(nn.Linear(3, 2), layer)) for layer in (nn.GELU(), nn.ReLU())]
    params = {name: torch.stack([value] * 2) for name, value in towers[0].named_parameters()}
    for tower, function in zip(towers, (nn.functional.gelu, torch.relu), strict=True):
        kept = features_of(split_frozen_prefix(tower, samples), params, samples, shared=True, cache=str(tmp_path))
        plain = nn.functional.linear(samples, params["0.weight"][0], params["0.bias"][0])
        assert_close(kept.table[0], function(plain))


def test_a_cache_that_cannot_be_written_is_told_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "IN_MEMORY", 0)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"cache: .*file.* cannot be written"):
        features_of(
            linear_cut(), {"weight": torch.randn(2, 2, 3)}, torch.randn(5, 3), shared=True, cache=str(tmp_path / "file")
        )


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({*encoder} - {"free_vectors"}))
def test_every_locked_tower_trains_as_without_features(study, name):
    side = "text" if encoder[name].traits.modality == "text" else "image"
    options = ", patch = 4" if name == "patch_transformer" else ""
    made = study(**{side: f'{side} = {{ name = "{name}"{options}, frozen = true }}'})
    assert {*trainer_of(made).population.features} == {side}
    assert_same_training(made)


@pytest.mark.parametrize("name", sorted(corruption))
def test_under_every_corruption_locked_towers_train_as_without_features(study, name):
    both = {
        side: f"{side} = {{ name = {tower}, frozen = true }}"
        for side, tower in {"image": '"mlp"', "text": '"token_transformer"'}.items()
    }
    assert_same_training(study(**both, level=f'noise = [0.0, 0.4]\ncorruption = ["{name}"]'), steps=2)


def test_with_parts_of_the_pairs_towers_read_features_of_their_own_pairs(study):
    made = study(image='image = { name = "mlp", frozen = true }', level="noise = [0.0, 0.4]\ntrain_pairs = [64]")
    population = trainer_of(made).population
    assert population.features["image"].table.shape[1] == 64
    assert_same_training(made)


def test_pairs_corrupted_anew_at_every_step_have_no_features(study):
    fresh = study(image='image = { name = "mlp", frozen = true }', data='name = "digits"\ncorruption = "fresh"')
    assert trainer_of(fresh).population.features == {}
    assert trainer_of(fresh).step()["loss"].isfinite().all()


def test_free_vectors_that_are_scaled_after_each_step_have_no_features():
    tower = encoder["free_vectors"](Modality((1,), 7), 4, frozen=True)
    assert split_frozen_prefix(tower, torch.zeros(2, 1, dtype=torch.long)) is None


def test_a_tower_locked_up_to_a_layer_reads_features_from_there(catalogue, study):
    @encoder(modality="image")
    def adapted(modality, embed_dim):
        """Build a locked map with a trained one on top."""
        below = frozen(nn.Linear(64, 12))
        return nn.Sequential(nn.Flatten(), below, nn.GELU(), nn.LayerNorm(12), nn.Linear(12, embed_dim))

    made = study(image='image = "adapted"')
    kept = trainer_of(made).population.features["image"]
    assert isinstance(kept, Features)
    assert kept.table.shape[2:] == (12,)
    assert_same_training(made)


def test_weights_that_a_seed_does_not_change_are_kept_once(catalogue, study):
    @encoder(modality="image")
    def pretrained(modality, embed_dim):
        """Build a locked map whose weights come from elsewhere, with a trained one on top."""
        below = frozen(nn.Linear(64, 12))
        nn.init.eye_(below.weight)
        nn.init.zeros_(below.bias)
        return nn.Sequential(nn.Flatten(), below, nn.Linear(12, embed_dim))

    population = trainer_of(study(image='image = "pretrained"')).population
    kept = population.features["image"]
    pairs = population.study.pairs()
    expected = rows(pairs.image, pairs.train).flatten(1)[:, :12]
    assert kept.table.shape[0] == 1
    assert torch.equal(kept.table[0], expected)


# --- memory ----------------------------------------------------------------------------------------------------------


def test_the_plan_counts_what_features_take_in_memory(study, monkeypatch):
    frozen = study(image='image = { name = "mlp", frozen = true }')
    pairs = frozen.pairs()
    with_features = bytes_per_replica(frozen, "clip", 8, pairs)
    monkeypatch.setattr(features, "IN_MEMORY", 0)
    assert with_features - bytes_per_replica(frozen, "clip", 8, pairs) == len(pairs.train) * 4 * 4
