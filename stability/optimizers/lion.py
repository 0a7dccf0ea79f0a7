"""Lion: the sign of an interpolated momentum."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from stability.optimizers.registry import optimizer


@optimizer(
    buffers=("momentum",),
    decay="decoupled",
    describe=lambda *, betas: f"Lion with β₁ = {betas[0]:g} and β₂ = {betas[1]:g}",
    bounded_step=True,
)
def lion(
    grad: Tensor, buffers: Mapping[str, Tensor], count: Tensor, *, betas: tuple[float, float] = (0.9, 0.99)
) -> Tensor:
    """Return Lion's direction, -sign(beta1 m + (1 - beta1) g), then m <- beta2 m + (1 - beta2) g.

    Every parameter moves by the whole rate or not at all; weight decay is decoupled. The step divides the gradient by
    no diagonal, so there is no preconditioned sharpness. Chen et al. (2023), arXiv:2302.06675, Alg. 2.

    Args:
        grad: gradients (R, P).
        buffers: running state by name, each (R, P), updated in place.
        count: number of steps including this one, float32: 0-d, or (R, 1) if replicas skip steps.
        betas: weight of m in the direction, and decay rate of m.
    """
    momentum = buffers["momentum"]
    direction = momentum.mul(betas[0]).add_(grad, alpha=1 - betas[0]).sign_().neg_()
    momentum.mul_(betas[1]).add_(grad, alpha=1 - betas[1])
    return direction
