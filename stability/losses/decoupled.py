"""Losses whose denominator omits the match; they then decrease without bound as t grows, so t is fixed."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from stability.losses.logits import off_diagonal, scaled_similarities, symmetrize
from stability.losses.registry import Scalar, loss


def dcl_chance(batch_size: int) -> float:
    """Return log(B - 1), the loss of equal similarities."""
    return math.log(batch_size - 1)


@loss(log_scale=Scalar(math.log(10.0), trained=False), chance=dcl_chance)
def dcl(image: Tensor, text: Tensor, *, log_scale: Tensor) -> Tensor:
    """InfoNCE without the match in the denominator, in both directions (DCL); nats per pair, and it may be negative.

    L = mean over rows, in both directions, of -l_ii + log sum_{j != i} e^(l_ij), l = t <image_i, text_j>, for (B, D)
    inputs with unit rows. Chance is log(B - 1). Yeh et al. (2022), arXiv:2110.06848, Eq. 5-6; mismatches are those of
    the other modality only. Checked against the code of raminnakhli/Decoupled-Contrastive-Learning (t = 10 there too),
    which sums both directions and adds the mismatches within a modality.

    >>> bool(dcl(torch.eye(3), torch.eye(3), log_scale=torch.tensor(0.0)) == math.log(2) - 1)
    True
    """
    return symmetrize(_decoupled, scaled_similarities(image, text, log_scale))


def _decoupled(logits: Tensor) -> Tensor:
    return (torch.logsumexp(off_diagonal(logits), -1) - torch.diagonal(logits)).mean()


@loss(log_scale=Scalar(math.log(10.0), trained=False), chance=dcl_chance)
def dclw(image: Tensor, text: Tensor, *, log_scale: Tensor, sigma: float = 0.5) -> Tensor:
    """Decoupled InfoNCE with larger weights on distant matches (DCLW); nats per pair, and it may be negative.

    L = mean over rows, in both directions, of -w_i l_ii + log sum_{j != i} e^(l_ij), with w_i = 2 - B
    softmax_i(s_ii / sigma), s_ii = <image_i, text_i>, l = t s, for (B, D) inputs with unit rows. The weights average 1;
    those of distant matches are larger. Gradients flow through them. Chance is log(B - 1). Yeh et al. (2022),
    arXiv:2110.06848, Sec. 3.2 (negative von Mises-Fisher weighting). The rest was checked against the code of
    raminnakhli/Decoupled-Contrastive-Learning, which omits the factor B.

    Args:
        image, text: unit rows (B, D); row i of both is a match.
        log_scale: log t, a scalar.
        sigma: temperature of the weights; the smaller, the more they differ.
    """
    match = (image * text).sum(-1)
    weight = 2 - len(image) * F.softmax(match / sigma, 0)
    logits = scaled_similarities(image, text, log_scale)
    mismatch = symmetrize(lambda rows: torch.logsumexp(off_diagonal(rows), -1).mean(), logits)
    return mismatch - (weight * log_scale.exp() * match).mean()


def infoloob_chance(batch_size: int, scale: float = 30.0) -> float:
    """Return log(B - 1) / t at t = 30, the loss of equal similarities."""
    return math.log(batch_size - 1) / scale


@loss(log_scale=Scalar(math.log(30.0), trained=False), chance=infoloob_chance)
def infoloob(
    image: Tensor, text: Tensor, *, log_scale: Tensor, hopfield: bool = False, hopfield_scale: float = 8.0
) -> Tensor:
    """InfoNCE without the match in the denominator, divided by t (InfoLOOB); in units of similarity (nats over t).

    L = 1/t mean over rows, in both directions, of -l_ii + log sum_{j != i} e^(l_ij), l = t <image_i, text_j>, for
    (B, D) inputs with unit rows. With *hopfield* each embedding is first replaced by its retrieval from the batch's
    images and texts, softmax(hopfield_scale <query, stored>) stored, normalized: one direction compares the retrievals
    of image_i and text_j from the images, the other their retrievals from the texts (CLOOB). Chance is
    log(B - 1) / t at t = 30. Fürst et al. (2022), arXiv:2110.11316, Eq. 6-8. Checked against the authors' code
    (``training/methods.py``), which sums the two directions; t = 30 and hopfield_scale = 8 are from its README, for
    Conceptual Captions.

    Args:
        image, text: unit rows (B, D); row i of both is a match.
        log_scale: log t, a scalar.
        hopfield: compare retrievals from the batch instead of the embeddings (CLOOB).
        hopfield_scale: inverse temperature of the retrieval.
    """
    if not hopfield:
        return symmetrize(_decoupled, scaled_similarities(image, text, log_scale)) / log_scale.exp()
    retrieve = partial(_retrieved, scale=hopfield_scale)
    from_images = scaled_similarities(retrieve(image, image), retrieve(text, image), log_scale)
    from_texts = scaled_similarities(retrieve(text, text), retrieve(image, text), log_scale)
    return (_decoupled(from_images) + _decoupled(from_texts)) / 2 / log_scale.exp()


def _retrieved(query: Tensor, stored: Tensor, scale: float) -> Tensor:
    return F.normalize(F.softmax(scale * query @ stored.T, -1) @ stored, dim=-1)
