"""Dynamic loss scaling: each replica's loss is multiplied so that its gradient neither overflows float16 nor vanishes.

Micikevicius et al. (2018), arXiv:1710.03740, Sec. 3.2; the rule and its constants are those of `torch.amp.GradScaler`,
but with a scale for each replica, so that an overflow of one touches no other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stability.study import Train

GROWTH, BACKOFF = 2.0, 0.5
"""Factors on the scale after an interval without overflow, and after an overflow."""

LEAST = 1.0
"""The smallest scale: a gradient that overflows although it is not enlarged overflows for good."""


@dataclass
class LossScale:
    """The scales of a population.

    Attributes:
        scale: factors on the losses, powers of two times the first, (R,), updated in place.
        steps: steps since the last growth or overflow, (R,), updated in place.
        growth_interval: steps without overflow after which a scale is doubled.
    """

    scale: Tensor
    steps: Tensor
    growth_interval: int

    @classmethod
    def of(cls, train: Train, replicas: int, device: torch.device) -> LossScale:
        """Return the scales before the first step."""
        scale = torch.full((replicas,), train.initial_loss_scale, device=device)
        return cls(scale, torch.zeros_like(scale), train.loss_scale_growth_interval)

    def select(self, rows: Tensor) -> LossScale:
        """Return a copy of the scales of some replicas, by their indices."""
        return LossScale(self.scale[rows], self.steps[rows], self.growth_interval)

    def unscale_(self, grad: Tensor) -> Tensor:
        """Divide the gradients (R, P) of scaled losses by the scales; return the share of entries that overflowed."""
        # The mean of what overflowed, which is exactly 0 without an overflow, however many parameters there are.
        share = torch.isfinite(grad).logical_not().to(grad.dtype).mean(-1)
        grad.div_(self.scale[:, None])
        return share

    def skipped_(self, finite: Tensor) -> Tensor:
        """Halve the scales of replicas that overflowed and let those of others grow; return which skip the step, (R,).

        A replica that overflows at the smallest scale skips nothing: it overflows for good.

        Args:
            finite: which replicas did not overflow, (R,).
        """
        overflowed = ~finite
        skipped = overflowed & (self.scale > LEAST)
        self.steps += 1
        grown = ~overflowed & (self.steps >= self.growth_interval)
        factor = torch.where(overflowed, BACKOFF, torch.where(grown, GROWTH, 1.0))
        self.scale.mul_(factor).clamp_(min=LEAST)
        self.steps.masked_fill_(overflowed | grown, 0.0)
        return skipped
