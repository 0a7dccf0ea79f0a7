"""Losses that normalize over the batch: each row and each column of the logits is a classification problem."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from stability.losses.batched import clip_kernel
from stability.losses.fused import clip_sum_tiled, is_large
from stability.losses.logits import scaled, scaled_similarities, soft_capped, symmetrize
from stability.losses.registry import Scalar, loss


def clip_chance(batch_size: int, z_loss: float = 0.0, logit_cap: float = math.inf) -> float:
    """Return log B, the loss of uninformative embeddings, plus what the z-loss has left at the best constant logit.

    Where all logits are l, log Z = l + log B, which vanishes at l = -log B unless the cap keeps l above.

    >>> clip_chance(8, z_loss=0.1) == math.log(8), clip_chance(8, z_loss=0.1, logit_cap=1.0) > math.log(8)
    (True, True)
    """
    return math.log(batch_size) + z_loss * max(0.0, math.log(batch_size) - logit_cap) ** 2


@loss(
    log_scale=Scalar(math.log(10.0)),
    chance=clip_chance,
    value_and_grad=clip_kernel,
    least={"z_loss": 0.0, "logit_cap": 1e-3},
)
def clip(
    image: Tensor,
    text: Tensor,
    *,
    log_scale: Tensor,
    label_smoothing: float = 0.0,
    max_scale: float = math.inf,
    z_loss: float = 0.0,
    logit_cap: float = math.inf,
) -> Tensor:
    """InfoNCE over the batch, averaged over both directions (CLIP); nats per pair.

    L = -1/(2B) sum_i [log softmax_j(l_ij)_i + log softmax_j(l_ji)_i] with l = t <image_i, text_j>, t = exp(log_scale),
    for (B, D) inputs with unit rows. Chance is log B. t starts at 10, as in SigLIP's own comparison (CLIP: 1/.07).
    *label_smoothing* e moves the target from the match towards all B rows uniformly, 1 - e + e/B on the match (ALIGN,
    arXiv:2102.05918: e = 0.1). *max_scale* clamps t inside the loss (CLIP clamps the parameter at 100).
    *logit_cap* c replaces l by c tanh(l / c) (Gemma 2, arXiv:2408.00118, Sec. 2). *z_loss* adds that many times the
    mean of (log Z)^2, Z = sum_j e^l_ij, over rows and both directions: the softmax leaves a constant that is added to
    all logits of a row undetermined, and this keeps it from drifting (PaLM, arXiv:2204.02311, Sec. 5, with 1e-4). With
    both, chance is higher by z_loss max(0, log B - c)^2.
    Radford et al. (2021), arXiv:2103.00020, Fig. 3; Zhai et al. (2023), arXiv:2303.15343, Sec. 3.1. Checked against
    the source of OpenCLIP (``ClipLoss``) and, with smoothing, against torch's ``cross_entropy``.
    A large batch is computed tile by tile, with O(B) memory, unless it has a z-loss or a cap: see
    `stability.losses.fused`.

    Args:
        image, text: unit rows (B, D); row i of both is a match.
        log_scale: log t, a scalar.
        label_smoothing: e, in [0, 1].
        max_scale: largest t.
        z_loss: weight of the mean squared log Z; at least 0.
        logit_cap: c, the bound on |logits|; positive.

    >>> clip(torch.zeros(4, 3), torch.zeros(4, 3), log_scale=torch.tensor(0.0)) / math.log(4)
    tensor(1.)
    """
    rows = scaled(image, log_scale, max_scale)
    if is_large(image) and not z_loss and logit_cap == math.inf:
        # The smoothing term of rows and columns is the same: the mean of all matches less the mean of all logits.
        smoothed = label_smoothing * ((rows * text).sum(-1).mean() - rows.mean(0) @ text.mean(0))
        return clip_sum_tiled(rows, text) / 2 / len(image) + smoothed
    one_way = partial(_cross_entropy, smoothing=label_smoothing, z_loss=z_loss)
    return symmetrize(one_way, soft_capped(rows @ text.T, logit_cap))


def _cross_entropy(logits: Tensor, smoothing: float = 0.0, z_loss: float = 0.0) -> Tensor:
    log_sums = torch.logsumexp(logits, -1)
    rows = log_sums - torch.diagonal(logits)
    if smoothing:  # otherwise skip the mean over all logits and its gradient
        rows = rows + smoothing * (torch.diagonal(logits) - logits.mean(-1))
    if z_loss:
        rows = rows + z_loss * log_sums.square()
    return rows.mean()


@loss(log_scale=Scalar(math.log(10.0)), chance=clip_chance)
def cyclip(
    image: Tensor, text: Tensor, *, log_scale: Tensor, in_modal: float = 0.25, cross_modal: float = 0.25
) -> Tensor:
    """CLIP's loss plus penalties on similarities that differ by modality or direction (CyCLIP); nats per pair.

    L = clip + in_modal/B sum_ij (<image_i, image_j> - <text_i, text_j>)^2
    + cross_modal/B sum_ij (<image_i, text_j> - <image_j, text_i>)^2, for (B, D) inputs with unit rows; t scales the
    first term only. Chance is log B, where all similarities agree. Goel et al. (2022), arXiv:2205.14459. Checked
    against the authors' code (``src/train.py``: B times the mean square, t divided out) and README (both weights .25).

    Args:
        image, text: unit rows (B, D); row i of both is a match.
        log_scale: log t, a scalar.
        in_modal: weight of the difference between similarities within images and within texts.
        cross_modal: weight of the difference between the two directions.

    >>> clip(*torch.eye(4).view(2, 2, 4), log_scale=torch.tensor(0.0)) == math.log(2)
    tensor(True)
    >>> cyclip(*torch.eye(4).view(2, 2, 4), log_scale=torch.tensor(0.0)) == math.log(2)
    tensor(True)
    """
    similarities = image @ text.T
    in_modal_term = (image @ image.T - text @ text.T).square().sum() / len(image)
    cross_modal_term = (similarities - similarities.T).square().sum() / len(image)
    contrastive = symmetrize(_cross_entropy, log_scale.exp() * similarities)
    return contrastive + in_modal * in_modal_term + cross_modal * cross_modal_term


def rince_chance(batch_size: int, q: float = 0.5, weight: float = 0.01, scale: float = 10.0) -> float:
    """Return e^(q t s) ((weight B)^q - 1) / q at t = 10, the minimum over s = -1 and s = 1.

    Args:
        batch_size: B.
        q: the exponent, in (0, 1].
        weight: of all pairs against the match.
        scale: t.
    """
    return min(math.exp(q * scale * s) * ((weight * batch_size) ** q - 1) / q for s in (-1.0, 1.0))


@loss(log_scale=Scalar(math.log(10.0), trained=False), chance=rince_chance)
def rince(image: Tensor, text: Tensor, *, log_scale: Tensor, q: float = 0.5, weight: float = 0.01) -> Tensor:
    """InfoNCE with a power in place of the logarithm, in both directions (RINCE); no unit, and it may be negative.

    L = mean over rows, in both directions, of -e^(q l_ii)/q + (weight sum_j e^(l_ij))^q/q, l = t <image_i, text_j>, for
    (B, D) inputs with unit rows and 0 < q <= 1. As q -> 0, L tends to CLIP's loss plus log(weight), with CLIP's
    gradients; q = 1 is symmetric, hence robust to mismatched pairs. L is not bounded below in t, so t is fixed. Chance
    is the loss of the best constant similarity, at t = 10. Chuang et al. (2022), arXiv:2201.04309. Checked against the
    authors' published pseudo-code and code: weight (their lambda) is 0.01 there, and q from 0.1 to 0.5 is recommended.

    Args:
        image, text: unit rows (B, D); row i of both is a match.
        log_scale: log t, a scalar.
        q: the exponent, in (0, 1]; 0 is InfoNCE in the limit, 1 is symmetric.
        weight: of all pairs against the match.
    """
    one_direction = partial(_robust_row_loss, q=q, weight=weight)
    return symmetrize(one_direction, scaled_similarities(image, text, log_scale))


def _robust_row_loss(logits: Tensor, q: float, weight: float) -> Tensor:
    # With expm1 the terms 1/q cancel exactly, so the limit q -> 0 also holds in floating point.
    match = torch.expm1(q * torch.diagonal(logits))
    everything = torch.expm1(q * (torch.logsumexp(logits, -1) + math.log(weight)))
    return ((everything - match) / q).mean()
