"""Datasets: what every one promises, and what is known of each in closed form."""

from __future__ import annotations

import pytest
import torch

from stability.datasets import Pairs, dataset, declared_offers
from stability.datasets.gaussian import canonical_correlation
from stability.datasets.scenes import COLORS
from stability.study import modalities

MADE_HERE = sorted(name for name, variant in dataset.items() if not variant.traits.on_disk)
SMALL = {"latent": {"pairs": 400}, "shapes": {"pairs": 300}, "sphere": {"pairs": 30}}


def made(name: str) -> Pairs:
    return dataset[name](**SMALL.get(name, {}))


@pytest.mark.parametrize("name", MADE_HERE)
def test_every_dataset_is_the_same_each_time_and_says_what_it_offers(name):
    first, again = made(name), made(name)
    for field in ("image", "text", "caption", "label", "train", "held_out", "prompts"):
        assert torch.equal(getattr(first, field), getattr(again, field)), field
    assert {*first.offers} == {*declared_offers(name, dict.fromkeys(dataset[name].options, 0))}
    assert torch.isfinite(first.image.double()).all()
    assert dataset[name].summary.endswith(".")


@pytest.mark.parametrize("name", sorted(set(MADE_HERE) - {"sphere"}))
def test_training_never_sees_a_held_out_pair(name):
    pairs = made(name)
    assert not {*pairs.train.tolist()} & {*pairs.held_out.tolist()}
    assert len(pairs.train) + len(pairs.held_out) == len(pairs.image)


@pytest.mark.parametrize("name", MADE_HERE)
def test_equal_texts_have_equal_numbers_and_towers_can_read_both_sides(name):
    pairs = made(name)
    numbers: dict[tuple[float, ...], int] = {}
    for text, number in zip(pairs.text.tolist(), pairs.caption.tolist(), strict=True):
        assert numbers.setdefault(tuple(text), number) == number
    image, text = modalities(pairs).values()
    assert image.shape == pairs.image.shape[1:]
    assert text.is_tokens == (not pairs.text.is_floating_point())


def test_the_two_views_of_a_latent_correlate_as_the_closed_form_says():
    options = {"latent_dim": 3, "view_dim": 12, "snr": 2.0}
    pairs = dataset["latent"](pairs=20_000, **options)
    x, y = (side.double() - side.double().mean(0) for side in (pairs.image, pairs.text))
    white = [torch.linalg.qr(side)[0] for side in (x, y)]
    found = torch.linalg.svdvals(white[0].T @ white[1])
    expected = canonical_correlation(**options)
    assert found[:3].tolist() == pytest.approx([expected] * 3, abs=0.02)
    assert found[3:].max() < 0.05
    assert pairs.image.square().mean().item() == pytest.approx(1.0, abs=0.02)


def test_scenes_hold_out_compositions_of_colour_and_shape_that_training_never_shows():
    pairs = made("shapes")
    assert (pairs.label[pairs.train] == -1).all()
    assert {*pairs.label[pairs.held_out].tolist()} <= set(range(len(COLORS)))
    assert pairs.prompts.shape[:2] == (len(COLORS), 16)


def test_a_hard_negative_differs_by_one_word_and_says_something_else():
    pairs = made("shapes")
    assert pairs.hard_negatives is not None
    true = {tuple(text): number for text, number in zip(pairs.text.tolist(), pairs.caption.tolist(), strict=True)}
    for place, negatives in zip(pairs.held_out.tolist(), pairs.hard_negatives, strict=True):
        assert negatives.shape[0] == 4
        for negative in negatives:
            assert int((negative != pairs.text[place]).sum()) == 1
            assert true.get(tuple(negative.tolist())) != int(pairs.caption[place])


def test_a_rendered_scene_shows_its_colours_on_the_background():
    pairs = made("shapes")
    assert pairs.image.shape[1:] == (3, 16, 16)
    assert -1 <= pairs.image.min() < pairs.image.max() <= 1
    assert (pairs.image.flatten(1).std(-1) > 0.05).all()


def test_free_pairs_are_their_own_ids():
    pairs = made("sphere")
    assert torch.equal(pairs.image, torch.arange(30)[:, None])
    assert torch.equal(pairs.train, pairs.held_out)
    assert modalities(pairs)["image"].vocabulary == 30
