"""Losses that judge every pair on its own: match or mismatch, by a logistic model."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from stability.losses import Scalar, loss


def siglip_chance(batch_size: int) -> float:
    """Return log B + (B - 1) log(B / (B - 1)): the least that one constant logit can reach, at b = -log(B - 1).

    >>> round(siglip_chance(128), 3)
    5.848
    """
    return math.log(batch_size) + (batch_size - 1) * math.log(batch_size / (batch_size - 1))


@loss(log_scale=Scalar(math.log(10.0)), bias=Scalar(-10.0), chance=siglip_chance)
def siglip(image: Tensor, text: Tensor, *, log_scale: Tensor, bias: Tensor) -> Tensor:
    """Judge each of the B x B pairs as match or mismatch; nats per image (summed over pairs, divided by B).

    L = 1/B sum_ij softplus(-z_ij (t <image_i, text_j> + b)), z_ij = +1 on the diagonal and -1 elsewhere, t =
    exp(log_scale), for (B, D) inputs with unit rows. Chance (the best constant logit) is log B + (B-1) log(B/(B-1)).
    Zhai et al. (2023), arXiv:2303.15343, Alg. 1, whose code adds b (its displayed equation has the other sign).

    >>> zeros, nought = torch.zeros(4, 3), torch.tensor(0.0)
    >>> siglip(zeros, zeros, log_scale=nought, bias=nought) / math.log(2)
    tensor(4.)
    """
    logits = log_scale.exp() * image @ text.T + bias
    # softplus(-l) = softplus(l) - l: one softplus over all pairs, corrected on the diagonal.
    return (F.softplus(logits).sum() - torch.diagonal(logits).sum()) / len(image)
