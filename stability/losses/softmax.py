"""Losses that normalise over the batch: every row and column of the logits is a classification."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stability.losses import Scalar, loss


def clip_chance(batch_size: int) -> float:
    """Return log B, the loss of embeddings that say nothing."""
    return math.log(batch_size)


@loss(log_scale=Scalar(math.log(10.0)), chance=clip_chance)
def clip(image: Tensor, text: Tensor, *, log_scale: Tensor) -> Tensor:
    """Tell each row's match from the other B - 1 rows, both ways; nats per pair.

    L = -1/(2B) sum_i [log softmax_j(l_ij)_i + log softmax_j(l_ji)_i] with l = t <image_i, text_j>, t = exp(log_scale),
    for (B, D) inputs with unit rows. Chance is log B. t starts at 10, as in SigLIP's own comparison (CLIP: 1/.07).
    Radford et al. (2021), arXiv:2103.00020, Fig. 3; Zhai et al. (2023), arXiv:2303.15343, Sec. 3.1.

    >>> clip(torch.zeros(4, 3), torch.zeros(4, 3), log_scale=torch.tensor(0.0)) / math.log(4)
    tensor(1.)
    """
    logits = log_scale.exp() * image @ text.T
    return (_row_loss(logits) + _row_loss(logits.T)) / 2


def _row_loss(logits: Tensor) -> Tensor:
    return (torch.logsumexp(logits, -1) - torch.diagonal(logits)).mean()
