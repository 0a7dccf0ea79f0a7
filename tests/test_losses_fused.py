"""Losses whose gradient is found together with the value, tile by tile, against their plain formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_losses_limits import peak_bytes
from torch import Tensor
from torch.func import grad, hessian, jvp, vmap
from torch.nn import functional as F
from torch.testing import assert_close

from stability.losses import clip, fused, siglip
from stability.losses.fused import TILE, clip_sum_tiled, is_large, siglip_sum_tiled
from stability.losses.logits import symmetrize


def plain_sigmoid(rows: Tensor, columns: Tensor, bias: Tensor) -> Tensor:
    # torch's softplus is a straight line from 20 on; this one is exact to where the exponential overflows.
    logits = rows @ columns.T + bias
    match = torch.eye(len(rows), dtype=rows.dtype)
    return F.softplus((1 - 2 * match) * logits, threshold=80).sum()


def plain_softmax(rows: Tensor, columns: Tensor) -> Tensor:
    def one_way(logits: Tensor) -> Tensor:
        return 2 * (torch.logsumexp(logits, -1) - torch.diagonal(logits)).sum()

    return symmetrize(one_way, rows @ columns.T)


def towers(size: int, width: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image, text = F.normalize(torch.randn(2, size, width, generator=generator, dtype=torch.float64), dim=-1).to(dtype)
    return image, text


def like(tensors: tuple[Tensor, ...], seed: int = 1) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(x.shape, dtype=x.dtype, generator=generator) for x in tensors)


def inputs_of(function, size: int, t: float = 7.0, b: float = -4.0, **how) -> tuple[Tensor, ...]:
    image, text = towers(size, **how)
    return (t * image, text, *([image.new_tensor(b)] if function is siglip_sum_tiled else []))


def slopes(function, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return grad(function, argnums=tuple(range(len(inputs))))(*inputs)


def product(function, inputs: tuple[Tensor, ...], vectors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the Hessian of *function* times *vectors*, reverse over reverse."""
    return slopes(lambda *x: sum((g * v).sum() for g, v in zip(slopes(function, x), vectors, strict=True)), inputs)


BOTH = [(siglip_sum_tiled, plain_sigmoid), (clip_sum_tiled, plain_softmax)]
both = pytest.mark.parametrize(("ours", "plain"), BOTH)


@pytest.fixture
def small_tiles(monkeypatch):
    """Make many tiles of few pairs: the last of each row and column is ragged."""
    monkeypatch.setattr(fused, "TILE", 5)


def test_equal_rows_cost_the_logarithm_of_the_batch_both_ways():
    ones = torch.ones(700, 2, dtype=torch.float64)
    assert_close(clip_sum_tiled(ones, ones).item(), 2 * 700 * math.log(700))


def test_zero_logits_cost_log_2_a_pair():
    zeros = torch.zeros(700, 2, dtype=torch.float64)
    assert_close(siglip_sum_tiled(zeros, zeros, zeros[0, 0]).item(), 700**2 * math.log(2))


@both
@pytest.mark.parametrize("size", [2, 4, 5, 6, 17])
def test_value_gradient_and_hessian_vector_product_in_many_ragged_tiles(ours, plain, size, small_tiles):
    inputs = inputs_of(ours, size)
    vectors = like(inputs)
    assert_close(ours(*inputs), plain(*inputs))
    assert_close(slopes(ours, inputs), slopes(plain, inputs))
    assert_close(product(ours, inputs, vectors), product(plain, inputs, vectors))
    forward = jvp(lambda *x: slopes(ours, x), inputs, vectors)[1]
    assert_close(forward, product(plain, inputs, vectors))
    assert_close(jvp(ours, inputs, vectors), jvp(plain, inputs, vectors))


@both
@pytest.mark.parametrize("size", [TILE - 1, TILE, TILE + 1, 2 * TILE + 77])
def test_value_and_gradient_in_whole_tiles(ours, plain, size):
    inputs = inputs_of(ours, size, width=8)
    assert_close(ours(*inputs), plain(*inputs))
    assert_close(slopes(ours, inputs), slopes(plain, inputs))


@both
def test_a_hessian_vector_product_in_several_blocks_of_rows(ours, plain):
    inputs = inputs_of(ours, 2 * TILE + 77, width=4)
    vectors = like(inputs)
    assert_close(product(ours, inputs, vectors), product(plain, inputs, vectors))


@both
@pytest.mark.parametrize("t", [1e-3, 1.0, 80.0, 1e3])
@pytest.mark.parametrize("b", [-50.0, 50.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_scales_biases_and_duplicates(ours, plain, t, b, dtype, small_tiles):
    image, text = towers(12, seed=3)
    image, text = (
        image.index_copy(0, torch.tensor([1, 2]), image[[0, 0]]),
        text.index_copy(0, torch.tensor(3), text[:1]),
    )
    exact = (t * image, text, *([torch.tensor(b).double()] if ours is siglip_sum_tiled else []))
    inputs = tuple(x.to(dtype) for x in exact)
    expected = plain(*exact), *slopes(plain, exact)
    # From a logit of 20 on, torch's softplus, in the plain formula, is cut to a line: 2e-9 off.
    # In float32 a logit of 1000 is itself rounded by 3e-5, and the probabilities behind the gradient with it.
    close = {"rtol": 1e-4, "atol": 1e-4 * max(1.0, t)} if dtype == torch.float32 else {"rtol": 1e-8, "atol": 1e-8}
    assert_close(tuple(x.double() for x in (ours(*inputs), *slopes(ours, inputs))), expected, **close)


def test_a_well_judged_batch_keeps_its_tiny_loss():
    """Losses of 1e-20 a pair survive in float32: no logarithm of a number rounded to 1."""
    eye = torch.eye(40)
    logit = 50.0
    value = siglip_sum_tiled(2 * logit * eye, eye, torch.tensor(-logit))
    assert_close(value.item(), 1600 * math.exp(-logit), rtol=1e-5, atol=0.0)


def test_wholly_apart_rows_are_told_apart_whatever_the_scale(small_tiles):
    """No row's largest logit is near the largest of all: every one needs its own shift."""
    image, text = towers(9, seed=4, dtype=torch.float32)
    strength = torch.logspace(-3, 4, 9)[:, None]
    rows = strength * image
    exact = plain_softmax(rows.double(), text.double()).float()
    assert_close(clip_sum_tiled(rows, text), exact, rtol=1e-5, atol=0.0)


@both
def test_a_logit_that_is_not_finite_is_not_hidden(ours, plain):
    rows, *others = inputs_of(ours, 6)
    rows[0, 0] = math.nan
    assert ours(rows, *others).isnan()


@both
@settings(max_examples=25, deadline=None)
@given(
    size=st.integers(2, 40), width=st.integers(1, 9), side=st.integers(1, 45), chunk=st.integers(1, 45), data=st.data()
)
def test_any_shape_in_any_tiles(ours, plain, size, width, side, chunk, data):
    t, b = data.draw(st.floats(1e-3, 1e3)), data.draw(st.floats(-50, 50))
    inputs = inputs_of(ours, size, t, b, width=width, seed=size)
    whole, fused.TILE = fused.TILE, side
    try:
        found = ours(*inputs, chunk=chunk), *slopes(lambda *x: ours(*x, chunk=chunk), inputs)
    finally:
        fused.TILE = whole
    assert_close(found, (plain(*inputs), *slopes(plain, inputs)), rtol=1e-8, atol=1e-8)


@both
def test_first_and_second_derivatives_by_finite_differences(ours, plain, small_tiles):
    inputs = tuple(x.requires_grad_() for x in inputs_of(ours, 6, t=2.0, b=-1.0, width=2))
    assert torch.autograd.gradcheck(ours, inputs)
    assert torch.autograd.gradgradcheck(ours, inputs)


@both
def test_third_derivatives(ours, plain, small_tiles):
    inputs = inputs_of(ours, 6, width=2)
    third = grad(lambda x, function: hessian(lambda y: function(y, *inputs[1:]))(x).sin().sum())
    assert_close(third(inputs[0], ours), third(inputs[0], plain))


@both
def test_many_replicas_are_a_loop_over_replicas_to_the_bit(ours, plain, small_tiles):
    replicas = [inputs_of(ours, 7, t=2.0 + seed, b=-seed, seed=seed) for seed in range(4)]
    stacked = tuple(torch.stack(values) for values in zip(*replicas, strict=True))
    values, found = vmap(ours)(*stacked), vmap(lambda *x: slopes(ours, x))(*stacked)
    for place, inputs in enumerate(replicas):
        assert torch.equal(values[place], ours(*inputs))
        assert all(map(torch.equal, (x[place] for x in found), slopes(ours, inputs)))
    vectors = like(stacked)
    expected = vmap(lambda x, v: product(plain, x, v))(stacked, vectors)
    assert_close(vmap(lambda x, v: product(ours, x, v))(stacked, vectors), expected)
    shared = vmap(lambda x: slopes(ours, (x, *replicas[0][1:])))(stacked[0])
    assert_close(shared, vmap(lambda x: slopes(plain, (x, *replicas[0][1:])))(stacked[0]))


@both
def test_one_backward_pass_over_many_replicas_and_a_vmap_inside_a_gradient(ours, plain, small_tiles):
    replicas = [inputs_of(ours, 7, seed=seed) for seed in range(3)]
    stacked = tuple(torch.stack(values) for values in zip(*replicas, strict=True))
    weights = torch.tensor([1.0, -2.0, 3.0]).double()

    def eager(function):
        leaves = tuple(x.clone().requires_grad_() for x in stacked)
        return torch.autograd.grad((vmap(function)(*leaves) * weights).sum(), leaves)

    assert_close(eager(ours), eager(plain))
    inside = lambda function: slopes(lambda *x: (vmap(function)(*x) * weights).sum(), stacked)  # noqa: E731
    assert_close(inside(ours), inside(plain))


@both
def test_without_gradients_the_value_is_the_same(ours, plain):
    inputs = inputs_of(ours, 30)
    with torch.no_grad():
        assert_close(ours(*inputs), plain(*inputs))


@both
def test_what_needs_no_gradient_gets_none(ours, plain):
    rows, *others = inputs_of(ours, 8)
    rows.requires_grad_()
    ours(rows, *others).backward()
    assert rows.grad is not None
    assert all(x.grad is None for x in others)


@both
def test_memory_for_value_and_gradient_is_far_below_one_matrix_of_logits(ours, plain):
    inputs = tuple(x.requires_grad_() for x in inputs_of(ours, 4 * TILE, width=4))
    matrix = (4 * TILE) ** 2 * 8
    assert peak_bytes(lambda: torch.autograd.grad(ours(*inputs), inputs)) < matrix / 4
    assert peak_bytes(lambda: torch.autograd.grad(plain(*inputs), inputs)) > 2 * matrix


# The catalogue's clip and siglip, on both sides of the batch size from which they work in tiles.


@pytest.mark.parametrize("options", [{}, {"max_scale": 3.0}, {"reduction": "mean_pairs"}])
def test_siglip_of_a_large_batch_is_its_formula(options):
    image, text = towers(TILE + 3)
    assert is_large(image)
    assert not is_large(image[: TILE - 1])
    rows = min(options.get("max_scale", math.inf), 10.0) * image
    divisor = len(image) ** (2 if "reduction" in options else 1)
    log_t, bias = torch.tensor(10.0).double().log(), torch.tensor(-3.0).double()
    value = siglip(image, text, log_scale=log_t, bias=bias, **options)
    assert_close(value, plain_sigmoid(rows, text, bias) / divisor)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_clip_of_a_large_batch_is_the_cross_entropy_of_torch(smoothing):
    inputs = (*towers(TILE + 3), torch.tensor(10.0).double().log())

    def ours(image, text, log_scale):
        return clip(image, text, log_scale=log_scale, label_smoothing=smoothing)

    def theirs(image, text, log_scale):
        target = torch.arange(len(image))
        return symmetrize(
            lambda logits: F.cross_entropy(logits, target, label_smoothing=smoothing), log_scale.exp() * image @ text.T
        )

    assert_close(ours(*inputs), theirs(*inputs))
    assert_close(slopes(ours, inputs), slopes(theirs, inputs))
