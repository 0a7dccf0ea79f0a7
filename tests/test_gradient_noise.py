"""Gradient noise against exact enumeration, closed forms and a naive twin."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from stability.losses import siglip
from stability.probes.matched import fitted_bias, fitted_scalar, matched_gradient_noise
from stability.probes.noise import fraction_interval, gradient_noise, gradient_noise_in, pooled_fraction
from stability.registry import InputError

Params = dict[str, Tensor]


def params_of(seed: int = 0) -> Params:
    g = torch.Generator().manual_seed(seed)
    return {
        "image.weight": torch.randn(3, 5, generator=g, dtype=torch.float64),
        "text.weight": torch.randn(3, 5, generator=g, dtype=torch.float64),
        "loss.log_scale": torch.tensor(0.7, dtype=torch.float64),
        "loss.bias": torch.tensor(-1.0, dtype=torch.float64),
    }


def batches_of(count: int, seed: int = 1) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    image = torch.randn(count, 6, 5, generator=g, dtype=torch.float64)
    return {"image": image, "text": image + torch.randn(image.shape, generator=g, dtype=torch.float64)}


def contrastive(params: Params, batch: dict[str, Tensor]) -> Tensor:
    image, text = (F.normalize(batch[k] @ params[f"{k}.weight"].T, dim=-1) for k in ("image", "text"))
    logits = params["loss.log_scale"].exp() * image @ text.T + params["loss.bias"]
    sign = 2 * torch.eye(len(logits), dtype=logits.dtype) - 1
    return F.softplus(-sign * logits).sum() / len(logits)


def rows(params: Params, batches: dict[str, Tensor], names: list[str] | None = None) -> Tensor:
    """All K gradients as a (K, P) matrix, one after the other."""
    names = names or list(params)
    gradients = []
    for k in range(len(batches["image"])):
        leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
        loss = contrastive(leaves, {name: value[k] for name, value in batches.items()})
        gradients.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, [leaves[n] for n in names])]))
    return torch.stack(gradients)


def textbook(g: Tensor) -> tuple[Tensor, Tensor]:
    """The formulas as they are written: (tr Sigma, |G|^2) from mean |g_k|^2 and |mean g|^2."""
    k, mean_sq, sq_mean = len(g), g.square().sum(1).mean(), g.mean(0).square().sum()
    return (mean_sq - sq_mean) / (1 - 1 / k), (k * sq_mean - mean_sq) / (k - 1)


BLOCKS = {"towers": lambda name: not name.startswith("loss."), "scalars": ["loss.log_scale", "loss.bias"]}


@pytest.mark.parametrize("count", [2, 3, 9])
def test_it_equals_the_textbook_formulas(count):
    params, batches = params_of(), batches_of(count)
    noise = gradient_noise(contrastive, params, batches, blocks=BLOCKS)
    trace, square = textbook(rows(params, batches))
    assert_close(noise.trace_cov, trace)
    assert_close(noise.mean_sq_norm, square)
    assert_close(noise.second_moment, rows(params, batches).square().sum(1).mean())
    assert_close(noise.fraction, trace / (trace + square))
    for block, names in {"towers": list(params)[:2], "scalars": list(params)[2:]}.items():
        trace, square = textbook(rows(params, batches, names))
        assert_close(noise.by_block[block].trace_cov, trace)
        assert_close(noise.by_block[block].mean_sq_norm, square)
    assert_close(sum(part.trace_cov for part in noise.by_block.values()), noise.trace_cov)


def test_it_is_unbiased_by_enumerating_every_draw():
    """Over all 4^3 equally likely draws of K = 3 from 4 batches, the mean estimate is the exact moment."""
    params, pool = params_of(), batches_of(4)
    g = rows(params, pool)
    exact_trace = g.var(0, unbiased=False).sum()
    exact_square = g.mean(0).square().sum()
    draws = [
        gradient_noise(contrastive, params, {name: value[list(draw)] for name, value in pool.items()})
        for draw in itertools.product(range(4), repeat=3)
    ]
    assert_close(torch.stack([d.trace_cov for d in draws]).mean(), exact_trace)
    assert_close(torch.stack([d.mean_sq_norm for d in draws]).mean(), exact_square)
    assert_close(torch.stack([d.second_moment for d in draws]).mean(), exact_trace + exact_square)


def test_under_vmap_it_equals_a_loop_over_replicas():
    members, batches = [params_of(seed) for seed in range(3)], [batches_of(4, seed) for seed in range(3)]
    stacked = [{name: torch.stack([one[name] for one in each]) for name in each[0]} for each in (members, batches)]
    together = torch.vmap(lambda p, b: gradient_noise(contrastive, p, b, blocks=BLOCKS))(*stacked)
    assert together.fraction.shape == (3,)
    for r in range(3):
        alone = gradient_noise(contrastive, members[r], batches[r], blocks=BLOCKS)
        assert_close(together.trace_cov[r], alone.trace_cov)
        assert_close(together.mean_sq_norm[r], alone.mean_sq_norm)
        for block in BLOCKS:
            assert_close(together.by_block[block].fraction[r], alone.by_block[block].fraction)


def test_the_fraction_ignores_the_scale_of_the_loss():
    params, batches = params_of(), batches_of(5)
    noise = gradient_noise(contrastive, params, batches)
    scaled = gradient_noise(lambda p, b: contrastive(p, b) / 64, params, batches)
    assert_close(scaled.fraction, noise.fraction, rtol=1e-12, atol=0)
    assert_close(scaled.trace_cov * 64**2, noise.trace_cov)


def test_the_preconditioner_weighs_the_norms():
    params, batches = params_of(), batches_of(5)
    p = {name: value.abs() + 0.2 for name, value in params.items()}
    noise = gradient_noise(contrastive, params, batches, preconditioner=p)
    weight = torch.cat([value.reshape(-1) for value in p.values()]).rsqrt()
    trace, square = textbook(rows(params, batches) * weight)
    assert_close(noise.trace_cov, trace)
    assert_close(noise.mean_sq_norm, square)


@pytest.mark.parametrize("count", [2, 5])
def test_the_cosine_is_the_mean_over_all_pairs_of_batches(count):
    params, batches = params_of(), batches_of(count)
    noise = gradient_noise(contrastive, params, batches, blocks=BLOCKS)
    for found, names in ((noise, None), (noise.by_block["towers"], list(params)[:2])):
        g = rows(params, batches, names)
        pairs = [F.cosine_similarity(g[j], g[k], dim=0) for j in range(count) for k in range(count) if j != k]
        assert_close(found.mean_cosine, torch.stack(pairs).mean())


def test_the_cosine_is_unbiased_by_enumerating_every_draw():
    """Over all draws of K = 3 from 4 batches, the mean estimate is |E u|^2 of the unit gradients u."""
    params, pool = params_of(), batches_of(4)
    unit = F.normalize(rows(params, pool), dim=1)
    draws = [
        gradient_noise(contrastive, params, {name: value[list(draw)] for name, value in pool.items()}).mean_cosine
        for draw in itertools.product(range(4), repeat=3)
    ]
    assert_close(torch.stack(draws).mean(), unit.mean(0).square().sum())


def test_several_norms_from_one_pass_are_those_taken_one_by_one():
    params, batches = params_of(), batches_of(4)
    p = {name: value.abs() + 0.2 for name, value in params.items()}
    together = gradient_noise_in({"plain": None, "adam": p}, contrastive, params, batches, blocks=BLOCKS)
    for norm, weights in (("plain", None), ("adam", p)):
        alone = gradient_noise(contrastive, params, batches, blocks=BLOCKS, preconditioner=weights)
        for field in ("trace_cov", "mean_sq_norm", "mean_cosine"):
            assert_close(getattr(together[norm], field), getattr(alone, field), rtol=0, atol=0)
            assert_close(
                getattr(together[norm].by_block["towers"], field),
                getattr(alone.by_block["towers"], field),
                rtol=0,
                atol=0,
            )
    weight = torch.cat([value.reshape(-1) for value in p.values()]).rsqrt()
    assert_close(together["adam"].trace_cov, textbook(rows(params, batches) * weight)[0])


def test_blocks_of_parameters_that_do_not_lie_together():
    params, batches = params_of(), batches_of(4)
    names = ["image.weight", "loss.bias"]
    noise = gradient_noise(contrastive, params, batches, blocks={"odd": names}).by_block["odd"]
    trace, square = textbook(rows(params, batches, names))
    assert_close(noise.trace_cov, trace)
    assert_close(noise.mean_sq_norm, square)


# -- matched parameters ----------------------------------------------------------------------------------


def test_a_fitted_bias_makes_the_mean_probability_one_in_b():
    """Where all similarities are s, SigLIP's best logit is -log(B - 1): b = -log(B - 1) - t s."""
    rows_of_ones = torch.ones(3, 8, 4, dtype=torch.float64) / 2
    scalars = {"log_scale": torch.tensor(1.5, dtype=torch.float64)}
    b = fitted_scalar(lambda p, batch: siglip(batch, batch, **p), scalars, rows_of_ones, "bias")
    assert_close(b.item(), -math.log(7) - math.exp(1.5), rtol=0, atol=1e-10)


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0, 100.0])
def test_a_fitted_bias_is_where_the_derivative_vanishes(scale):
    batches = {name: F.normalize(value, dim=-1) for name, value in batches_of(4).items()}
    scalars = {"log_scale": torch.tensor(scale, dtype=torch.float64).log()}

    def mean(b: Tensor) -> Tensor:
        each = [siglip(batches["image"][k], batches["text"][k], **scalars, bias=b) for k in range(4)]
        return torch.stack(each).mean()

    def of(p: Params, batch: dict[str, Tensor]) -> Tensor:
        return siglip(batch["image"], batch["text"], **p)

    b = fitted_scalar(of, scalars, batches, "bias")
    assert abs(torch.func.grad(mean)(b)) < 1e-10
    stacked = {"log_scale": torch.stack([scalars["log_scale"], torch.tensor(0.3, dtype=torch.float64)])}
    assert_close(torch.vmap(lambda p: fitted_scalar(of, p, batches, "bias"))(stacked)[0], b)


@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("aligned", [False, True])
def test_siglips_bias_fitted_on_logits_is_the_one_that_any_scalar_is_fitted_by(scale, aligned):
    batches = {name: F.normalize(value, dim=-1) for name, value in batches_of(4).items()}
    if aligned:
        batches["text"] = batches["image"]
    log_scale = torch.tensor(scale, dtype=torch.float64).log()

    def of(p: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
        return siglip(batch["image"], batch["text"], **p)

    b = fitted_bias(batches["image"], batches["text"], log_scale)
    assert_close(b, fitted_scalar(of, {"log_scale": log_scale}, batches, "bias"), rtol=0, atol=1e-9)
    each = torch.vmap(lambda t: fitted_bias(batches["image"], batches["text"], t))(
        torch.stack([log_scale, 0 * log_scale])
    )
    assert_close(each[0], b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cap", [2.2, 5.0, 30.0, 1000.0])
def test_a_bias_fitted_under_a_cap_on_logits_is_the_best_on_a_grid(cap):
    batches = {name: F.normalize(value, dim=-1) for name, value in batches_of(4).items()}
    scalars = {"log_scale": torch.tensor(1.0, dtype=torch.float64).log()}

    def of(p: Params, batch: dict[str, Tensor]) -> Tensor:
        return siglip(batch["image"], batch["text"], logit_cap=cap, **p)

    def mean(b: Tensor) -> Tensor:
        return torch.stack([of({**scalars, "bias": b}, {n: v[k] for n, v in batches.items()}) for k in range(4)]).mean()

    b = fitted_scalar(of, scalars, batches, "bias")
    assert abs(torch.func.grad(mean)(b)) < 1e-10
    grid = torch.linspace(-60, 20, 801, dtype=torch.float64)
    assert mean(b) <= min(mean(each) for each in grid) + 1e-12
    stacked = {"log_scale": torch.stack([scalars["log_scale"], torch.tensor(0.3, dtype=torch.float64)])}
    assert_close(torch.vmap(lambda p: fitted_scalar(of, p, batches, "bias"))(stacked)[0], b)


def test_under_a_cap_below_what_mismatches_ask_for_no_bias_is_best():
    """The loss falls all the way to b = -inf, where every logit is minus the cap."""
    ones = torch.ones(3, 8, 4, dtype=torch.float64) / 2
    scalars = {"log_scale": torch.tensor(0.0, dtype=torch.float64)}

    def fitted(cap: float) -> Tensor:
        return fitted_scalar(lambda p, batch: siglip(batch, batch, logit_cap=cap, **p), scalars, ones, "bias")

    assert fitted(math.log(7) - 0.1).isnan()
    # Above it, c tanh((1 + b) / c) = -log 7.
    assert_close(fitted(3.0).item(), 3 * math.atanh(-math.log(7) / 3) - 1, rtol=0, atol=1e-9)


def test_a_scalar_without_a_minimum_is_nan():
    assert fitted_scalar(lambda p, x: p["b"] * x, {"w": torch.tensor(1.0)}, torch.ones(2), "b").isnan()


def test_losses_at_matched_parameters_differ_by_the_loss_alone():
    params, batches, unseen = params_of(), batches_of(5), batches_of(3, seed=8)
    bare = {name: value for name, value in params.items() if name != "loss.bias"}
    noise = matched_gradient_noise(
        {"same": lambda p, x: contrastive({**p, "loss.bias": params["loss.bias"]}, x), "refitted": contrastive},
        bare,
        batches,
        refit={"refitted": "loss.bias"},
        held_out=unseen,
    )
    trace, square = textbook(rows(params, batches, list(bare)))
    assert_close(noise["same"].trace_cov, trace)
    b = fitted_scalar(contrastive, bare, unseen, "loss.bias")
    assert abs(b - fitted_scalar(contrastive, bare, batches, "loss.bias")) > 1e-3  # not fitted on what is measured
    trace, square = textbook(rows({**bare, "loss.bias": b}, batches, list(bare)))
    assert_close(noise["refitted"].trace_cov, trace)
    assert_close(noise["refitted"].mean_sq_norm, square)
    for refit, message in (({"other": "b"}, "'other' is no objective"), ({"same": "loss.log_scale"}, "hold")):
        with pytest.raises(InputError, match=message):
            matched_gradient_noise({"same": contrastive}, bare, batches, refit=refit, held_out=unseen)
    with pytest.raises(InputError, match="needs held_out, batches of samples that the measured ones do not have"):
        matched_gradient_noise({"same": contrastive}, bare, batches, refit={"same": "loss.bias"})


def test_a_batch_is_one_sample_not_its_rows():
    """The same rows, dealt otherwise, are another noise: rows of a coupled batch are no samples."""
    params, batches = params_of(), batches_of(4)
    dealt = {name: value.reshape(6, 4, 5).transpose(0, 1) for name, value in batches.items()}
    one, other = (gradient_noise(contrastive, params, b).trace_cov for b in (batches, dealt))
    assert abs(one / other - 1) > 0.01


def test_small_noise_on_a_large_mean_survives_single_precision():
    """A difference of squares of 1e6 in float32 would be noise of its own of about 1e5."""
    slopes = 1e3 + torch.tensor([-0.5, 0.25, 0.25])
    noise = gradient_noise(lambda p, x: p["w"] * x, {"w": torch.tensor(1.0)}, slopes)
    assert_close(noise.trace_cov, slopes.double().var().float())


def test_equal_batches_have_no_noise_and_pure_noise_no_certain_signal():
    same = {name: value[:1].expand(4, -1, -1) for name, value in batches_of(1).items()}
    assert gradient_noise(contrastive, params_of(), same).fraction < 1e-28
    opposite = gradient_noise(lambda p, x: p["w"] * x, {"w": torch.tensor(1.0)}, torch.tensor([1.0, -1.0]))
    assert opposite.trace_cov == 2
    assert opposite.mean_sq_norm == -1
    assert opposite.fraction == 2


def test_unused_parameters_add_nothing_and_nan_stays_in_its_replica():
    params = {"w": torch.tensor([1.0, math.nan]), "unused": torch.ones(2, 3)}
    noise = torch.vmap(lambda p, x: gradient_noise(lambda q, y: q["w"] ** 2 * y, p, x), in_dims=(0, None))(
        params, torch.tensor([1.0, 3.0])
    )
    assert_close(noise.trace_cov, torch.tensor([8.0, math.nan]), equal_nan=True)


def test_nothing_of_the_caller_changes():
    params = {name: value.requires_grad_() for name, value in params_of().items()}
    state = torch.get_rng_state()
    noise = gradient_noise(contrastive, params, batches_of(3))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(value.grad is None for value in params.values())
    assert not noise.trace_cov.requires_grad


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=10))
def test_scalar_slopes_give_the_sample_variance(slopes):
    x = torch.tensor(slopes, dtype=torch.float64)
    noise = gradient_noise(lambda p, s: p["w"] * s, {"w": torch.tensor(0.0, dtype=torch.float64)}, x)
    assert_close(noise.trace_cov, x.var(), rtol=1e-9, atol=1e-9)
    assert noise.trace_cov >= 0
    assert_close(noise.mean_sq_norm + noise.trace_cov, x.square().mean(), rtol=1e-9, atol=1e-9)


# -- pooling over events ---------------------------------------------------------------------------------


def test_pooling_is_a_ratio_of_means_for_arrays_and_tensors():
    traces, moments = np.array([[1.0, 5.0], [2.0, 2.0]]), np.array([[2.0, 5.5], [8.0, 8.0]])
    assert_close(torch.tensor(pooled_fraction(traces, moments)), torch.tensor([0.8, 0.25], dtype=torch.float64))
    assert_close(pooled_fraction(torch.tensor(traces), torch.tensor(moments)), torch.tensor([0.8, 0.25]).double())


def test_pooling_recovers_a_fraction_that_single_events_miss():
    """True fraction 0.9 at K = 2: single |G|^2 are often negative, and dropping those would bias."""
    g = torch.Generator().manual_seed(0)
    mean, deviation = 1.0, 3.0  # tr Sigma / (tr Sigma + |G|^2) = 9 / 10
    slopes = mean + deviation * torch.randn(4000, 2, generator=g, dtype=torch.float64)
    params = {"w": torch.zeros(4000, dtype=torch.float64)}
    noise = torch.vmap(lambda p, x: gradient_noise(lambda q, s: q["w"] * s, p, x))(params, slopes)
    assert (noise.mean_sq_norm < 0).double().mean() > 0.3
    pooled = pooled_fraction(noise.trace_cov, noise.second_moment)
    assert_close(pooled, torch.tensor(0.9, dtype=torch.float64), rtol=0, atol=0.02)
    kept = noise.mean_sq_norm > 0
    assert pooled_fraction(noise.trace_cov[kept], noise.second_moment[kept]) < 0.6


def test_the_jackknife_interval_covers_the_truth():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        slopes = 1 + 2 * rng.standard_normal((12, 4))  # fraction 4 / 5, 12 events of K = 4
        traces = slopes.var(1, ddof=1)
        _, low, high = fraction_interval(traces, (slopes**2).mean(1))
        covered += low <= 0.8 <= high
    assert 0.90 <= covered / 400 <= 0.99


def test_a_single_event_has_no_interval():
    fraction, low, high = fraction_interval([1.0], [4.0])
    assert fraction == 0.25
    assert math.isnan(low)
    assert math.isnan(high)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: noise_of(batches=torch.ones(1)), "was given 1 batch; allowed: at least 2"),
        (lambda: noise_of(batches=torch.tensor(1.0)), r"allowed: tensors \(K, ...\)"),
        (lambda: noise_of(batches=(torch.ones(2), torch.ones(3))), "differ in their first axis"),
        (lambda: noise_of(blocks={"a": ["v"]}), "blocks.a: unknown parameter 'v'"),
        (lambda: noise_of(blocks={"a": lambda name: False}), "blocks.a: holds no parameter"),
        (lambda: noise_of(preconditioner={}), "the preconditioner of 'w' is missing"),
        (
            lambda: noise_of(objective=lambda p, x: p["w"] * torch.ones(2)),
            r"returned shape \(2,\); allowed: a scalar",
        ),
        (lambda: fraction_interval([1.0], [1.0, 2.0]), "two equally long rows"),
    ],
)
def test_wrong_input_is_one_plain_sentence(call, message):
    with pytest.raises(InputError, match=message):
        call()


def noise_of(objective=lambda p, x: p["w"] * x.sum(), batches=None, **options):
    batches = torch.ones(3) if batches is None else batches
    return gradient_noise(objective, {"w": torch.tensor(1.0)}, batches, **options)
