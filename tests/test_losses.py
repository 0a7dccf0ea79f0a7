"""Losses: closed forms first, then a slow twin, then what every registered loss must obey."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad
from torch.nn import functional as F
from torch.testing import assert_close

from stability.check import call, inputs_of
from stability.losses import RESERVED, Scalar, clip, loss, options_of, reserved_of, scalars_of, siglip
from stability.losses.sigmoid import siglip_chance
from stability.registry import InputError

NAMES = sorted(loss)


def towers(batch_size: int, dim: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, batch_size, dim, generator=generator, dtype=torch.float64)
    return F.normalize(image, dim=-1), F.normalize(text, dim=-1)


@pytest.mark.parametrize("batch_size", [2, 7, 64])
@pytest.mark.parametrize("log_scale", [-3.0, 0.0, 4.0])
def test_clip_of_equal_similarities_is_log_b(batch_size, log_scale):
    same = torch.zeros(batch_size, 3, dtype=torch.float64)
    assert_close(clip(same, same, log_scale=torch.tensor(log_scale).double()).item(), math.log(batch_size))


@pytest.mark.parametrize("batch_size", [2, 32, 128])
def test_siglip_of_zero_similarities_and_zero_bias_is_b_log_2_with_bias_gradient_b_half_minus_1(batch_size):
    same = torch.zeros(batch_size, 3, dtype=torch.float64)
    zero = torch.zeros((), dtype=torch.float64)
    assert_close(siglip(same, same, log_scale=zero, bias=zero).item(), batch_size * math.log(2))
    slope = grad(lambda b: siglip(same, same, log_scale=zero, bias=b))(zero)
    assert_close(slope.item(), batch_size / 2 - 1)


@pytest.mark.parametrize("batch_size", [2, 16, 200])
def test_the_chance_level_of_siglip_is_the_least_that_one_constant_logit_reaches(batch_size):
    same = torch.zeros(batch_size, 1, dtype=torch.float64)
    zero = torch.zeros((), dtype=torch.float64)

    def at(bias: float) -> float:
        return siglip(same, same, log_scale=zero, bias=torch.tensor(bias, dtype=torch.float64)).item()

    best = -math.log(batch_size - 1) if batch_size > 2 else 0.0
    assert_close(at(best), siglip_chance(batch_size))
    assert min(at(best - 0.1), at(best + 0.1)) > siglip_chance(batch_size)


def test_clip_equals_two_cross_entropies():
    image, text = towers(9)
    logits = 7.0 * image @ text.T
    labels = torch.arange(9)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    assert_close(clip(image, text, log_scale=torch.tensor(7.0).double().log()), expected)


def test_siglip_equals_the_double_sum_of_its_algorithm_1():
    image, text = towers(6)
    t, b = 8.0, -3.0
    total = 0.0
    for i in range(6):
        for j in range(6):
            z = 1 if i == j else -1
            total -= math.log(1 / (1 + math.exp(-z * (t * float(image[i] @ text[j]) + b))))
    value = siglip(image, text, log_scale=torch.tensor(t).double().log(), bias=torch.tensor(b).double())
    assert_close(value.item(), total / 6)


def test_siglip_stays_exact_where_the_logarithm_of_a_sigmoid_underflows():
    image = torch.eye(2, dtype=torch.float64)
    value = siglip(image, image, log_scale=torch.tensor(2000.0).double().log(), bias=torch.tensor(-1000.0).double())
    assert value.item() == 0.0
    wrong = siglip(
        image, image.flip(0), log_scale=torch.tensor(2000.0).double().log(), bias=torch.tensor(-1000.0).double()
    )
    assert_close(wrong.item(), 2000.0)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=5, deadline=None)
@given(size=st.integers(2, 9), seed=st.integers(0, 1000))
def test_every_loss_ignores_the_order_of_the_batch(name, size, seed):
    inputs = inputs_of(loss[name], size, seed=seed)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    assert_close(call(loss[name], inputs)[0], call(loss[name], inputs.reordered(order))[0])


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_falls_when_matches_align(name):
    inputs = inputs_of(loss[name], 8)
    aligned = inputs.changed(text=inputs.varying["image"])
    assert call(loss[name], aligned)[0] < call(loss[name], inputs)[0]


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_says_what_it_is_and_where_it_is_from(name):
    assert loss[name].summary.endswith(".")
    text = loss[name].function.__doc__ or ""
    assert ("arXiv:" in text) != ("This project's own" in text)
    assert "L = " in text or "The value and all derivatives of" in text
    assert set(loss[name].options) == {*scalars_of(loss[name]), *reserved_of(loss[name]), *options_of(loss[name])}


def test_each_reserved_name_is_asked_for_by_some_loss():
    assert {name for variant in loss.values() for name in reserved_of(variant)} == set(RESERVED)


@pytest.mark.parametrize(
    ("name", "options", "known"),
    [
        ("siglip", {"reduction": "mean"}, "mean_pairs, per_image"),
        ("siglip_masked", {"keep": "hardest"}, "easy, hard, random"),
        ("siglip_masked", {"ratio": 0.0}, "a positive number"),
        ("clip_masked", {"keep": "hardest"}, "easy, hard, random"),
        ("clip_masked", {"ratio": -1.0}, "a positive number"),
        ("clip", {"max_scale": -1.0}, "a positive number"),
        ("clip", {"logit_cap": 0.0}, "a positive number"),
        ("siglip", {"logit_cap": -1.0}, "a positive number"),
        ("clip_chunked", {"chunk": 0}, "at least 1 row"),
    ],
)
def test_an_option_that_is_no_option_is_refused_in_one_sentence(name, options, known):
    variant = replace(loss[name], function=partial(loss[name].function, **options))
    with pytest.raises(InputError, match=known):
        call(variant, inputs_of(variant))


@pytest.mark.parametrize("initial", ["-log b", "x", float("nan"), None])
def test_a_scalar_starts_at_a_number_or_at_minus_log_b(initial):
    with pytest.raises(InputError, match="a scalar starts at a finite number or at '-log B'"):
        Scalar(initial)


def test_a_study_gives_a_scalar_as_a_number_a_text_or_a_table():
    default = Scalar(-10.0, lr_multiplier=2.0)
    assert Scalar.read(-5, default) == Scalar(-5, lr_multiplier=2.0)
    assert Scalar.read("-log B", default).at(8) == -math.log(8)
    assert Scalar.read({"trained": False, "lr_multiplier": 3}, default) == Scalar(-10.0, trained=False, lr_multiplier=3)
    assert Scalar.read({}, default) == default


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"inital": 1.0}, "no 'inital'; did you mean 'initial'"),
        ({"trained": 1}, "'trained' is true or false"),
        ({"lr_multiplier": 0.0}, "'lr_multiplier' is a positive number"),
        ({"lr_multiplier": "fast"}, "'lr_multiplier' is a positive number"),
        ({"lr": 2.0}, "a scalar has no 'lr'; did you mean 'lr_multiplier'"),
        (True, "a finite number or at '-log B'"),
        ([1.0], "a finite number or at '-log B'"),
    ],
)
def test_a_scalar_that_cannot_be_read_is_refused_in_one_sentence(value, sentence):
    with pytest.raises(InputError, match=sentence):
        Scalar.read(value, Scalar(0.0))
