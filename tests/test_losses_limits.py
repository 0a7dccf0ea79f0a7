"""Losses against what is known of them: published definitions, limits of one in another, theorems about optima."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.nn import functional as F
from torch.testing import assert_close

from stability.losses import (
    clip,
    clip_chunked,
    clip_masked,
    focal_sigmoid,
    global_contrastive,
    hcl,
    hybrid,
    hybrid_separate,
    infoloob,
    rince,
    siglip,
    siglip_as_published,
    siglip_chunked,
    siglip_masked,
    siglip_relative_bias,
    triplet,
)

LOG_T, BIAS = torch.tensor(6.0).double().log(), torch.tensor(-3.0).double()


def towers(size: int, dim: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, size, dim, generator=generator, dtype=torch.float64)
    return F.normalize(image, dim=-1), F.normalize(text, dim=-1)


def gradients(function, *inputs: Tensor) -> tuple[Tensor, ...]:
    return grad(function, argnums=tuple(range(len(inputs))))(*inputs)


# Published definitions.


def test_clip_and_siglip_are_open_clips():
    image, text = towers(7)
    t = LOG_T.exp()
    labels, signs = torch.arange(7), 2 * torch.eye(7).double() - 1
    softmax = (F.cross_entropy(t * image @ text.T, labels) + F.cross_entropy(t * text @ image.T, labels)) / 2
    sigmoid = -F.logsigmoid(signs * (t * image @ text.T + BIAS)).sum() / 7
    assert_close(clip(image, text, log_scale=LOG_T), softmax)
    assert_close(siglip(image, text, log_scale=LOG_T, bias=BIAS), sigmoid)


def test_siglip_is_big_visions_and_not_the_mean_over_pairs():
    image, text = towers(7)
    log_likelihood = F.logsigmoid((-1 + 2 * torch.eye(7)) * (image @ text.T * LOG_T.exp() + BIAS))
    of_big_vision = (-log_likelihood.sum(-1)).mean()
    assert_close(siglip(image, text, log_scale=LOG_T, bias=BIAS), of_big_vision)
    mean = siglip(image, text, log_scale=LOG_T, bias=BIAS, reduction="mean_pairs")
    assert_close(mean, -log_likelihood.mean())
    assert_close(7 * mean, of_big_vision)


def test_smoothed_clip_is_the_smoothed_cross_entropy():
    image, text = towers(7)
    logits, labels = LOG_T.exp() * image @ text.T, torch.arange(7)
    both = [F.cross_entropy(rows, labels, label_smoothing=0.1) for rows in (logits, logits.T)]
    assert_close(clip(image, text, log_scale=LOG_T, label_smoothing=0.1), sum(both) / 2)
    assert_close(clip(image, text, log_scale=LOG_T, label_smoothing=0.0), clip(image, text, log_scale=LOG_T))


@pytest.mark.parametrize("function", [clip, siglip])
def test_a_cut_scale_is_the_cut_and_gets_no_gradient(function):
    image, text = towers(7)
    more = {"bias": BIAS} if function is siglip else {}
    at_cut = function(image, text, log_scale=torch.tensor(4.0).double().log(), **more)
    assert_close(function(image, text, log_scale=LOG_T, max_scale=4.0, **more), at_cut)
    assert grad(lambda log_t: function(image, text, log_scale=log_t, max_scale=4.0, **more))(LOG_T) == 0
    assert grad(lambda log_t: function(image, text, log_scale=log_t, max_scale=9.0, **more))(LOG_T) != 0


def bangachev_loss(image: Tensor, text: Tensor, t: float, b: float) -> float:
    """Return the sum of Bangachev et al., whose logits are t s - b."""
    total = 0.0
    for i in range(len(image)):
        for j in range(len(text)):
            s = float(image[i] @ text[j])
            total += math.log1p(math.exp(-t * s + b)) if i == j else math.log1p(math.exp(t * s - b))
    return total


def test_relative_bias_has_the_sign_of_bangachev_et_al_and_ours_is_the_opposite():
    image, text = towers(6)
    t, relative = 6.0, 0.4
    ours = siglip(image, text, log_scale=LOG_T, bias=torch.tensor(-t * relative).double())
    theirs = siglip_relative_bias(image, text, log_scale=LOG_T, relative_bias=torch.tensor(relative).double())
    assert_close(theirs, ours)
    assert_close(6 * ours.item(), bangachev_loss(image, text, t, t * relative))
    assert abs(6 * ours.item() - bangachev_loss(image, text, t, -t * relative)) > 1


def test_siglip_as_published_is_siglip_until_its_epsilon_matters_and_then_stops_learning():
    image, text = towers(6)
    plain = siglip(image, text, log_scale=LOG_T, bias=BIAS, reduction="mean_pairs")
    assert_close(siglip_as_published(image, text, log_scale=LOG_T, bias=BIAS), plain, rtol=0, atol=1e-5)
    apart, steep = torch.eye(2).double(), torch.tensor(60.0).double().log()
    wrong = {"image": apart, "text": apart.flip(0), "log_scale": steep, "bias": torch.tensor(-30.0).double()}
    kept = grad(lambda text: siglip(**{**wrong, "text": text}, reduction="mean_pairs"))(wrong["text"])
    lost = grad(lambda text: siglip_as_published(**{**wrong, "text": text}))(wrong["text"])
    assert kept.norm() > 10
    assert lost.norm() < 1e-3
    assert_close(siglip_as_published(**wrong).item(), -math.log(1e-8), rtol=1e-4, atol=0)


def test_siglip_is_exact_where_every_pair_is_judged_well():
    image = torch.eye(2)
    value = siglip(image, image, log_scale=torch.tensor(60.0).log(), bias=torch.tensor(-30.0))
    assert_close(value.item(), 2 * math.exp(-30.0))
    slope = grad(lambda text: siglip(image, text, log_scale=torch.tensor(60.0).log(), bias=torch.tensor(-30.0)))(image)
    assert_close(slope[0, 0].item(), -60 / 2 * math.exp(-30.0))


# Limits of one loss in another.


@pytest.mark.parametrize(("gamma", "step", "decay_steps"), [(0.0, 0, 100), (2.0, 100, 100), (2.0, 10**6, 100)])
def test_focal_sigmoid_without_gamma_or_after_its_decay_is_siglip(gamma, step, decay_steps):
    image, text = towers(6)
    value = focal_sigmoid(
        image, text, log_scale=LOG_T, bias=BIAS, step=torch.tensor(step), gamma=gamma, decay_steps=decay_steps
    )
    assert_close(value, siglip(image, text, log_scale=LOG_T, bias=BIAS))


def test_focal_sigmoid_halves_gamma_half_way_and_keeps_it_without_a_decay():
    image, text = towers(6)

    def at(step: int, gamma: float, decay_steps: int) -> Tensor:
        options = {"gamma": gamma, "decay_steps": decay_steps}
        return focal_sigmoid(image, text, log_scale=LOG_T, bias=BIAS, step=torch.tensor(step), **options)

    assert_close(at(50, 2.0, 100), at(7, 1.0, 0))
    assert at(0, 2.0, 100) < at(50, 2.0, 100) < at(100, 2.0, 100)


def test_rince_tends_to_clip_plus_log_of_its_weight_with_clips_gradients():
    image, text = towers(6)
    robust = lambda i, t: rince(i, t, log_scale=LOG_T, q=1e-7, weight=0.3)  # noqa: E731
    plain = lambda i, t: clip(i, t, log_scale=LOG_T)  # noqa: E731
    assert_close(robust(image, text), plain(image, text) + math.log(0.3), rtol=0, atol=1e-5)
    assert_close(gradients(robust, image, text), gradients(plain, image, text), rtol=0, atol=1e-5)


def test_rince_at_q_1_is_linear_in_exponentials():
    image, text = towers(6)
    e = (LOG_T.exp() * image @ text.T).exp()
    assert_close(rince(image, text, log_scale=LOG_T, q=1.0, weight=0.2), (0.2 * e.sum() - e.trace()) / 6)


def test_the_ends_of_hybrid_are_its_parts_and_equal_scales_make_it_shared():
    image, text = towers(6)
    scalars = {"log_scale": LOG_T, "bias": BIAS}
    assert_close(hybrid(image, text, **scalars, mix=0.0), clip(image, text, log_scale=LOG_T))
    assert_close(hybrid(image, text, **scalars, mix=1.0), siglip(image, text, **scalars))
    separate = hybrid_separate(image, text, **scalars, sigmoid_log_scale=LOG_T, mix=0.3)
    assert_close(separate, hybrid(image, text, **scalars, mix=0.3))
    other = torch.tensor(0.5).double()
    separate = hybrid_separate(image, text, **scalars, sigmoid_log_scale=other, mix=1.0)
    assert_close(separate, siglip(image, text, log_scale=other, bias=BIAS))


def test_hcl_at_beta_0_is_the_debiased_loss_and_without_debiasing_clip():
    image, text = towers(6)
    share, count = 0.05, 5
    rows = []
    for logits in (LOG_T.exp() * image @ text.T, LOG_T.exp() * text @ image.T):
        for i in range(6):
            match = logits[i, i].exp()
            others = sum(logits[i, j].exp() for j in range(6) if j != i)
            estimate = (others - share * count * match) / (1 - share)
            rows.append(-(match / (match + estimate.clamp(min=count * math.exp(-6.0)))).log())
    debiased = hcl(image, text, log_scale=LOG_T, beta=0.0, positive_share=share)
    assert_close(debiased, torch.stack(rows).mean())
    assert_close(hcl(image, text, log_scale=LOG_T, beta=0.0, positive_share=0.0), clip(image, text, log_scale=LOG_T))


def test_hcl_keeps_its_estimate_above_its_floor():
    # With aligned towers and a large share the estimate is negative: the floor N e^(-t) stands in for it.
    image = torch.eye(4).double()
    value = hcl(image, image, log_scale=LOG_T, positive_share=0.9)
    assert_close(value.item(), math.log1p(3 * math.exp(-12.0)))


@pytest.mark.parametrize("keep", ["random", "hard", "easy"])
def test_siglip_with_all_mismatches_kept_is_siglip(keep):
    image, text = towers(6)
    uniform = torch.rand(6, 6, generator=torch.Generator().manual_seed(0))
    value = siglip_masked(image, text, log_scale=LOG_T, bias=BIAS, uniform=uniform, keep=keep, ratio=5.0)
    assert_close(value, siglip(image, text, log_scale=LOG_T, bias=BIAS))


@pytest.mark.parametrize("keep", ["random", "hard", "easy"])
def test_clip_with_all_mismatches_kept_is_clip(keep):
    image, text = towers(6)
    uniform = torch.rand(6, 6, generator=torch.Generator().manual_seed(0))
    value = clip_masked(image, text, log_scale=LOG_T, uniform=uniform, keep=keep, ratio=5.0)
    assert_close(value, clip(image, text, log_scale=LOG_T))


def test_a_global_loss_that_forgets_is_infoloob_up_to_a_constant():
    image, text = towers(6)
    seen = {"image": torch.randn(9).double(), "text": torch.randn(9).double()}
    index = torch.tensor([8, 1, 3, 0, 5, 7])
    value, _ = global_contrastive(image, text, log_scale=LOG_T, index=index, state=seen, gamma=1.0)
    assert_close(value, infoloob(image, text, log_scale=LOG_T) - math.log(5) / LOG_T.exp())


# Row-chunked forms.

CHUNKED = [(clip_chunked, clip, ()), (siglip_chunked, siglip, (BIAS,))]


def flat(function, **options):
    """Return a loss as a function of positional tensors."""
    if function in (siglip, siglip_chunked):
        return lambda image, text, t, b: function(image, text, log_scale=t, bias=b, **options)
    return lambda image, text, t: function(image, text, log_scale=t, **options)


def hessian_vector(function, inputs: tuple[Tensor, ...], vectors: tuple[Tensor, ...], forward: bool):
    slopes = lambda *x: gradients(function, *x)  # noqa: E731
    if forward:
        return jvp(slopes, inputs, vectors)[1]
    return gradients(lambda *x: sum((g * v).sum() for g, v in zip(slopes(*x), vectors, strict=True)), *inputs)


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize(("chunked", "plain", "bias"), CHUNKED)
def test_chunked_losses_are_the_plain_ones_in_value_gradient_and_hessian_vector_product(chunked, plain, bias, chunk):
    inputs = (*towers(7), LOG_T, *bias)
    vectors = tuple(torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1)) for x in inputs)
    ours, theirs = flat(chunked, chunk=chunk), flat(plain)
    assert_close(ours(*inputs), theirs(*inputs))
    assert_close(gradients(ours, *inputs), gradients(theirs, *inputs))
    for forward in (True, False):
        expected = hessian_vector(theirs, inputs, vectors, forward)
        assert_close(hessian_vector(ours, inputs, vectors, forward), expected)


@pytest.mark.parametrize(("chunked", "plain", "bias"), CHUNKED)
def test_chunked_losses_are_the_plain_ones_for_many_replicas_and_in_eager_autograd(chunked, plain, bias):
    pairs = [towers(6, seed=seed) for seed in range(3)]
    image, text = (torch.stack(side) for side in zip(*pairs, strict=True))

    def product(function):
        one = flat(function, **({"chunk": 4} if function is chunked else {}))
        return vmap(lambda i, t: hessian_vector(one, (i, t, LOG_T, *bias), (t, i, LOG_T, *bias), forward=False))

    assert_close(product(chunked)(image, text), product(plain)(image, text))

    def eager(function):
        leaf = image[0].clone().requires_grad_()
        (slope,) = torch.autograd.grad(function(leaf, text[0], LOG_T, *bias), leaf, create_graph=True)
        (curve,) = torch.autograd.grad((slope * text[0]).sum(), leaf)
        return slope.detach(), curve

    assert_close(eager(flat(chunked, chunk=4)), eager(flat(plain)))


def peak_bytes(function) -> int:
    """Return the most memory that *function* holds at once beyond what there was before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events))


@pytest.mark.parametrize(("chunked", "plain", "bias"), CHUNKED)
def test_the_memory_of_chunked_losses_grows_with_the_chunk_and_not_with_the_square_of_the_batch(chunked, plain, bias):
    size, chunk = 512, 16
    inputs = tuple(x.clone().requires_grad_() for x in (*towers(size, 2), LOG_T, *bias))

    def hessian_vector_product(function):
        slopes = torch.autograd.grad(function(*inputs), inputs, create_graph=True)
        return torch.autograd.grad(sum(slope.sum() for slope in slopes), inputs)

    matrix = size * size * 8
    assert peak_bytes(lambda: hessian_vector_product(flat(plain))) > 3 * matrix
    assert peak_bytes(lambda: hessian_vector_product(flat(chunked, chunk=chunk))) < matrix
    assert peak_bytes(lambda: hessian_vector_product(flat(chunked, chunk=size))) > 3 * matrix


# Theorems on optima. N pairs in d dimensions; m is half the gap between the least match and the largest mismatch.


def simplex(count: int) -> Tensor:
    """Return (N, N) unit rows with pairwise similarity -1/(N - 1)."""
    return F.normalize(torch.eye(count, dtype=torch.float64) - 1 / count, dim=-1)


def double_constant(count: int, delta: float) -> tuple[Tensor, Tensor]:
    """Return the embedding of Lee et al. (2024): (delta W, sqrt(1 - delta^2)) and (delta W, -sqrt(1 - delta^2))."""
    height = torch.full((count, 1), math.sqrt(1 - delta**2), dtype=torch.float64)
    side = delta * simplex(count)
    return torch.cat([side, height], -1), torch.cat([side, -height], -1)


def margin_and_threshold(image: Tensor, text: Tensor) -> tuple[float, float]:
    similarity = image @ text.T
    least = similarity.diagonal().min().item()
    largest = similarity.masked_fill(torch.eye(len(image), dtype=torch.bool), -2.0).max().item()
    return (least - largest) / 2, (least + largest) / 2


def best_double_constant(count: int, t: float, b: float) -> tuple[float, float]:
    """Return the least loss of these embeddings, and the delta that reaches it."""

    def at(delta: float) -> float:
        pos, neg = 2 * delta**2 - 1, delta**2 * (count - 2) / (count - 1) - 1
        return math.log1p(math.exp(-t * pos - b)) + (count - 1) * math.log1p(math.exp(t * neg + b))

    inner = minimize_scalar(at, bounds=(0.0, 1.0), method="bounded", options={"xatol": 1e-10})
    return min((at(delta), delta) for delta in (0.0, float(inner.x), 1.0))


def optimum(count: int, dim: int, t: float, b: float, seed: int) -> tuple[float, Tensor, Tensor]:
    """Minimise the sigmoid loss over free unit vectors at fixed t and b; return the value and the vectors."""
    raw = torch.randn(2, count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    raw.requires_grad_()
    scalars = {"log_scale": torch.tensor(t).double().log(), "bias": torch.tensor(b).double()}
    optimiser = torch.optim.LBFGS(
        [raw], max_iter=600, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def evaluate() -> Tensor:
        optimiser.zero_grad()
        value = siglip(*F.normalize(raw, dim=-1), **scalars)
        value.backward()
        return value

    optimiser.step(evaluate)
    image, text = F.normalize(raw.detach(), dim=-1)
    return siglip(image, text, **scalars).item(), image, text


@pytest.mark.parametrize("delta", [0.0, 0.4, 1.0])
def test_the_double_constant_embedding_has_the_similarities_of_its_closed_form(delta):
    image, text = double_constant(6, delta)
    similarity = image @ text.T
    expected = torch.full((6, 6), delta**2 * 4 / 5 - 1, dtype=torch.float64).fill_diagonal_(2 * delta**2 - 1)
    assert_close(similarity, expected)


@pytest.mark.parametrize(("t", "b"), [(1.0, -1.0), (3.0, 0.0), (3.0, -1.0), (8.0, -4.0), (10.0, 2.0)])
@pytest.mark.parametrize("count", [5, 8])
def test_the_optimum_at_fixed_scalars_is_the_double_constant_embedding(count, t, b):
    reached = min(optimum(count, count + 3, t, b, seed)[0] for seed in range(3))
    assert abs(reached - best_double_constant(count, t, b)[0]) < 1e-6


def test_the_optimum_moves_from_antipodal_towers_to_the_simplex_as_t_grows():
    matches = []
    for t in (0.2, 2.0, 12.0):
        threshold = 3 / 7  # half way between match and mismatch of the simplex
        _, image, text = optimum(8, 11, t, -t * threshold, seed=0)
        matches.append((image * text).sum(-1).mean().item())
        assert_close(matches[-1], 2 * best_double_constant(8, t, -t * threshold)[1] ** 2 - 1, rtol=0, atol=1e-3)
    assert_close(matches[0], -1.0, rtol=0, atol=1e-3)
    assert matches[0] < matches[1] < matches[2]
    assert matches[2] > 0.9


def loss_at(image: Tensor, text: Tensor, t: float, threshold: float) -> float:
    scalars = {"log_scale": torch.tensor(t).double().log(), "relative_bias": torch.tensor(threshold).double()}
    return siglip_relative_bias(image, text, **scalars).item()


@pytest.mark.parametrize("delta", [0.5, 0.8, 1.0])
def test_the_loss_falls_as_exp_of_minus_margin_times_t(delta):
    image, text = double_constant(6, delta)
    margin, threshold = margin_and_threshold(image, text)
    slope = math.log(loss_at(image, text, 30.0, threshold) / loss_at(image, text, 40.0, threshold)) / 10
    assert_close(slope, margin, rtol=0.03 if delta == 0.5 else 1e-3, atol=0)


@pytest.mark.parametrize("seed", range(3))
def test_the_rate_is_the_margin_only_at_the_threshold_half_way(seed):
    image = towers(5, 12, seed)[0]
    text = F.normalize(image + 0.1 * towers(5, 12, seed + 10)[1], dim=-1)
    margin, threshold = margin_and_threshold(image, text)
    assert margin > 0.1

    def rate(at: float) -> float:
        return math.log(loss_at(image, text, 60.0, at) / loss_at(image, text, 80.0, at)) / 20

    assert_close(rate(threshold), margin, rtol=0.1, atol=0)
    assert rate(threshold + margin / 2) < 0.75 * margin
    assert rate(threshold - margin / 2) < 0.75 * margin


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(2, 12), dim=st.integers(2, 12), noise=st.floats(0.0, 3.0), gap=st.floats(0, 2), seed=st.integers()
)
def test_no_configuration_exceeds_the_bounds_on_its_margin(count, dim, noise, gap, seed):
    generator = torch.Generator().manual_seed(seed % 2**31)
    image, shift, away = torch.randn(3, count, dim, generator=generator, dtype=torch.float64)
    text = F.normalize(image + noise * shift - gap * away.mean(0), dim=-1)
    image = F.normalize(image + gap * away.mean(0), dim=-1)
    margin, threshold = margin_and_threshold(image, text)
    if margin > 0:
        assert margin + threshold <= 1 + 1e-12
        assert (3 - 4 / count) * margin <= 1 + threshold + 1e-12


@pytest.mark.parametrize(("t", "b"), [(10.0, -5.0), (20.0, 0.0), (20.0, 10.0)])
def test_no_optimum_exceeds_the_bounds_on_its_margin_and_double_constants_attain_one(t, b):
    _, image, text = optimum(8, 6, t, b, seed=0)
    margin, threshold = margin_and_threshold(image, text)
    assert margin > 0.05
    assert margin + threshold <= 1 + 1e-12
    assert (3 - 4 / 8) * margin <= 1 + threshold + 1e-12
    for delta in (0.3, 1.0):
        margin, threshold = margin_and_threshold(*double_constant(8, delta))
        assert_close((3 - 4 / 8) * margin, 1 + threshold)


def best_zero_threshold_margin(count: int, starts: int) -> float:
    """Return the largest min(least match, -largest mismatch) that gradient descent in the plane finds."""
    angles = 2 * math.pi * torch.rand(starts, 2, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def embedded(angle: Tensor) -> Tensor:
        return torch.stack([angle.cos(), angle.sin()], -1)

    def objective(angle: Tensor, t: float) -> Tensor:
        scalars = {"log_scale": torch.tensor(math.log(t)).double(), "bias": torch.tensor(0.0).double()}
        return siglip(embedded(angle[0]), embedded(angle[1]), **scalars).log()

    for t in (3.0, 10.0, 30.0):
        for _ in range(150):
            angles = angles - 0.5 / t * vmap(grad(lambda angle, t=t: objective(angle, t)))(angles)
    similarity = embedded(angles[:, 0]) @ embedded(angles[:, 1]).mT
    signed = similarity * (2 * torch.eye(count).double() - 1)
    return signed.amin((-1, -2)).max().item()


def test_in_the_plane_three_pairs_can_be_told_apart_by_sign_and_four_cannot():
    assert best_zero_threshold_margin(3, 50) > 0.3
    assert best_zero_threshold_margin(4, 300) <= 1e-6
    assert best_zero_threshold_margin(5, 100) <= 1e-6


def test_a_constellation_has_no_triplet_loss_up_to_four_margins():
    image, text = double_constant(6, 0.9)
    margin, _ = margin_and_threshold(image, text)
    assert triplet(image, text, margin=4 * margin - 1e-9) == 0
    assert triplet(image, text, margin=4 * margin + 1e-3) > 0
