"""Mixtures of the softmax and the sigmoid loss; all are this project's own, no published source is known."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stability.losses.registry import Scalar, loss
from stability.losses.sigmoid import siglip, siglip_chance
from stability.losses.softmax import clip, clip_chance


def hybrid_chance(batch_size: int, mix: float = 0.5) -> float:
    """Return the mixture of both chance levels at the default mix."""
    return (1 - mix) * clip_chance(batch_size) + mix * siglip_chance(batch_size)


@loss(log_scale=Scalar(math.log(10.0)), bias=Scalar(-10.0), chance=hybrid_chance)
def hybrid(image: Tensor, text: Tensor, *, log_scale: Tensor, bias: Tensor, mix: float = 0.5) -> Tensor:
    """Weighted mean of CLIP's and SigLIP's losses at one shared scale; nats per image.

    L = (1 - mix) clip(t) + mix siglip(t, b), for (B, D) inputs with unit rows; mix = 0 and mix = 1 are its parts.
    Chance is the same mixture of their chance levels, at mix = 1/2. This project's own: no published source is known.

    Args:
        image, text: unit rows (B, D); row i of both is a match.
        log_scale: log t, a scalar.
        bias: b, a scalar added to every logit.
        mix: weight of SigLIP's loss, in [0, 1].
    """
    softmax_part = clip(image, text, log_scale=log_scale)
    return (1 - mix) * softmax_part + mix * siglip(image, text, log_scale=log_scale, bias=bias)


@loss(
    log_scale=Scalar(math.log(10.0)),
    sigmoid_log_scale=Scalar(math.log(10.0)),
    bias=Scalar(-10.0),
    chance=hybrid_chance,
)
def hybrid_separate(
    image: Tensor, text: Tensor, *, log_scale: Tensor, sigmoid_log_scale: Tensor, bias: Tensor, mix: float = 0.5
) -> Tensor:
    """Weighted mean of CLIP's and SigLIP's losses, each at a trained scale of its own; nats per image.

    L = (1 - mix) clip(t) + mix siglip(t', b), t = exp(log_scale), t' = exp(sigmoid_log_scale), for (B, D) inputs with
    unit rows; equal scales give `hybrid`. Chance as there. This project's own: no published source is known.

    Args:
        image, text: unit rows (B, D); row i of both is a match.
        log_scale: log t of CLIP's part.
        sigmoid_log_scale: log t of SigLIP's part.
        bias: b of SigLIP's part.
        mix: weight of SigLIP's part, in [0, 1].
    """
    softmax_part = clip(image, text, log_scale=log_scale)
    return (1 - mix) * softmax_part + mix * siglip(image, text, log_scale=sigmoid_log_scale, bias=bias)


def init_skill(available: int) -> dict[str, Tensor]:
    """Return the state of `adaptive` before training: a skill of 0."""
    return {"skill": torch.zeros(())}


@loss(log_scale=Scalar(math.log(10.0)), bias=Scalar(-10.0), chance=clip_chance, state=init_skill)
def adaptive(
    image: Tensor,
    text: Tensor,
    *,
    log_scale: Tensor,
    bias: Tensor,
    state: dict[str, Tensor],
    momentum: float = 0.99,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted mean of CLIP's and SigLIP's losses; SigLIP's weight is a running accuracy; nats per image.

    L = (1 - a) clip(t) + a siglip(t, b), for (B, D) inputs with unit rows. a is the running skill before this batch:
    a <- momentum a + (1 - momentum) k, k = max(0, (B p - 1) / (B - 1)), where p is the mean softmax
    probability of the matches, over both directions; k is 0 at chance and 1 where every match is certain. No gradient
    flows through a. State: {"skill": ()}, from 0. Chance is log B: uninformative embeddings have a = 0.
    This project's own: no published source is known.

    Args:
        image, text: unit rows (B, D); row i of both is a match.
        log_scale: log t, a scalar.
        bias: b, a scalar added to every logit.
        state: "skill", the weight of SigLIP's loss, a scalar.
        momentum: of the running mean of the skill, in [0, 1).
    """
    logits = (log_scale.exp() * image @ text.T).detach()
    certainty = torch.diagonal(logits.softmax(-1) + logits.softmax(-2)).mean() / 2
    batch_skill = ((len(image) * certainty - 1) / (len(image) - 1)).clamp(min=0)
    skill = state["skill"]
    value = (1 - skill) * clip(image, text, log_scale=log_scale)
    value = value + skill * siglip(image, text, log_scale=log_scale, bias=bias)
    return value, {"skill": (momentum * skill + (1 - momentum) * batch_skill).to(skill.dtype)}
