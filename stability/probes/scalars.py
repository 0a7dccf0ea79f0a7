"""Gradients of the mean loss with respect to the loss's scalars and the encoders, over independent batches."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import grad

from stability.probes.registry import GROWS_WITH_LOSS, Measure, Params, Replica, in_towers, mean_over, probe


@probe(
    least={"batches": 1},
    fixed_batches=True,
    holds=("batches",),
    measures=(
        Measure(
            "bias_gradient",
            "Gradient on b",
            "dL/db of the mean loss over independent batches.",
            "nats",
            scalar="bias",
            barred_between_losses=GROWS_WITH_LOSS,
        ),
        Measure(
            "bias_gradient_size",
            "Size of the gradient on b",
            "|dL/db| of the mean loss over independent batches.",
            "nats",
            transform="log",
            scalar="bias",
            barred_between_losses=GROWS_WITH_LOSS,
        ),
        Measure(
            "log_scale_gradient",
            "Gradient on log t",
            "dL/d(log t) of the mean loss.",
            "nats",
            scalar="log_scale",
            barred_between_losses=GROWS_WITH_LOSS,
        ),
        Measure(
            "tower_gradient_size",
            "Size of the gradient on the encoders",
            "Euclidean norm of the gradient of the mean loss over all parameters of the encoders.",
            transform="log",
            barred_between_losses=GROWS_WITH_LOSS,
        ),
    ),
)
def scalar_gradients(replica: Replica, *, batches: int = 8) -> dict[str, Tensor]:
    """Measure the gradients of the mean loss over *batches* batches with respect to bias, log t and the encoders.

    For SigLIP at b = 0 and embeddings in random directions, dL/db = B/2 - 1 at any t: each of the B - 1 mismatching
    pairs of a row contributes 1/2, the matching one -1/2. NaN for a scalar that the loss does not have; a frozen scalar
    gets the gradient that it would have if it were trained.
    """

    def mean_loss(params: Params) -> Tensor:
        return mean_over(replica.batches, lambda batch: replica.objective(params, batch))

    grads = grad(mean_loss)(replica.params)
    absent = torch.full_like(replica.learning_rate, torch.nan)
    bias, log_scale = (grads.get(f"loss.{name}", absent) for name in ("bias", "log_scale"))
    squares = [value.pow(2).sum() for name, value in grads.items() if in_towers(name)]
    return {
        "bias_gradient": bias,
        "bias_gradient_size": bias.abs(),
        "log_scale_gradient": log_scale,
        "tower_gradient_size": torch.stack(squares).sum().sqrt(),
    }
