"""Muon: orthogonalized momentum for the matrices of linear maps, AdamW for all else."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from stability.devices import is_accelerator, padded
from stability.optimizers.adam import adamw
from stability.optimizers.registry import Layout, optimizer
from stability.optimizers.reproducible import move_towards_, norm

COEFFICIENTS = (3.4445, -4.775, 2.0315)
"""Of the polynomial a x + b x^3 + c x^5 that takes small singular values towards 1 fastest."""

ITERATIONS = 5

RMS_OF_ADAM = 0.2
"""The usual RMS of AdamW's direction, to which that of a matrix is scaled: both kinds then share one learning rate."""


def split_widths(layout: Layout) -> dict[str, int]:
    """Return the sizes of the momentum of linear maps and of AdamW's two means of all other trained parameters."""
    matrices, others = split(layout)
    width = padded(sum(segment.size for segment in others))
    return {"momentum": sum(segment.size for segment in matrices), "first": width, "second": width}


def split(layout: Layout) -> tuple[Layout, Layout]:
    """Return the matrices of linear maps, and all other parameters; those that are not trained are in neither."""
    trained = [segment for segment in layout if segment.trained]
    return (
        tuple(segment for segment in trained if segment.linear),
        tuple(segment for segment in trained if not segment.linear),
    )


@optimizer(
    buffers=split_widths,
    decay="decoupled",
    describe=lambda *, momentum, nesterov, betas, eps: (
        f"Muon with {'Nesterov' if nesterov else 'heavy-ball'} momentum {momentum:g} for the matrices of linear maps "
        f"and AdamW with β₁ = {betas[0]:g} and β₂ = {betas[1]:g} for all else"
    ),
    bounded_step=True,
    linear_maps=True,
)
def muon(
    grad: Tensor,
    buffers: Mapping[str, Tensor],
    count: Tensor,
    *,
    layout: Layout,
    momentum: float = 0.95,
    nesterov: bool = True,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
) -> Tensor:
    """Return -0.2 sqrt(max(m, n)) NS(M) for the m x n matrix of a linear map, AdamW's direction for all else.

    M is the running mean of the gradient, with *nesterov* moved by *momentum* from the gradient towards that mean;
    NS(M), by five Newton-Schulz iterations, has M's singular vectors and singular values of about 1. Embeddings,
    positions, vectors and scalars have AdamW's direction. The factor gives a matrix the usual RMS of AdamW's steps;
    weight decay is decoupled. Jordan et al. (2024), kellerjordan.github.io/posts/muon; the factor is that of Liu et al.
    (2025), arXiv:2502.16982. As `torch.optim.Muon` with ``adjust_lr_fn="match_rms_adamw"``, in full precision.

    Args:
        grad: gradients (R, P).
        buffers: running means (R, width) by name, updated in place.
        count: number of steps including this one, float32: 0-d, or (R, 1) if replicas skip steps.
        layout: where each parameter lies, and which are the matrices of linear maps.
        momentum: decay rate of the mean of matrices.
        nesterov: use Nesterov's momentum.
        betas: decay rates of m and v of AdamW.
        eps: added to sqrt(v_hat) by AdamW.
    """
    matrices, others = split(layout)
    direction, start = torch.zeros_like(grad), 0
    for segment in matrices:
        part, mean = segment.of(grad), buffers["momentum"][:, start : start + segment.size]
        move_towards_(mean, part, 1 - momentum)
        target = move_towards_(part.clone(), mean, momentum) if nesterov else mean
        step = orthogonalized(target.reshape(-1, *segment.shape)).flatten(1)
        segment.of(direction).copy_(step.mul_(-RMS_OF_ADAM * math.sqrt(max(segment.shape))))
        start += segment.size
    if not others:
        return direction
    means = {name: buffers[name] for name in ("first", "second")}
    gathered = torch.cat([segment.of(grad) for segment in others], dim=1)
    # Whole cache lines, so that the last numbers of a replica are not rounded otherwise than in another position.
    gathered = F.pad(gathered, (0, means["first"].shape[1] - gathered.shape[1]))
    steps = adamw(gathered, means, count, betas=betas, eps=eps)
    sizes = [segment.size for segment in others]
    for segment, step in zip(others, steps[:, : sum(sizes)].split(sizes, dim=1), strict=True):
        segment.of(direction).copy_(step)
    return direction


def orthogonalized(matrices: Tensor) -> Tensor:
    """Return matrices (R, m, n) with their singular values moved near 1; zero matrices stay zero."""
    if is_accelerator(matrices.device):
        return _newton_schulz(matrices)
    # One after another: on a CPU the bits of a product of many matrices may depend on their number.
    return torch.cat([_newton_schulz(one.clone()) for one in matrices.split(1)])


def _newton_schulz(x: Tensor) -> Tensor:
    if x.shape[-2] > x.shape[-1]:
        return _newton_schulz(x.mT.contiguous()).mT
    a, b, c = COEFFICIENTS
    x = x / norm(x.flatten(1)).clamp(min=1e-7)[:, None, None]
    for _ in range(ITERATIONS):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
