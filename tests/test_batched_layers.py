"""Towers run for all replicas at once: values and gradients of each replica are its own, to the bit."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.testing import assert_close

from stability.encoders import Modality, encoder
from stability.encoders.transformers import Attention, Patches, Transformer, TransformerBlock
from stability.train.batched_layers import batched_forward
from stability.train.frozen import split_frozen_prefix
from stability.train.model import Layout

IMAGE, TEXT = Modality((2, 4, 6)), Modality((6,), vocabulary=7)


def transformer(
    name: str = "token_transformer", modality: Modality = TEXT, dim: int = 5, **options: object
) -> nn.Module:
    return encoder[name](modality, dim, **{"width": 8, "depth": 1, "heads": 2, **options})


def some(*shape: int) -> Tensor:
    return torch.randn(3, *shape, dtype=torch.float64)


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, 7, (3, *shape))


@pytest.mark.parametrize(
    ("build", "draw"),
    [
        (lambda: nn.LayerNorm(6), lambda: some(5, 6)),
        (lambda: nn.LayerNorm(6, eps=0.1, bias=False), lambda: some(5, 2, 6)),
        (lambda: nn.Sequential(nn.Linear(6, 6), nn.LayerNorm((2, 6)), nn.Tanh()), lambda: some(5, 3, 2, 6)),
        (lambda: nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4, elementwise_affine=False)), lambda: some(5, 6)),
        (lambda: nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(24, 4)), lambda: tokens(5, 6)),
        (lambda: nn.Embedding(7, 4, padding_idx=2), lambda: tokens(5).int()),
        (lambda: Attention(6, 1), lambda: some(4, 3, 6)),
        (lambda: nn.Sequential(nn.Linear(6, 12), Attention(12, 3)), lambda: some(2, 1, 6)),
        (lambda: nn.Sequential(nn.Linear(6, 8), TransformerBlock(8, 2, 3), nn.Flatten(-2)), lambda: some(5, 4, 6)),
        (lambda: TransformerBlock(4, 4, 1), lambda: some(8, 4, 4)),
        (lambda: Attention(6, 1, qk_norm=True), lambda: some(4, 3, 6)),
        (lambda: nn.Sequential(nn.Linear(6, 12), Attention(12, 3, qk_norm=True)), lambda: some(2, 1, 6)),
        (lambda: TransformerBlock(4, 2, 1, norm="post"), lambda: some(8, 4, 4)),
        (lambda: transformer(depth=2, qk_norm=True, norm="post"), lambda: tokens(5, 6)),
        (lambda: transformer("patch_transformer", IMAGE, patch=2, qk_norm=True), lambda: some(5, 2, 4, 6)),
        (lambda: Patches(2, 2, 5), lambda: some(3, 2, 4, 6)),
        (lambda: nn.Sequential(nn.Linear(6, 4), Patches(2, 2, 5)), lambda: some(3, 2, 6, 6)),
        (lambda: transformer(depth=0), lambda: tokens(5, 6)),
        (lambda: transformer(depth=2, mlp_ratio=3), lambda: tokens(16, 6)),
        (lambda: transformer("patch_transformer", IMAGE, patch=2, heads=4), lambda: some(5, 2, 4, 6)),
        (lambda: transformer("patch_transformer", IMAGE, patch=1, depth=2, heads=1), lambda: some(2, 2, 4, 6)),
        (lambda: Transformer(nn.Sequential(nn.Linear(3, 4), nn.GELU()), 2, 4, 1, 2, 2, 3), lambda: some(5, 2, 3)),
    ],
)
def test_values_and_gradients_are_those_of_each_replica_alone(build, draw):
    torch.manual_seed(0)
    tower, samples = build().double(), draw()
    forward = batched_forward(tower)
    assert forward is not None
    params = {
        name: torch.randn(3, *value.shape, dtype=torch.float64, requires_grad=True)
        for name, value in tower.named_parameters()
    }
    # Not under vmap, where `padding_idx` holds for the first replica alone.
    slow = torch.stack([functional_call(tower, {n: v[i] for n, v in params.items()}, samples[i]) for i in range(3)])
    fast = forward(params, samples)
    assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    grad_output = torch.randn_like(slow)
    ours, theirs = (torch.autograd.grad(output, list(params.values()), grad_output) for output in (fast, slow))
    assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def of_one_block_twice() -> nn.Module:
    tower = transformer(depth=2)
    tower.blocks[1] = tower.blocks[0]
    return tower


def of_shared_matrices() -> nn.Module:
    tower = transformer(depth=2)
    tower.blocks[1].expand.weight = tower.blocks[0].expand.weight
    return tower


def hooked(place: str) -> nn.Module:
    tower = transformer()
    tower.get_submodule(place).register_forward_hook(lambda module, args, output: 2 * output)
    return tower


class Reversed(Attention):
    """Attention that is another one."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flip(-2))


def with_another_attention() -> nn.Module:
    tower = transformer()
    tower.blocks[0].attention = Reversed(8, 2)
    return tower


@pytest.mark.parametrize(
    "build",
    [
        of_one_block_twice,
        of_shared_matrices,
        *(lambda place=place: hooked(place) for place in ("", "embed", "blocks.0", "blocks.0.attention.out", "norm")),
        with_another_attention,
        lambda: Transformer(nn.Conv1d(2, 4, 1), 2, 4, 1, 2, 2, 3),
        lambda: Transformer(nn.Embedding(7, 4, max_norm=0.0), 2, 4, 1, 2, 2, 3),
        lambda: nn.Embedding(7, 4, scale_grad_by_freq=True),
        lambda: nn.Embedding(7, 4, sparse=True),
        lambda: nn.ModuleList([nn.Linear(2, 2)]),
    ],
)
def test_a_tower_with_anything_unsupported_in_it_is_left_to_vmap(build):
    assert batched_forward(build()) is None


@pytest.mark.parametrize("token", [-1, 7])
def test_a_token_outside_the_vocabulary_is_refused(token):
    tower = nn.Embedding(7, 4)
    forward = batched_forward(tower)
    assert forward is not None
    with pytest.raises(RuntimeError, match=f"index {token} is out of bounds"):
        forward({"weight": torch.randn(2, 7, 4)}, torch.full((2, 3), token))


def test_what_follows_a_cut_may_be_a_transformer_s_layers():
    embed = nn.Embedding(7, 8).requires_grad_(False)
    cut = split_frozen_prefix(
        nn.Sequential(embed, TransformerBlock(8, 2, 2), nn.Flatten(), nn.Linear(48, 3)), torch.randint(0, 7, (2, 6))
    )
    assert cut is not None
    assert cut.forward is not None
    params = {name: torch.randn(2, *value.shape) for name, value in cut.rest.named_parameters()}
    features = torch.randn(2, 5, *cut.shape)
    assert_close(
        cut.forward(params, features), vmap(lambda own, x: functional_call(cut.rest, own, x))(params, features)
    )


def gradient_of(tower: nn.Module, theta: Tensor, samples: Tensor, grad_output: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output and the flat gradient (R, P) of replicas whose parameters lie as in training."""
    turned = {f"{path}.weight".removeprefix(".") for path, part in tower.named_modules() if isinstance(part, nn.Linear)}
    layout = Layout({name: tuple(value.shape) for name, value in tower.named_parameters()}, frozenset(turned))
    forward = batched_forward(tower)
    assert forward is not None
    leaves = {name: part.detach().requires_grad_() for name, part in layout.stored(padded(theta)).items()}
    params = {name: leaves[name].mT if name in turned else leaves[name] for name in layout.shapes}
    output = forward(params, samples)
    grads = torch.autograd.grad(output, list(leaves.values()), grad_output)
    return output.detach(), torch.cat([grad.flatten(1) for grad in grads], 1)


def padded(theta: Tensor) -> Tensor:
    return nn.functional.pad(theta, (0, -theta.shape[1] % 16))


@pytest.mark.parametrize(
    ("name", "options", "batch", "dim"),
    [
        ("patch_transformer", {"patch": 2, "width": 16, "heads": 4}, 32, 16),
        ("patch_transformer", {"patch": 1, "width": 4, "heads": 1, "depth": 2}, 15, 11),
        ("patch_transformer", {"patch": 2, "width": 15, "heads": 3, "mlp_ratio": 3}, 13, 12),
        ("token_transformer", {"width": 12, "heads": 2, "depth": 2}, 32, 7),
        ("token_transformer", {"width": 6, "heads": 1, "depth": 2}, 13, 9),
        ("token_transformer", {"width": 7, "heads": 1, "mlp_ratio": 3}, 6, 8),
        ("patch_transformer", {"patch": 2, "width": 16, "heads": 4, "qk_norm": True, "norm": "post"}, 32, 16),
        ("token_transformer", {"width": 6, "heads": 2, "depth": 2, "qk_norm": True}, 13, 9),
        ("token_transformer", {"width": 15, "heads": 3, "norm": "post"}, 13, 9),
        ("mlp", {"width": 16, "depth": 1}, 17, 7),
        ("mlp", {"width": 6, "depth": 2}, 13, 9),
    ],
)
def test_a_replica_gets_the_same_bits_among_any_others_in_any_place(name, options, batch, dim):
    """Also where what a replica has does not fill whole lines of the cache, and matrices begin within one."""
    generator = torch.Generator().manual_seed(0)
    modality = Modality((9,), vocabulary=7) if name == "token_transformer" else Modality((3, 6, 6))
    tower = encoder[name](modality, dim, **options)
    theta = torch.randn(16, sum(value.numel() for value in tower.parameters()), generator=generator) * 0.3
    samples = (
        torch.randint(0, 7, (16, batch, 9), generator=generator)
        if name == "token_transformer"
        else torch.randn(16, batch, 3, 6, 6, generator=generator)
    )
    slope = torch.randn(16, batch, dim, generator=generator)
    everything = gradient_of(tower, theta, samples, slope)
    for few in ([0, 1], [5, 15], [15, 3], [3, 14, 15], [7, 7, 2]):
        for found, all_of_it in zip(gradient_of(tower, theta[few], samples[few], slope[few]), everything, strict=True):
            assert torch.equal(found, all_of_it[few]), few


@pytest.mark.parametrize("curve", [nn.ELU(), nn.SiLU(inplace=True), nn.Softplus(), nn.Sigmoid(), nn.Tanh(), nn.GELU()])
def test_the_curve_of_a_number_does_not_depend_on_where_it_lies(curve):
    generator = torch.Generator().manual_seed(0)
    tower = nn.Sequential(nn.Linear(3, 7), curve, nn.Linear(7, 5))
    theta = torch.randn(16, 28 + 40, generator=generator)
    samples, slope = (torch.randn(16, 9, size, generator=generator) for size in (3, 5))
    everything = gradient_of(tower, theta, samples, slope)
    for few in ([0, 1], [5, 15], [15, 3], [3, 14, 15]):
        for found, all_of_it in zip(gradient_of(tower, theta[few], samples[few], slope[few]), everything, strict=True):
            assert torch.equal(found, all_of_it[few]), few
