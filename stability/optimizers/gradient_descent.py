"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stability.curvature.thresholds import momentum_threshold
from stability.optimizers.registry import optimizer


def no_preconditioner(
    buffers: Mapping[str, Tensor], steps: int, *, momentum: float = 0.0, nesterov: bool = False
) -> Tensor:
    """Return ones (R, P): gradient descent has no preconditioner.

    Args:
        buffers: the velocity (R, P).
        steps: number of steps taken.
        momentum: in [0, 1).
        nesterov: whether momentum is Nesterov's.
    """
    return torch.ones_like(buffers["velocity"])


def sgd_threshold(*, momentum: float = 0.0, nesterov: bool = False) -> float:
    """Return the sharpness above which SGD at rate 1 is unstable: 2 + 2 momentum, or less with Nesterov's momentum."""
    return momentum_threshold(1.0, momentum, nesterov)


def described(*, momentum: float, nesterov: bool) -> str:
    """Return SGD with its options in words.

    >>> described(momentum=0.9, nesterov=True)
    "SGD with Nesterov's momentum 0.9"
    """
    kind = "Nesterov's momentum" if nesterov else "momentum"
    return f"SGD with {kind} {momentum:g}"


@optimizer(
    buffers=("velocity",),
    decay="in_grad",
    preconditioner=no_preconditioner,
    stability_threshold=sgd_threshold,
    describe=described,
)
def sgd(
    grad: Tensor, buffers: Mapping[str, Tensor], count: Tensor, *, momentum: float = 0.0, nesterov: bool = False
) -> Tensor:
    """Return the direction -u of gradient descent, u <- momentum u + g; the gradient g includes weight decay.

    Heavy ball without dampening: Polyak (1964), USSR Computational Mathematics 4:1. With *nesterov* the direction is
    -(g + momentum u), which looks one step of momentum ahead: Nesterov (1983), Soviet Mathematics Doklady 27:2, as in
    Sutskever et al. (2013), ICML. Without momentum both are plain gradient descent.

    Args:
        grad: gradients (R, P).
        buffers: running state by name, each (R, P), updated in place.
        count: number of steps including this one, float32: 0-d, or (R, 1) if replicas skip steps.
        momentum: in [0, 1).
        nesterov: use Nesterov's momentum.
    """
    velocity = buffers["velocity"]
    velocity.mul_(momentum).add_(grad)
    return velocity.mul(-momentum).sub_(grad) if nesterov else velocity.neg()
