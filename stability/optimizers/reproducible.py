"""Arithmetic on the parameters of each replica, whose bits do not depend on the other replicas."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sum_last(x: Tensor) -> Tensor:
    """Return the sums over the last axis, each by the same order of additions whatever the other axes.

    A single sum may be split among threads, which several are not, so it is computed twice.
    """
    if x.numel() > x.shape[-1]:
        return x.sum(-1)
    return torch.cat([x, x]).sum(-1)[: len(x)]


def mean_square(x: Tensor) -> Tensor:
    """Return the mean square of each row (R,) of *x* (R, n)."""
    return sum_last(x.square()) / x.shape[-1]


def norm(x: Tensor) -> Tensor:
    """Return the Euclidean norm of each row (R,) of *x* (R, n)."""
    return sum_last(x.square()).sqrt()


def move_towards_(mean: Tensor, value: Tensor, weight: float | Tensor) -> Tensor:
    """Move *mean* by the share *weight* towards *value* in place, in operations that round alike at every position.

    ``lerp`` and ``add`` with a factor may round the last numbers of a tensor otherwise than those before.
    """
    return mean.add_((value - mean).mul_(weight))


def bias_correction(beta: float, count: Tensor) -> Tensor:
    """Return 1 - beta^count, the weight of the past in a running mean from zero, without cancellation; 0-d.

    >>> bias_correction(0.9, torch.tensor([1.0, 2.0])), bias_correction(0.0, torch.tensor(1.0))
    (tensor([0.1000, 0.1900]), tensor(1.))
    """
    return -torch.expm1(count * (math.log(beta) if beta else -math.inf))
