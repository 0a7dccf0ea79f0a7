"""How hard a loss pulls on its scalars: the closed form at the start, and autograd by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from stability.losses import clip, siglip
from stability.probes import Replica, probe
from stability.registry import InputError
from stability.study import parse_study


def replica(objective, params, image, text):
    return Replica(
        params=params,
        objective=objective,
        embed_image=None,
        embed_text=None,
        embed_extra_modalities=None,
        held_out=None,
        batches={"image": image, "text": text},
        preconditioner={},
        learning_rate=torch.tensor(0.1, dtype=torch.float64),
        constant_rate=True,
    )


def towers(size=16, count=400, batch_size=64, bias=0.0, log_scale=2.3):
    """Return parameters and batches whose embeddings point in random directions: identities on Gaussian vectors."""
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(2, count, batch_size, size, generator=generator, dtype=torch.float64)
    eye, scalar = torch.eye(size, dtype=torch.float64), lambda x: torch.tensor(x, dtype=torch.float64)
    return {"image.w": eye, "text.w": eye, "loss.bias": scalar(bias), "loss.log_scale": scalar(log_scale)}, image, text


def embed(params, batch):
    return (F.normalize(batch[side] @ params[f"{side}.w"], dim=-1) for side in ("image", "text"))


def by_siglip(params, batch):
    return siglip(*embed(params, batch), log_scale=params["loss.log_scale"], bias=params["loss.bias"])


def by_clip(params, batch):
    return clip(*embed(params, batch), log_scale=params["loss.log_scale"])


@pytest.mark.parametrize("batch_size", [8, 32, 64])
def test_random_embeddings_pull_on_a_bias_of_zero_with_half_the_batch_less_one_at_any_temperature(batch_size):
    for log_scale in (0.0, 2.3):
        found = probe["scalar_gradients"](replica(by_siglip, *towers(batch_size=batch_size, log_scale=log_scale)))
        assert_close(found["bias_gradient"].item(), batch_size / 2 - 1, rtol=0.02, atol=0.1)


def test_a_bias_of_minus_ten_is_pulled_up_by_the_positives_almost_alone():
    found = probe["scalar_gradients"](replica(by_siglip, *towers(bias=-10.0, log_scale=0.0)))
    # (B - 1) sigmoid(c - 10) - sigmoid(10 - c) for cosines c near 0
    assert_close(found["bias_gradient"].item(), 63 * 4.54e-5 - 1, rtol=2e-3, atol=0)
    assert found["bias_gradient_size"] == -found["bias_gradient"]


def test_gradients_are_those_of_the_mean_loss_by_autograd():
    params, image, text = towers(count=3, batch_size=8, bias=-2.0)
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    losses = [by_siglip(leaves, {"image": image[k], "text": text[k]}) for k in range(3)]
    torch.stack(losses).mean().backward()
    found = probe["scalar_gradients"](replica(by_siglip, params, image, text))
    assert_close(found["bias_gradient"], leaves["loss.bias"].grad)
    assert_close(found["log_scale_gradient"], leaves["loss.log_scale"].grad)
    squares = leaves["image.w"].grad.pow(2).sum() + leaves["text.w"].grad.pow(2).sum()
    assert_close(found["tower_gradient_size"], squares.sqrt())


def test_a_loss_without_a_bias_has_no_gradient_on_one():
    params, image, text = towers(count=2, batch_size=4)
    del params["loss.bias"]
    found = probe["scalar_gradients"](replica(by_clip, params, image, text))
    assert found["bias_gradient"].isnan()
    assert found["bias_gradient_size"].isnan()
    assert found["log_scale_gradient"].isfinite()


@pytest.mark.parametrize("at", ["", "at = [0.5]", "at = [0.0]", "every = 4"])
def test_what_a_claim_reads_at_its_first_step_is_measured_there(tiny_text, at):
    tiny_text = tiny_text.replace('"siglip-log-b"]', '"siglip-log-b", "siglip"]', 1)
    claims = tiny_text.index("[[claims]]")
    claim = """[[claims]]
id = "first"
text = "T"
measure = "tower_gradient_size"
contrast = "difference"
reduction = "first"
compare = ["siglip-log-b", "siglip"]
expect = "lower"
margin = 0.1

"""
    text = tiny_text[:claims] + f"[probes.scalar_gradients]\n{at}\n\n{claim}" + tiny_text[claims:]
    if at in ("at = [0.0]", "every = 4"):
        assert parse_study(text, "t", "t").claims[0].reduction == "first"
        return
    with pytest.raises(
        InputError, match=r"t: claims\[0\]\.reduction: probes\.scalar_gradients does not measure before"
    ):
        parse_study(text, "t", "t")
