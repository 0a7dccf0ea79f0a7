"""Towers: shapes, no coupling between samples, two derivatives, and words for options that do not fit."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call, grad, jvp
from torch.testing import assert_close

from stability.encoders import Modality, encoder
from stability.registry import InputError

IMAGE, TEXT = Modality((1, 8, 8)), Modality((6,), vocabulary=11)


def built(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """Return the tower, in float64, and a batch of 5 that it reads."""
    torch.manual_seed(0)
    if encoder[name].traits["modality"] == "text":
        return encoder[name](TEXT, 4).double(), torch.randint(0, 11, (5, 6))
    return encoder[name](IMAGE, 4).double(), torch.randn(5, 1, 8, 8, dtype=torch.float64)


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


@pytest.mark.parametrize(
    ("name", "modality", "options", "sentence"),
    [
        ("patch-transformer", IMAGE, {"patch": 3}, r"patch = 3 does not tile images of shape \(1, 8, 8\)"),
        ("patch-transformer", IMAGE, {"heads": 5}, "heads = 5 does not divide width = 32"),
        ("token-transformer", TEXT, {"heads": 7}, "heads = 7 does not divide width = 32"),
        ("mlp", TEXT, {}, "reads real-valued input, and this modality is token ids"),
    ],
)
def test_options_that_do_not_fit_are_explained(name, modality, options, sentence):
    with pytest.raises(InputError, match=sentence):
        encoder[name](modality, 4, **options)
