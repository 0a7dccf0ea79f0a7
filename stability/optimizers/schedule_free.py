"""Schedule-free AdamW: an average of the iterates instead of a schedule of the learning rate."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stability.devices import padded
from stability.optimizers.registry import Layout, optimizer
from stability.optimizers.reproducible import bias_correction


def lead_widths(layout: Layout) -> dict[str, int]:
    """Return the sizes of z - x, of the second moments, and of the sum of squared rates."""
    width = padded(layout[-1].start + layout[-1].size)
    return {"lead": width, "second": width, "weight": 1}


def averaged(
    params: Tensor, buffers: Mapping[str, Tensor], *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> Tensor:
    """Return the averaged parameters x = y - (1 - beta1) (z - x), (R, P); before the first step they are y.

    Args:
        params: the parameters y (R, P), at which gradients are taken.
        buffers: z - x and the others, by name.
        betas: weight of x in y, and decay rate of v.
        eps: added to sqrt(v).
    """
    return params - (1 - betas[0]) * buffers["lead"]


@optimizer(
    buffers=lead_widths,
    decay="own",
    describe=lambda *, betas, eps: (
        f"schedule-free AdamW with β₁ = {betas[0]:g} and β₂ = {betas[1]:g}, probed at its averaged parameters"
    ),
    evaluated=averaged,
)
def schedule_free(
    grad: Tensor,
    buffers: Mapping[str, Tensor],
    count: Tensor,
    *,
    params: Tensor,
    layout: Layout,
    rates: Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Tensor:
    """Return (y' - y) / rate for y = (1 - beta1) z + beta1 x, where z takes AdamW's steps and x is their average.

    With r = rate sqrt(1 - beta2^t): v <- beta2 v + (1 - beta2) g^2, z' = z - r (g / (sqrt(v) + eps) + decay y), and
    x' = (1 - c) x + c z', whose weights c = r_t^2 / sum_s r_s^2 count the steps of a warm-up less. The trained
    parameters are y; probes measure x, and x is kept at the end (see `averaged`). What is measured at every step (loss,
    gradient, scalars) is at y. Use it with ``lr_schedule = "constant"``. Defazio et al. (2024), arXiv:2405.15682,
    Alg. 1.

    Args:
        grad: gradients (R, P) at y.
        buffers: z - x and v, each (R, P), and the sum of squared rates (R, 1), updated in place.
        count: number of steps including this one, float32: 0-d, or (R, 1) if replicas skip steps.
        params: y (R, P).
        layout: where each parameter lies, its weight decay, and the factor on its learning rate.
        rates: learning rates (R,).
        betas: weight of x in y, and decay rate of v.
        eps: added to sqrt(v).
    """
    lead, second, weight = (buffers[name] for name in ("lead", "second", "weight"))
    second.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
    step = grad / second.sqrt().add_(eps)
    for segment in layout:
        part = segment.of(step)
        if segment.decay:
            part.add_(segment.of(params), alpha=segment.decay)
        if segment.lr_multiplier != 1:
            part.mul_(segment.lr_multiplier)
    rate = rates[:, None] * bias_correction(betas[1], count.to(grad.dtype)).sqrt()
    weight.add_(rate.square())
    share = rate.square() / weight
    ahead = torch.sub(lead, step.mul_(rate))  # z' - x
    behind = ahead * (1 - share)  # z' - x'
    direction = ahead.mul_(share).add_((behind - lead).mul_(1 - betas[0])).div_(rates[:, None])
    lead.copy_(behind)
    for segment in layout:
        if segment.lr_multiplier != 1:
            # The trainer multiplies by it, but z has moved by it already.
            segment.of(direction).div_(segment.lr_multiplier)
    return direction
