"""LAMB: Adam's direction scaled to the length of each parameter."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stability.optimizers.adam import adamw
from stability.optimizers.registry import Layout, optimizer
from stability.optimizers.reproducible import norm


@optimizer(
    buffers=("first", "second"),
    decay="own",
    describe=lambda *, betas, eps: f"LAMB with β₁ = {betas[0]:g} and β₂ = {betas[1]:g}",
)
def lamb(
    grad: Tensor,
    buffers: Mapping[str, Tensor],
    count: Tensor,
    *,
    params: Tensor,
    layout: Layout,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
) -> Tensor:
    """Return u = Adam's direction - decay * theta, times |theta| / |u| for each parameter; 1 where either is 0.

    A step then changes every parameter by the learning rate as a share of its length. Without bounds on |theta|.
    You et al. (2020), arXiv:1904.00962, Alg. 2.

    Args:
        grad: gradients (R, P).
        buffers: running state by name, each (R, P), updated in place.
        count: number of steps including this one, float32: 0-d, or (R, 1) if replicas skip steps.
        params: parameters (R, P).
        layout: where each parameter lies, and its weight decay.
        betas: decay rates of m and v.
        eps: added to sqrt(v_hat).
    """
    direction = adamw(grad, buffers, count, betas=betas, eps=eps)
    for segment in layout:
        theta, part = segment.of(params), segment.of(direction)
        part.sub_(theta, alpha=segment.decay)
        length, step = norm(theta), norm(part)
        part.mul_(torch.where((length > 0) & (step > 0), length / step, 1.0)[:, None])
    return direction
