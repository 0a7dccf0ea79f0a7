"""Losses over the whole data set whose denominators are running estimates for each training pair."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stability.losses.logits import off_diagonal, scaled_similarities
from stability.losses.registry import Scalar, loss


def global_contrastive_chance(batch_size: int) -> float:
    """Return 0, the loss of equal similarities."""
    return 0.0


def init_running_estimates(available: int) -> dict[str, Tensor]:
    """Return the state of `global_contrastive` before training: every logarithm of an estimate is -inf."""
    unseen = torch.full((available,), -math.inf)
    return {"image": unseen, "text": unseen.clone()}


@loss(log_scale=Scalar(math.log(10.0), trained=False), chance=global_contrastive_chance, state=init_running_estimates)
def global_contrastive(
    image: Tensor,
    text: Tensor,
    *,
    log_scale: Tensor,
    index: Tensor,
    state: dict[str, Tensor],
    gamma: float = 0.9,
) -> tuple[Tensor, dict[str, Tensor]]:
    """InfoNCE over the whole data set by running estimates of the denominators (SogCLR); in units of similarity.

    L = 1/t mean over rows, in both directions, of 1/g log u_i, u_i = (1 - g) u_i(before) + g mean_{j != i}
    e^(l_ij - l_ii), l = t <image_i, text_j>, for (B, D) inputs with unit rows, g = *gamma*; a pair seen for the first
    time has g = 1. The gradient of 1/g log u is that of mean_j e^(l_ij - l_ii), divided by the updated estimate u: the
    update of SogCLR and of FastCLIP-v1, written as the gradient of a value. With g = 1 nothing is remembered:
    `infoloob` less log(B - 1) / t. t is fixed, as in both. State: the logarithms of u, "image" and "text", (n,) for n
    training pairs, updated at *index* (B,); in logarithms, u needs no epsilon. Chance is 0. Yuan et al. (2022),
    arXiv:2202.12387, Alg. 1; Wei et al. (2024), arXiv:2407.01445, whose code was checked (``fast_clip/loss.py``: the
    update, the restart of unseen pairs; it sums both directions; its g decays to about .2).

    Args:
        image, text: unit rows (B, D); row i of both is a match.
        log_scale: log t, a scalar.
        index: indices (B,) of the rows among the training pairs.
        state: "image" and "text", logarithms (n,) of the estimates; -inf: unseen.
        gamma: share of the new batch in a running estimate, in (0, 1].
    """
    logits = scaled_similarities(image, text, log_scale)
    image_rows, image_state = _tracked(logits, state["image"], index, gamma)
    text_rows, text_state = _tracked(logits.T, state["text"], index, gamma)
    value = (image_rows + text_rows) / 2 / log_scale.exp()
    return value, {"image": image_state, "text": text_state}


def _tracked(logits: Tensor, before: Tensor, index: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    now = torch.logsumexp(off_diagonal(logits) - torch.diagonal(logits)[:, None], -1) - math.log(len(logits) - 1)
    past = before.gather(0, index).to(now.dtype)
    seen = torch.isfinite(past)
    # A finite placeholder for the past of unseen pairs keeps NaN out of the branch that `where` discards.
    mixed = torch.logaddexp(
        torch.where(seen, past, 0.0) + (math.log1p(-gamma) if gamma < 1 else -math.inf), now + math.log(gamma)
    )
    rows = torch.where(seen, mixed / gamma, now).mean()
    return rows, before.scatter(0, index, torch.where(seen, mixed, now).detach().to(before.dtype))
