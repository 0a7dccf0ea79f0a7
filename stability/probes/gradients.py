"""How noisy the training signal is: gradient noise over independent batches of the training size."""

from __future__ import annotations

import torch
from torch import Tensor

from stability.probes import Measure, Replica, in_towers, probe
from stability.probes.noise import gradient_noise as estimate

KINDS = ("noise_trace", "sq_norm", "second_moment")


def _measures(block: str, words: str, suffix: str) -> tuple[Measure, ...]:
    trace, sq_norm, second = (f"gradient_{part}_{block}" for part in KINDS)
    return (
        Measure(
            f"gradient_noise_fraction{suffix}",
            f"Gradient noise fraction ({block})",
            f"tr Sigma / (tr Sigma + |G|^2) of a batch gradient over {words}, each averaged over a window first.",
            scale="log",
            pooled=(trace, second),
        ),
        Measure(
            trace,
            f"tr Sigma, {block}",
            f"Unbiased trace of the covariance of a batch gradient over {words}.",
            scale="log",
        ),
        Measure(
            sq_norm,
            f"|G|^2, {block}",
            f"Unbiased squared norm of the mean gradient over {words}; may be negative.",
        ),
        Measure(second, f"E|g|^2, {block}", f"Mean squared norm of a batch gradient over {words}.", scale="log"),
    )


@probe(
    least={"batches": 2},
    measures=(
        *_measures("towers", "the encoders", ""),
        *_measures("scalars", "the loss's scalars", "_scalars"),
    ),
)
def gradient_noise(replica: Replica, *, batches: int = 8) -> dict[str, Tensor]:
    """Measure the covariance trace and squared mean of the gradient of a whole batch, over independent batches.

    The unit is a batch of the training size, since a contrastive loss couples its samples. Towers and trained
    scalars are apart: t and b can outweigh all else. See `stability.probes.noise` for the estimators.
    """
    blocks = {"towers": in_towers, "scalars": lambda name: not in_towers(name)}
    present = {block: member for block, member in blocks.items() if any(map(member, replica.params))}
    noise = estimate(replica.objective, replica.params, replica.batches, blocks=present)
    absent = torch.full_like(noise.trace_cov, torch.nan)
    parts = {block: (part.trace_cov, part.mean_sq_norm, part.second_moment) for block, part in noise.by_block.items()}
    return {
        f"gradient_{kind}_{block}": value
        for block in blocks
        for kind, value in zip(KINDS, parts.get(block, (absent,) * 3), strict=True)
    }
