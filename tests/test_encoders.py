"""Towers: shapes, no coupling between samples, two derivatives, and words for options that do not fit."""

from __future__ import annotations

import pytest
import torch
from device_cases import study_text
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional as F
from torch.testing import assert_close

from stability.encoders import Modality, encoder
from stability.encoders.limits import MOST_TENSORS, TowerTooLargeError, check_size, limited_size
from stability.encoders.validation import check_tower
from stability.registry import InputError
from stability.study import parse_study

IMAGE, TEXT, IDS = Modality((1, 8, 8)), Modality((6,), vocabulary=11), Modality((1,), vocabulary=11)


def built(name: str, **options: object) -> tuple[torch.nn.Module, torch.Tensor]:
    """Return the tower, in float64, and a batch of 5 that it reads."""
    torch.manual_seed(0)
    if name == "free_vectors":
        return encoder[name](IDS, 4, **options).double(), torch.randint(0, 11, (5, 1))
    if encoder[name].traits.modality == "text":
        return encoder[name](TEXT, 4, **options).double(), torch.randint(0, 11, (5, 6))
    return encoder[name](IMAGE, 4, **options).double(), torch.randn(5, 1, 8, 8, dtype=torch.float64)


@pytest.mark.parametrize("name", sorted(encoder))
def test_a_sample_is_embedded_the_same_whatever_else_is_in_the_batch(name):
    tower, batch = built(name)
    whole = tower(batch)
    assert whole.shape == (5, 4)
    assert_close(tower(batch[2:3]), whole[2:3])


@pytest.mark.parametrize("name", sorted(encoder))
def test_every_tower_has_two_derivatives(name):
    tower, batch = built(name)
    params = {key: value.detach() for key, value in tower.named_parameters()}

    def energy(p):
        return functional_call(tower, p, batch).square().sum()

    direction = {key: torch.randn_like(value) for key, value in params.items()}
    _, product = jvp(grad(energy), (params,), (direction,))
    # The directional derivative of the gradient against a central difference of gradients.
    step = 1e-5
    ahead, behind = (grad(energy)({k: v + sign * step * direction[k] for k, v in params.items()}) for sign in (1, -1))
    for key in params:
        assert_close(product[key], (ahead[key] - behind[key]) / (2 * step), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(encoder))
def test_every_tower_under_vmap_equals_a_loop_over_weights(name):
    towers, batches = zip(*(built(name) for _ in range(3)), strict=True)
    params = [
        {key: value.detach() * (1 + place) for key, value in t.named_parameters()} for place, t in enumerate(towers)
    ]
    stacked = {key: torch.stack([one[key] for one in params]) for key in params[0]}
    together = vmap(lambda p, batch: functional_call(towers[0], p, batch))(stacked, torch.stack(batches))
    apart = [functional_call(towers[0], p, batch) for p, batch in zip(params, batches, strict=True)]
    assert_close(together, torch.stack(apart))


@pytest.mark.parametrize("name", sorted(encoder))
def test_every_tower_can_be_locked_without_changing_its_weights(name):
    free, frozen = built(name)[0], built(name, frozen=True)[0]
    assert all(value.requires_grad for value in free.parameters())
    assert not any(value.requires_grad for value in frozen.parameters())
    assert_close(dict(free.named_parameters()), dict(frozen.named_parameters()), rtol=0, atol=0)


@pytest.mark.parametrize("name", sorted(encoder))
def test_what_a_tower_wants_reprojected_is_a_parameter_with_unit_rows(name):
    tower, _ = built(name)
    params = dict(tower.named_parameters())
    for renormalized in getattr(tower, "renormalized", ()):
        norms = params[renormalized].norm(dim=-1)
        assert_close(norms, torch.ones_like(norms), rtol=1e-6, atol=1e-6)


def test_free_vectors_are_looked_up_by_id_and_reprojected_only_on_demand():
    tower, _ = built("free_vectors")
    assert_close(tower(torch.tensor([[3], [0], [3]])), tower.vectors[[3, 0, 3]])
    assert tower.renormalized == ("vectors",)
    assert built("free_vectors", renormalized=False)[0].renormalized == ()


def test_free_vectors_start_uniform_on_the_sphere():
    """Of a uniform unit vector, each coordinate has mean 0 and square 1/D, and in 3 dimensions is uniform itself."""
    torch.manual_seed(0)
    vectors = encoder["free_vectors"](Modality((1,), vocabulary=20_000), 3).vectors.detach()
    assert_close(vectors.mean(0), torch.zeros(3), rtol=0, atol=0.02)
    assert_close(vectors.T @ vectors / 20_000, torch.eye(3) / 3, rtol=0, atol=0.02)
    height = vectors[:, 2].sort().values
    assert_close(height, torch.linspace(-1, 1, 20_000), rtol=0, atol=0.03)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 6), (1, 3)])
def test_a_convolution_equals_torch_s_own(height, width):
    from stability.encoders.convolutions import Convolution

    ours = Convolution(2, 7).double()
    x = torch.randn(3, 2, height, width, dtype=torch.float64)
    theirs = F.conv2d(x, ours.linear.weight.reshape(7, 2, 3, 3), ours.linear.bias, stride=2, padding=1)
    assert_close(ours(x), theirs)


def test_patches_are_cut_row_by_row():
    from stability.encoders.transformers import Patches

    cut = Patches(1, 4, 16)
    torch.nn.init.eye_(cut.linear.weight)
    torch.nn.init.zeros_(cut.linear.bias)
    image = torch.arange(64.0).reshape(1, 1, 8, 8)
    assert_close(cut(image)[0, 1], image[0, 0, :4, 4:].reshape(-1))
    assert_close(cut(image)[0, 2], image[0, 0, 4:, :4].reshape(-1))


def test_attention_equals_torch_s_own():
    from stability.encoders.transformers import Attention

    ours = Attention(8, 2).double()
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True).double()
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.query_key_value.weight.detach(),
            "in_proj_bias": ours.query_key_value.bias.detach(),
            "out_proj.weight": ours.out.weight.detach(),
            "out_proj.bias": ours.out.bias.detach(),
        }
    )
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    assert_close(ours(x), theirs(x, x, x, need_weights=False)[0])


TRANSFORMERS = ("patch_transformer", "token_transformer")


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_norm_of_a_block_is_where_its_option_says(name):
    """The block written out, with parameters that are the same for both places of the norm."""
    pre, batch = built(name, depth=2)
    post, _ = built(name, depth=2, norm="post")
    assert_close(dict(pre.named_parameters()), dict(post.named_parameters()), rtol=0, atol=0)
    x = pre.embed(batch) + pre.position
    by_norm = {"pre": x, "post": x}
    for block in pre.blocks:
        attention, norms = block.attention, (block.attention_norm, block.mlp_norm)
        for part, norm in zip((attention, lambda x, b=block: b.contract(F.gelu(b.expand(x)))), norms, strict=True):
            x, y = by_norm.values()
            by_norm = {"pre": x + part(norm(x)), "post": norm(y + part(y))}
    for tower, expected in zip((pre, post), by_norm.values(), strict=True):
        assert_close(tower(batch), pre.project(pre.norm(expected).mean(-2)))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_norms_of_queries_and_keys_bound_the_logits_and_leave_other_weights(name):
    plain, batch = built(name)
    normed, _ = built(name, qk_norm=True)
    params = dict(normed.named_parameters())
    added = {key: params.pop(key) for key in [*params] if "query_norm" in key or "key_norm" in key}
    assert {key: tuple(value.shape) for key, value in added.items()} == {
        f"blocks.0.attention.{side}_norm.{kind}": (8,) for side in ("query", "key") for kind in ("weight", "bias")
    }
    assert_close(params, dict(plain.named_parameters()), rtol=0, atol=0)
    x = 1000 * (plain.embed(batch) + plain.position)
    query, key, _ = plain.blocks[0].attention.query_key_value(x).unflatten(-1, (3, 4, 8)).unbind(-3)
    query, key = (F.layer_norm(rows, (8,)).transpose(-2, -3) for rows in (query, key))
    logits = normed.blocks[0].attention.logits(x)
    assert_close(logits, query @ key.mT / 8**0.5)
    assert logits.abs().max() <= 8**0.5
    assert plain.blocks[0].attention.logits(x).abs().max() > 1000


@pytest.mark.parametrize("options", [{"qk_norm": True}, {"norm": "post"}, {"qk_norm": True, "norm": "post"}])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_transformer_with_other_norms_trains_like_any_tower(name, options):
    modality = TEXT if name == "token_transformer" else IMAGE
    check_tower(encoder[name](modality, 4, **options), modality, 4)


def test_a_study_whose_heads_do_not_divide_a_width_is_refused_when_it_is_read(tiny_text):
    text = tiny_text.split("[[claims]]")[0].replace("heads = 1", "heads = 4")
    text = text.replace("[grid]", '[grid]\n"model.*.width" = [16, 30]')
    with pytest.raises(InputError, match="heads = 4 does not divide width = 30"):
        parse_study(text, "t.toml", "t")


@pytest.mark.parametrize(
    ("name", "modality", "options", "sentence"),
    [
        ("patch_transformer", IMAGE, {"qk_norm": True, "width": 4}, "qk_norm needs heads of width 2 or more"),
        ("token_transformer", TEXT, {"norm": "peri"}, r"norm: unknown 'peri' \(known: post, pre\)"),
        ("patch_transformer", IMAGE, {"patch": 3}, r"patch = 3 does not tile images of shape \(1, 8, 8\)"),
        ("patch_transformer", IMAGE, {"heads": 5}, "heads = 5 does not divide width = 32"),
        ("token_transformer", TEXT, {"heads": 7}, "heads = 7 does not divide width = 32"),
        ("mlp", TEXT, {}, "reads real-valued input, and this modality is token ids"),
        ("free_vectors", TEXT, {}, r"reads one id a sample, and this modality is token ids of shape \(6,\)"),
        ("free_vectors", IMAGE, {}, r"reads one id a sample, and this modality is real values of shape \(1, 8, 8\)"),
        ("conv", Modality((5,)), {}, r"reads images \(C, H, W\), and this modality has shape \(5,\)"),
    ],
)
def test_options_that_do_not_fit_are_explained(name, modality, options, sentence):
    with pytest.raises(InputError, match=sentence):
        encoder[name](modality, 4, **options)


@pytest.mark.parametrize("name", sorted(encoder))
def test_gradients_of_many_replicas_are_those_of_each_and_every_step_has_a_batching_rule(name):
    """Warnings are errors here: a missing rule would make vmap fall back to a slow loop."""
    tower, batch = built(name)
    params = {key: value.detach() for key, value in tower.named_parameters()}
    stacked = {key: torch.stack([value, 1.1 * value]) for key, value in params.items()}

    def energy(p):
        return functional_call(tower, p, batch).square().sum()

    leaves = {key: value.requires_grad_() for key, value in stacked.items()}
    together = torch.autograd.grad(torch.func.vmap(energy)(leaves).sum(), list(leaves.values()))
    for replica in range(2):
        alone = grad(energy)({key: value.detach()[replica] for key, value in stacked.items()})
        for value, expected in zip(together, alone.values(), strict=True):
            assert_close(value[replica], expected)


# --- too large a tower --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("width", 10**9, "it has [0-9,]+ parameters or more; allowed: at most"),
        ("depth", 10**9, "it has (more than|[0-9,]+ parameters or more)"),
        ("width", 10**30, "cannot be built: "),
        ("depth", 10**30, "(cannot be built: OverflowError|it has more than)"),
    ],
)
@pytest.mark.parametrize("tower", ["mlp", "patch_transformer"])
def test_a_tower_that_no_memory_holds_is_refused_at_load_in_one_sentence(key, value, sentence, tower):
    text = study_text(image=f'{{ name = "{tower}", {key} = {value} }}')
    with pytest.raises(InputError, match=rf"^t\.toml: model\.image: encoder '{tower}':? {sentence}") as caught:
        parse_study(text, "t.toml", "t")
    assert "\n" not in str(caught.value)


def test_the_limit_holds_for_an_axis_and_for_the_embeddings_too():
    axis = study_text(grid='noise = [0.5]\n"model.*.width" = [8, 1000000000]')
    with pytest.raises(InputError, match=r"where model\.\*\.width = 1000000000.*parameters or more"):
        parse_study(axis, "t.toml", "t")
    with pytest.raises(InputError, match=r"parameters or more"):
        parse_study(study_text().replace("embed_dim = 4", "embed_dim = 1000000000"), "t.toml", "t")


def test_a_tower_as_large_as_the_memory_allows_is_built():
    with limited_size(32 * 110):
        nn.Linear(10, 10)
    with pytest.raises(TowerTooLargeError), limited_size(32 * 109):
        nn.Linear(10, 10)
    nn.Linear(10, 10)  # no limit after the block
    with pytest.raises(TowerTooLargeError):
        check_size(lambda: nn.ModuleList(nn.Linear(1, 1) for _ in range(MOST_TENSORS)), 2**40)
