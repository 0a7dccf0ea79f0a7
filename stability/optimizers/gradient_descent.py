"""Stochastic gradient descent with heavy-ball momentum."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stability.curvature.thresholds import momentum_threshold
from stability.optimizers.registry import optimizer


def no_preconditioner(buffers: Mapping[str, Tensor], steps: int, *, momentum: float = 0.0) -> Tensor:
    """Return ones (R, P): gradient descent has no preconditioner."""
    return torch.ones_like(buffers["velocity"])


def sgd_threshold(*, momentum: float = 0.0) -> float:
    """Return the sharpness above which SGD at rate 1 is unstable: 2 + 2 momentum."""
    return momentum_threshold(1.0, momentum)


@optimizer(
    buffers=("velocity",),
    decay="in_grad",
    preconditioner=no_preconditioner,
    stability_threshold=sgd_threshold,
    describe=lambda *, momentum: f"SGD with momentum {momentum:g}",
)
def sgd(grad: Tensor, buffers: Mapping[str, Tensor], count: Tensor, *, momentum: float = 0.0) -> Tensor:
    """Return the direction -u of gradient descent, u <- momentum u + g; the gradient g includes weight decay.

    Heavy ball without dampening: Polyak (1964), USSR Computational Mathematics 4:1.

    Args:
        grad: gradients (R, P).
        buffers: running state by name, each (R, P), updated in place.
        count: number of steps including this one, a 0-d float32 tensor.
        momentum: in [0, 1).
    """
    velocity = buffers["velocity"]
    velocity.mul_(momentum).add_(grad)
    return velocity.neg()
