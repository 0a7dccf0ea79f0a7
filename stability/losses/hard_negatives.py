"""Losses that weight or select pairs by their hardness."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from stability.losses.logits import off_diagonal, scaled_similarities, symmetrize
from stability.losses.registry import Scalar, loss
from stability.losses.sigmoid import siglip_chance
from stability.losses.softmax import clip_chance
from stability.registry import InputError, nearest


@loss(log_scale=Scalar(math.log(10.0)), chance=clip_chance)
def hcl(image: Tensor, text: Tensor, *, log_scale: Tensor, beta: float = 1.0, positive_share: float = 0.1) -> Tensor:
    """InfoNCE with larger weights on hard mismatches, corrected for false negatives (HCL); nats per pair.

    L = mean over rows, in both directions, of -log(p / (p + G)), p = e^(l_ii), l = t <image_i, text_j>, G = max([N
    sum_j w_j e^(l_ij) - tau N p] / (1 - tau), N e^(-t)) over the N = B - 1 mismatches j, with weights
    w = softmax_j(beta l_ij) and tau = *positive_share*, the probability of a false negative, for (B, D) inputs with
    unit rows. beta = 0 is the debiased loss of Chuang et al. (2020), arXiv:2007.00224; with tau = 0 too it is `clip`.
    Chance is log B. Robinson et al. (2021), arXiv:2010.04592, Eq. 4. Checked against the authors' code
    (``image/main.py``: beta 1, tau .1, t fixed at 2), which also takes mismatches within a modality.

    Args:
        image, text: unit rows (B, D); row i of both is a match.
        log_scale: log t, a scalar.
        beta: weight of hard mismatches; 0: all weigh the same.
        positive_share: probability that a mismatch is a false negative, in [0, 1).
    """
    scale = log_scale.exp()
    one_direction = partial(_hard_row_loss, scale=scale, beta=beta, positive_share=positive_share)
    return symmetrize(one_direction, scale * image @ text.T)


def _hard_row_loss(logits: Tensor, scale: Tensor, beta: float, positive_share: float) -> Tensor:
    # p, G and its floor are divided by e^(the row's largest logit): no overflow, and the loss is unchanged.
    mismatches = len(logits) - 1
    level = logits.detach().amax(-1)
    match = torch.exp(torch.diagonal(logits) - level)
    others = off_diagonal(logits)
    hard = mismatches * (F.softmax(beta * others, -1) * torch.exp(others - level[:, None])).sum(-1)
    debiased = (hard - positive_share * mismatches * match) / (1 - positive_share)
    floor = mismatches * torch.exp(-scale - level)
    return (torch.log(match + torch.maximum(debiased, floor)) + level - torch.diagonal(logits)).mean()


@loss(log_scale=Scalar(math.log(10.0)), bias=Scalar(-10.0), chance=siglip_chance)
def focal_sigmoid(
    image: Tensor,
    text: Tensor,
    *,
    log_scale: Tensor,
    bias: Tensor,
    step: Tensor,
    gamma: float = 1.0,
    decay_steps: int = 20_000,
) -> Tensor:
    """SigLIP's loss with focal weights that decay: less on pairs already classified correctly; nats per image.

    L = 1/B sum_ij sigmoid(-z_ij l_ij)^g softplus(-z_ij l_ij), z = +1 on the diagonal and -1 elsewhere, l = t
    <image_i, text_j> + b, for (B, D) inputs with unit rows; g decays from *gamma* to 0 along half a cosine over
    *decay_steps* steps (0: it is constant); then the loss is `siglip`, whose chance level is used. Gradients flow
    through the weights. Lin et al. (2017), arXiv:1708.02002, Eq. 4, on SigLIP's pairs, with the schedule of Basara
    (2024). Checked against the latter's code (filipbasara0/sigmoid-contrastive-loss, ``scl/scl.py`` and ``train.py``),
    which starts at t = 5, b = -5 and clamps t at 5.

    Args:
        image, text: unit rows (B, D); row i of both is a match.
        log_scale: log t, a scalar.
        bias: b, a scalar added to every logit.
        step: the training step.
        gamma: initial exponent of the weights.
        decay_steps: steps until the exponent is 0; 0: it is constant.
    """
    progress = (step / decay_steps).clamp(max=1.0) if decay_steps else torch.zeros_like(log_scale)
    power = gamma * (1 + torch.cos(math.pi * progress)) / 2
    logits = scaled_similarities(image, text, log_scale) + bias
    sign = 2 * torch.eye(len(image), dtype=image.dtype, device=image.device) - 1
    cost = F.softplus(-sign * logits)
    weight = torch.exp(-power * F.softplus(sign * logits))
    return (weight * cost).sum() / len(image)


def siglip_masked_chance(batch_size: int, ratio: float = 4.0) -> float:
    """Return log(1 + r) + r log(1 + 1/r), the loss of the best constant logit with r kept mismatches per match."""
    kept = _kept(batch_size, ratio) / batch_size
    return math.log1p(kept) + kept * math.log1p(1 / kept)


@loss(log_scale=Scalar(math.log(10.0)), bias=Scalar(-10.0), chance=siglip_masked_chance)
def siglip_masked(
    image: Tensor,
    text: Tensor,
    *,
    log_scale: Tensor,
    bias: Tensor,
    uniform: Tensor,
    keep: Literal["random", "hard", "easy"] = "random",
    ratio: float = 4.0,
) -> Tensor:
    """SigLIP's loss on all matches and a part of the batch's mismatches, random, hard or easy; nats per image.

    L = 1/B [sum_i softplus(-l_ii) + sum_{(i, j) kept} softplus(l_ij)], l = t <image_i, text_j> + b, for (B, D) inputs
    with unit rows. Kept are round(ratio B) of the B (B - 1) mismatches of the whole batch (at least 1): those of the
    smallest *uniform* (B, B), or those with the largest (hard) or smallest loss (easy). Chance is that of the default
    ratio; with all mismatches kept this is `siglip`. Zhai et al. (2023), arXiv:2303.15343, Sec. 4.8 (ratios from 16k to
    1.6); the paper does not state that the selection is over the whole batch: that is our interpretation.

    Args:
        image, text: unit rows (B, D); row i of both is a match.
        log_scale: log t, a scalar.
        bias: b, a scalar added to every logit.
        uniform: independent numbers (B, B) in [0, 1) that order random choices.
        keep: the mismatches kept: "random", "hard" (largest loss first) or "easy" (smallest first).
        ratio: number of mismatches kept for each match, over the batch.
    """
    logits = scaled_similarities(image, text, log_scale) + bias
    mismatches = off_diagonal(logits).flatten()
    ranks = {"random": -off_diagonal(uniform).flatten(), "hard": mismatches.detach(), "easy": -mismatches.detach()}
    if keep not in ranks:
        raise InputError(f"keep: unknown {keep!r}{nearest(keep, ranks)}")
    kept = mismatches.gather(0, ranks[keep].topk(_kept(len(image), ratio)).indices)
    return (F.softplus(-torch.diagonal(logits)).sum() + F.softplus(kept).sum()) / len(image)


def clip_masked_chance(batch_size: int, ratio: float = 4.0) -> float:
    """Return log(1 + r), the loss of equal logits among a match and its r kept mismatches."""
    return math.log1p(_kept_in_row(batch_size, ratio))


@loss(log_scale=Scalar(math.log(10.0)), chance=clip_masked_chance)
def clip_masked(
    image: Tensor,
    text: Tensor,
    *,
    log_scale: Tensor,
    uniform: Tensor,
    keep: Literal["random", "hard", "easy"] = "random",
    ratio: float = 4.0,
) -> Tensor:
    """CLIP's loss with a part of each row's mismatches in the denominator, random, hard or easy; nats per pair.

    L = mean over rows i, in both directions, of -log(e^(l_ii) / (e^(l_ii) + sum_{j kept} e^(l_ij))), l = t
    <image_i, text_j>, for (B, D) inputs with unit rows. Kept are round(ratio) of the B - 1 mismatches of each row (at
    least 1): those of the smallest *uniform* (B, B), or those with the largest (hard) or the smallest logit (easy).
    Chance is that of the default ratio; with all mismatches kept this is `clip`. This project's own counterpart of
    `siglip_masked`; the selection is per row, since a softmax without a mismatch carries no information.

    Args:
        image, text: unit rows (B, D); row i of both is a match.
        log_scale: log t, a scalar.
        uniform: independent numbers (B, B) in [0, 1) that order random choices.
        keep: the mismatches kept: "random", "hard" (largest logit first) or "easy" (smallest first).
        ratio: number of mismatches kept in each row.
    """
    row_loss = partial(_masked_row_loss, keep=keep, ratio=ratio)
    logits = scaled_similarities(image, text, log_scale)
    return (row_loss(logits, uniform) + row_loss(logits.T, uniform.T)) / 2


def _masked_row_loss(logits: Tensor, uniform: Tensor, keep: str, ratio: float) -> Tensor:
    mismatches = off_diagonal(logits)
    ranks = {"random": -off_diagonal(uniform), "hard": mismatches.detach(), "easy": -mismatches.detach()}
    if keep not in ranks:
        raise InputError(f"keep: unknown {keep!r}{nearest(keep, ranks)}")
    kept = mismatches.gather(-1, ranks[keep].topk(_kept_in_row(len(logits), ratio), dim=-1).indices)
    match = torch.diagonal(logits)
    return (torch.logsumexp(torch.cat([match[:, None], kept], dim=-1), -1) - match).mean()


def _kept_in_row(batch_size: int, ratio: float) -> int:
    _check_ratio(ratio)
    return min(max(round(ratio), 1), batch_size - 1)


def _kept(batch_size: int, ratio: float) -> int:
    _check_ratio(ratio)
    return min(max(round(ratio * batch_size), 1), batch_size * (batch_size - 1))


def _check_ratio(ratio: float) -> None:
    if not ratio > 0:
        raise InputError(f"ratio: got {ratio!r}; allowed: a positive number of mismatches kept for each match")


def triplet_chance(batch_size: int, margin: float = 0.2) -> float:
    """Return the margin, the loss of equal similarities."""
    return margin


@loss(chance=triplet_chance)
def triplet(image: Tensor, text: Tensor, *, margin: float = 0.2) -> Tensor:
    """Triplet loss over all triplets of the batch, in both directions; in squared distance.

    L = mean over i != j, in both directions, of max(0, margin + |image_i - text_i|^2 - |image_i - text_j|^2), for
    (B, D) inputs with unit rows, whose squared distances are 2 - 2 <image_i, text_j>. It has no scalars and is
    piecewise linear in the similarities. Chance is the margin. Schroff et al. (2015), arXiv:1503.03832, Eq. 3
    (margin .2), over all triplets of the batch instead of selected ones. Zero exactly where all gaps of similarity
    between a match and its mismatches reach margin / 2.
    """
    return symmetrize(partial(_triplet_rows, margin=margin), image @ text.T)


def _triplet_rows(similarities: Tensor, margin: float) -> Tensor:
    gap = torch.diagonal(similarities)[:, None] - off_diagonal(similarities)
    return F.relu(margin - 2 * gap).mean()
