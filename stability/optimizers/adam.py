"""Adam with decoupled weight decay."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stability.curvature.thresholds import adaptive_threshold
from stability.optimizers.registry import optimizer


def adam_preconditioner(
    buffers: Mapping[str, Tensor], steps: int, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> Tensor:
    """Return the bias-corrected sqrt(v_hat) + eps, shape (R, P), after *steps* steps; eps before the first step.

    Args:
        buffers: m and v, each (R, P).
        steps: number of steps taken.
        betas: decay rates of m and v.
        eps: added to sqrt(v_hat).
    """
    correction = 1 - betas[1] ** steps if steps else 1.0
    return (buffers["second"] / correction).sqrt_().add_(eps)


def adam_threshold(*, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> float:
    """Return the preconditioned sharpness above which Adam at rate 1 is unstable: (2 + 2 beta1) / (1 - beta1)."""
    return adaptive_threshold(1.0, betas[0])


@optimizer(
    buffers=("first", "second"),
    decay="decoupled",
    preconditioner=adam_preconditioner,
    stability_threshold=adam_threshold,
    describe=lambda *, betas, eps: f"AdamW with β₁ = {betas[0]:g} and β₂ = {betas[1]:g}",
    bounded_step=True,
)
def adamw(
    grad: Tensor,
    buffers: Mapping[str, Tensor],
    count: Tensor,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Tensor:
    """Return Adam's direction, -m_hat / (sqrt(v_hat) + eps); weight decay is decoupled.

    m and v are running means of the gradient and of its square with decay rates *betas*; hats mark the correction of
    the bias from initialization at zero. Kingma and Ba (2015), arXiv:1412.6980, Alg. 1; Loshchilov and Hutter (2019),
    arXiv:1711.05101, Alg. 2.

    Args:
        grad: gradients (R, P).
        buffers: running state by name, each (R, P), updated in place.
        count: number of steps including this one, float32: 0-d, or (R, 1) if replicas skip steps.
        betas: decay rates of m and v.
        eps: added to sqrt(v_hat).
    """
    # Torch's fused kernel makes one pass over gradient and means; its step from zero at rate 1 is the direction.
    direction = torch.zeros_like(grad)
    tensors = [direction, grad, buffers["first"], buffers["second"]]
    # The kernel has one count for a tensor, so replicas with counts of their own are tensors of their own.
    rows = [[tensor] if not count.dim() else list(tensor) for tensor in tensors]
    torch._fused_adamw_(
        rows[0],
        rows[1],
        rows[2],
        rows[3],
        [],
        [count] if not count.dim() else list(count[:, 0]),
        lr=1.0,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=0.0,
        eps=eps,
        amsgrad=False,
        maximize=False,
    )
    return direction
