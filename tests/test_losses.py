"""Losses: closed forms first, then a slow twin, then what every registered loss must obey."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional as F
from torch.testing import assert_close

from stability.losses import Scalar, clip, loss, scalars_of, siglip
from stability.losses.sigmoid import siglip_chance
from stability.registry import InputError

NAMES = sorted(loss)


def towers(batch_size: int, dim: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, batch_size, dim, generator=generator, dtype=torch.float64)
    return F.normalize(image, dim=-1), F.normalize(text, dim=-1)


def scalars(name: str, batch_size: int) -> dict[str, Tensor]:
    return {k: torch.tensor(s.at(batch_size), dtype=torch.float64) for k, s in scalars_of(loss[name]).items()}


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
@settings(max_examples=15, deadline=None)
@given(batch_size=st.integers(2, 9), seed=st.integers(0, 1000))
def test_every_loss_ignores_the_order_of_the_batch(name, batch_size, seed):
    image, text = towers(batch_size, seed=seed)
    order = torch.randperm(batch_size, generator=torch.Generator().manual_seed(seed))
    given_scalars = scalars(name, batch_size)
    assert_close(loss[name](image, text, **given_scalars), loss[name](image[order], text[order], **given_scalars))


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_is_a_finite_scalar_that_falls_when_matches_align(name):
    image, text = towers(8)
    given_scalars = scalars(name, 8)
    apart, together = loss[name](image, text, **given_scalars), loss[name](image, image, **given_scalars)
    assert apart.shape == ()
    assert torch.isfinite(apart)
    assert together < apart


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_has_the_gradient_of_finite_differences(name):
    image, text = towers(4, dim=3)
    inputs = [image.requires_grad_(), text.requires_grad_()]
    names, values = zip(*scalars(name, 4).items(), strict=True)
    assert torch.autograd.gradcheck(
        lambda image, text, *rest: loss[name](image, text, **dict(zip(names, rest, strict=True))),
        (*inputs, *(value.requires_grad_() for value in values)),
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_under_vmap_equals_a_loop_and_leaves_its_inputs_alone(name):
    pairs = [towers(5, seed=seed) for seed in range(3)]
    image, text = (torch.stack(side) for side in zip(*pairs, strict=True))
    kept = image.clone(), text.clone()
    given_scalars = scalars(name, 5)
    together = vmap(lambda i, t: loss[name](i, t, **given_scalars))(image, text)
    assert_close(together, torch.stack([loss[name](i, t, **given_scalars) for i, t in pairs]))
    assert_close((image, text), kept, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_says_what_it_is_and_its_chance_level(name):
    assert loss[name].summary.endswith(".")
    assert "arXiv" in (loss[name].function.__doc__ or "")
    assert loss[name].traits["chance"](32) > 0


@pytest.mark.parametrize("initial", ["-log b", "x", float("nan"), None])
def test_a_scalar_starts_at_a_number_or_at_minus_log_b(initial):
    with pytest.raises(InputError, match="a scalar starts at a finite number or at '-log B'"):
        Scalar(initial)
