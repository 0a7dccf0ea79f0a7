"""AdamW whose rate shrinks for each parameter whose second moment lags behind its gradient."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from stability.optimizers.adam import adamw
from stability.optimizers.registry import Layout, optimizer
from stability.optimizers.reproducible import bias_correction, mean_square


@optimizer(
    buffers=("first", "second"),
    decay="own",
    describe=lambda *, betas, eps: f"StableAdamW with β₁ = {betas[0]:g} and β₂ = {betas[1]:g}",
    bounded_step=True,
)
def stable_adamw(
    grad: Tensor,
    buffers: Mapping[str, Tensor],
    count: Tensor,
    *,
    params: Tensor,
    layout: Layout,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Tensor:
    """Return AdamW's direction with decay, divided for each parameter by max(1, RMS_t).

    RMS_t = sqrt(mean(g_t^2 / max(v_hat_t, eps^2))) exceeds 1 where v_hat, which averages over many steps, is smaller
    than the squared gradient of this one: Adam's step would be too long there, and the loss may spike. Since RMS_t
    depends on the gradient of the step, no fixed diagonal divides it. Wortsman et al. (2023), arXiv:2304.13013, Alg. 2.

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
    second = buffers["second"] / bias_correction(betas[1], count.to(grad.dtype))
    relative = grad.div(second.clamp_(min=eps**2).sqrt_())
    for segment in layout:
        part = segment.of(direction).sub_(segment.of(params), alpha=segment.decay)
        part.div_(mean_square(segment.of(relative)).sqrt_().clamp_(min=1.0)[:, None])
    return direction
