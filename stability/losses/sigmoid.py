"""Losses that classify every pair independently as match or mismatch, by a logistic model."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from stability.losses.batched import siglip_kernel
from stability.losses.fused import is_large, siglip_sum_tiled
from stability.losses.logits import off_diagonal, scaled, scaled_similarities, sigmoid_loss_sum, soft_capped
from stability.losses.registry import Scalar, loss
from stability.registry import InputError, nearest

Reduction = Literal["per_image", "mean_pairs"]


def siglip_chance(batch_size: int, reduction: Reduction = "per_image", logit_cap: float = math.inf) -> float:
    """Return log B + (B - 1) log(B / (B - 1)), the loss of the best constant logit, b = -log(B - 1).

    As a mean over pairs it is B times lower. If the cap is below log(B - 1), the best constant logit is -logit_cap.

    >>> round(siglip_chance(128), 3), round(128 * siglip_chance(128, "mean_pairs"), 3)
    (5.848, 5.848)
    """
    if logit_cap < math.log(batch_size - 1):
        per_image = math.log1p(math.exp(logit_cap)) + (batch_size - 1) * math.log1p(math.exp(-logit_cap))
    else:
        per_image = math.log(batch_size) + (batch_size - 1) * math.log(batch_size / (batch_size - 1))
    return per_image * batch_size / _terms(reduction, batch_size)


def _terms(reduction: Reduction, batch_size: int) -> int:
    """Return the divisor of the sum over pairs."""
    terms = {"per_image": batch_size, "mean_pairs": batch_size**2}
    if reduction not in terms:
        raise InputError(f"reduction: unknown {reduction!r}{nearest(reduction, terms)}")
    return terms[reduction]


@loss(
    log_scale=Scalar(math.log(10.0)),
    bias=Scalar(-10.0),
    chance=siglip_chance,
    value_and_grad=siglip_kernel,
    least={"logit_cap": 1e-3},
)
def siglip(
    image: Tensor,
    text: Tensor,
    *,
    log_scale: Tensor,
    bias: Tensor,
    reduction: Reduction = "per_image",
    max_scale: float = math.inf,
    logit_cap: float = math.inf,
) -> Tensor:
    """Sigmoid cross-entropy of all B x B pairs (SigLIP); nats per image (summed over pairs, divided by B).

    L = 1/B sum_ij softplus(-z_ij (t <image_i, text_j> + b)), z_ij = +1 on the diagonal and -1 elsewhere,
    t = exp(log_scale), for (B, D) inputs with unit rows. Chance (the best constant logit) is log B + (B-1)
    log(B/(B-1)). *reduction* "mean_pairs" divides by B^2 instead, as Bangachev et al. (arXiv:2509.18552) do; chance is
    then B times lower. *max_scale* clamps t inside the loss. *logit_cap* c replaces each logit l by c tanh(l / c)
    (Gemma 2, arXiv:2408.00118, Sec. 2); if c < log(B-1), chance is higher, since the best constant logit is then -c.
    `clip`'s *z_loss* has no counterpart: it penalizes a constant of the logits that the softmax leaves undetermined,
    and a sigmoid leaves none. To train without a bias, set an initial bias of 0, not trained. Zhai et al. (2023),
    arXiv:2303.15343, Alg. 1, whose code adds b (its displayed equation has the opposite sign). Checked against the
    sources of big_vision (``trainers/proj/image_text/siglip.py``) and OpenCLIP (``SigLipLoss``). A large batch is
    computed tile by tile, with O(B) memory, unless it has a cap: see `stability.losses.fused`.

    Args:
        image, text: unit rows (B, D); row i of both is a match.
        log_scale: log t, a scalar.
        bias: b, a scalar added to every logit.
        reduction: "per_image" divides the sum over pairs by B, "mean_pairs" by B^2.
        max_scale: largest t.
        logit_cap: c, the bound on |logits|; positive.

    >>> zeros, nought = torch.zeros(4, 3), torch.tensor(0.0)
    >>> siglip(zeros, zeros, log_scale=nought, bias=nought) / math.log(2)
    tensor(4.)
    """
    terms = _terms(reduction, len(image))
    rows = scaled(image, log_scale, max_scale)
    if is_large(image) and logit_cap == math.inf:
        return siglip_sum_tiled(rows, text, bias) / terms
    return sigmoid_loss_sum(soft_capped(rows @ text.T + bias, logit_cap)) / terms


@loss(log_scale=Scalar(math.log(10.0)), relative_bias=Scalar(1.0), chance=siglip_chance, reparametrizes="siglip")
def siglip_relative_bias(
    image: Tensor, text: Tensor, *, log_scale: Tensor, relative_bias: Tensor, reduction: Reduction = "per_image"
) -> Tensor:
    """SigLIP's loss with the bias as a trained threshold on similarity (relative bias); nats per image.

    L = siglip with logits t (<image_i, text_j> - b_rel), so b = -t b_rel: the same model as `siglip` in a different
    parametrization. b_rel starts at 1, which is `siglip`'s b = -10 at t = 10. For (B, D) inputs with unit rows;
    *reduction* and chance as for `siglip`. Bangachev et al. (2025), arXiv:2509.18552, Def. 1 (b_rel has their sign).
    Checked against their code (``utils/siglip_loss.py``), except its logarithm: see `siglip_as_published`.

    Args:
        image, text: unit rows (B, D); row i of both is a match.
        log_scale: log t, a scalar.
        relative_bias: b_rel, the similarity at which a logit is 0.
        reduction: "per_image" divides the sum over pairs by B, "mean_pairs" by B^2.
    """
    logits = log_scale.exp() * (image @ text.T - relative_bias)
    return sigmoid_loss_sum(logits) / _terms(reduction, len(image))


def siglip_as_published_chance(batch_size: int, epsilon: float = 1e-8) -> float:
    """Return the loss of the constant probability 1/B, the best one up to epsilon."""
    match = 1 / batch_size
    return -match * math.log(match + epsilon) - (1 - match) * math.log(1 - match + epsilon)


@loss(log_scale=Scalar(math.log(10.0)), bias=Scalar(-10.0), chance=siglip_as_published_chance)
def siglip_as_published(
    image: Tensor, text: Tensor, *, log_scale: Tensor, bias: Tensor, epsilon: float = 1e-8
) -> Tensor:
    """SigLIP's loss as log(sigmoid + 1e-8), whose gradient vanishes on wrong pairs; nats per pair.

    L = -1/B^2 [sum_i log(sigmoid(l_ii) + e) + sum_{i != j} log(1 - sigmoid(l_ij) + e)] with l = t <image_i, text_j> +
    b, for (B, D) inputs with unit rows. If |l| > 18 a misclassified pair costs -log e and has no gradient, so a
    large t stops learning: an artifact of this form that `siglip` (``reduction="mean_pairs"``) does not have. Chance is
    `siglip`'s over B, up to e. The code of Bangachev et al. (2025), arXiv:2509.18552, whose b is our -b.
    Checked against that code (``utils/siglip_loss.py``).

    Args:
        image, text: unit rows (B, D); row i of both is a match.
        log_scale: log t, a scalar.
        bias: b, a scalar added to every logit.
        epsilon: e, added to every probability.
    """
    probability = torch.sigmoid(scaled_similarities(image, text, log_scale) + bias)
    match = torch.log(torch.diagonal(probability) + epsilon).sum()
    mismatch = torch.log(1 - off_diagonal(probability) + epsilon).sum()
    return -(match + mismatch) / len(image) ** 2


def nt_logistic_chance(batch_size: int) -> float:
    """Return 2 log 2, the loss of similarity 0 at every batch size."""
    return 2 * math.log(2)


@loss(log_scale=Scalar(math.log(10.0)), chance=nt_logistic_chance)
def nt_logistic(image: Tensor, text: Tensor, *, log_scale: Tensor) -> Tensor:
    """Logistic loss without a bias: each match weighs as much as all its mismatches (NT-Logistic); nats per image.

    L = 1/B sum_i [softplus(-l_ii) + 1/(B-1) sum_{j != i} softplus(l_ij)], l = t <image_i, text_j>, for (B, D) inputs
    with unit rows. Chance is 2 log 2. Chen et al. (2020), arXiv:2002.05709, Table 2, which gives the term of one
    match and one mismatch; the mean over the B - 1 mismatches is our interpretation. There t is a fixed setting.
    """
    logits = scaled_similarities(image, text, log_scale)
    return F.softplus(-torch.diagonal(logits)).mean() + F.softplus(off_diagonal(logits)).mean()
