"""Datasets and corruptions: what captions say, what noise does, and that a seed means the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stability.corruptions import Values, corrupt, corruption
from stability.corruptions.pairs import derange
from stability.datasets import dataset
from stability.datasets.handwriting import NUMBERS, styles
from stability.registry import InputError
from stability.streams import stream


@pytest.fixture(scope="module")
def pairs():
    return dataset["digits"]()


def test_digits_are_all_there_and_the_split_is_fixed_and_disjoint(pairs):
    both = torch.cat([pairs.train, pairs.held_out])
    assert sorted(both.tolist()) == list(range(1797))
    assert len(pairs.held_out) == 359
    assert torch.equal(pairs.held_out, dataset["digits"]().held_out)


def test_a_caption_names_the_digit_and_equal_numbers_mean_equal_words(pairs):
    for index in range(0, 1797, 50):
        words, digit = pairs.words(index).split(), int(pairs.label[index])
        assert NUMBERS[digit] in words or str(digit) in words
    captions = [pairs.words(index) for index in range(1797)]
    by_number = dict(zip(pairs.caption.tolist(), captions, strict=True))
    assert [by_number[number] for number in pairs.caption.tolist()] == captions
    assert len(set(captions)) == len(by_number) == 189


def test_a_slanted_stroke_is_called_by_its_slant():
    straight = np.zeros((8, 8))
    straight[:, 4] = 1
    rightward = np.eye(8)[:, ::-1]
    leftward = np.eye(8)
    assert styles(np.stack([leftward, straight, rightward]))[1].tolist() == [0, 1, 2]


def test_prompts_of_a_class_name_only_that_class(pairs):
    assert pairs.prompts.shape == (10, 27, 6)
    of_seven = {pairs.vocabulary[token] for token in pairs.prompts[7].flatten().tolist()}
    assert of_seven & {*NUMBERS, *map(str, range(10))} == {"seven", "7"}


def struck_by(name: str, pairs, level: float, seed: int = 3):
    """Return which training images and which texts a corruption changes, and the corrupted pairs."""
    image, text, caption = pairs.image[pairs.train], pairs.text[pairs.train], pairs.caption[pairs.train]
    kept = image.clone(), text.clone()
    noisy_image, noisy_text = corrupt(
        name,
        image,
        text,
        images=Values.of(image),
        texts=Values.of(text, len(pairs.vocabulary)),
        caption=caption,
        level=level,
        generator=stream(seed, "c"),
    )
    assert torch.equal(image, kept[0])
    assert torch.equal(text, kept[1])
    return (noisy_image != image).flatten(1).any(-1), (noisy_text != text).any(-1), noisy_image, noisy_text


@pytest.mark.parametrize("name", sorted(corruption))
@pytest.mark.parametrize("level", [0.0, 0.2, 0.5, 1.0])
def test_the_corrupted_share_is_the_level_and_the_inputs_stay_as_they_were(pairs, name, level):
    images, texts, *_ = struck_by(name, pairs, level)
    expected = round(level * len(pairs.train))
    parts = corruption[name].traits.parts or (name,)
    if "image_noise" in parts or name == "near_duplicates":
        assert int(images.sum()) == expected
    if parts in (("image_noise",),):
        assert not texts.any()
    elif "mismatch" in parts and len(parts) > 1:
        # Captions exchanged, then some overwritten: as many at least, all of them at the most.
        assert expected <= int(texts.sum()) <= 2 * expected
    elif "image_noise" not in parts or "text_noise" in parts:
        assert int(texts.sum()) == expected
    if len(parts) == 1 and name != "near_duplicates":
        assert not (images & texts).any()


@pytest.mark.parametrize("name", sorted(corruption))
def test_one_seed_means_one_noise_and_another_seed_another(pairs, name):
    first, again, other = (struck_by(name, pairs, 0.3, seed)[2:] for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not (torch.equal(first[0], other[0]) and torch.equal(first[1], other[1]))


def test_image_noise_is_uniform_over_the_range_of_the_data(pairs):
    images, _, noisy, _ = struck_by("image_noise", pairs, 0.5)
    values = noisy[images].flatten()
    assert -1 <= values.min() < -0.99
    assert 0.99 < values.max() <= 1
    assert abs(values.mean().item()) < 0.01
    assert abs(values.var().item() - 1 / 3) < 0.01


def test_random_texts_are_words_with_blanks_only_behind_them(pairs):
    _, texts, _, noisy = struck_by("text_noise", pairs, 0.5)
    blank = noisy[texts] == 0
    assert not (blank[:, :-1] & ~blank[:, 1:]).any()
    assert not blank[:, 0].any()
    lengths = (~blank).sum(-1)
    assert {*lengths.tolist()} == {1, 2, 3, 4, 5, 6}


def test_a_dropped_caption_is_empty(pairs):
    _, texts, _, noisy = struck_by("caption_dropout", pairs, 0.3)
    assert (noisy[texts] == 0).all()


def test_a_near_duplicate_has_another_pair_s_caption_and_nearly_its_image(pairs):
    images, texts, noisy_image, noisy_text = struck_by("near_duplicates", pairs, 0.1)
    source, said = pairs.image[pairs.train], pairs.text[pairs.train]
    for place in images.nonzero().flatten()[:20].tolist():
        same = (said == noisy_text[place]).all(-1)
        nearest = (source[same] - noisy_image[place]).abs().flatten(1).amax(-1).min()
        assert 0 < nearest <= 0.1 + 1e-6
    assert torch.equal(images, texts)


def test_mismatch_moves_captions_and_invents_none(pairs):
    text, caption = pairs.text[pairs.train], pairs.caption[pairs.train]
    _, noisy = corruption["mismatch"](text, text, caption=caption, level=0.4, generator=stream(0, "c"))
    assert sorted(map(tuple, noisy.tolist())) == sorted(map(tuple, text.tolist()))


@settings(max_examples=50, deadline=None)
@given(captions=st.lists(st.integers(0, 3), min_size=2, max_size=12), seed=st.integers(0, 10**6), level=st.floats(0, 1))
def test_mismatch_works_in_a_small_batch_with_repeated_captions(captions, seed, level):
    caption = torch.tensor(captions)
    if len(set(captions)) == 1:
        return
    text = caption[:, None]
    _, noisy = corruption["mismatch"](text, text, caption=caption, level=level, generator=stream(seed, "c"))
    assert int((noisy != text).sum()) == round(level * len(captions))


def test_a_higher_level_corrupts_the_same_pairs_and_more(pairs):
    text, caption = pairs.text[pairs.train], pairs.caption[pairs.train]

    def moved(level: float) -> torch.Tensor:
        _, noisy = corruption["mismatch"](text, text, caption=caption, level=level, generator=stream(1, "c"))
        return (noisy != text).any(-1)

    assert not (moved(0.2) & ~moved(0.4)).any()


@settings(max_examples=50, deadline=None)
@given(captions=st.lists(st.integers(0, 5), min_size=2, max_size=30), seed=st.integers(0, 10**6))
def test_a_derangement_is_a_permutation_without_equal_captions_or_says_that_there_is_none(captions, seed):
    caption = torch.tensor(captions)
    if torch.bincount(caption).max() * 2 > len(captions):
        with pytest.raises(InputError, match="one caption fills over half"):
            derange(caption, stream(seed, "d"))
        return
    order = derange(caption, stream(seed, "d"))
    assert sorted(order.tolist()) == list(range(len(captions)))
    assert not (caption[order] == caption).any()


def test_streams_of_different_uses_and_seeds_differ_and_do_not_touch_the_global_one():
    before = torch.random.get_rng_state()
    draws = {tuple(torch.rand(4, generator=stream(s, u)).tolist()) for s in (0, 1) for u in ("weights", "batches")}
    assert len(draws) == 4
    assert torch.equal(before, torch.random.get_rng_state())
