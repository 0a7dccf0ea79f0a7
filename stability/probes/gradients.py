"""Gradient noise over independent batches of the training batch size."""

from __future__ import annotations

import torch
from torch import Tensor

from stability.losses.sharded import sharded
from stability.losses.sigmoid import siglip
from stability.losses.softmax import clip
from stability.probes import matched
from stability.probes.noise import GradientNoise, gradient_noise_in
from stability.probes.registry import GROWS_WITH_LOSS, Batch, Measure, Params, Replica, in_towers, probe

KINDS = ("noise_trace", "sq_norm", "second_moment")


def _measures(block: str, words: str, suffix: str) -> tuple[Measure, ...]:
    trace, sq_norm, second = (f"gradient_{part}_{block}" for part in KINDS)
    # Under one loss for all runs they may be compared, whatever the runs were trained with.
    barred = "" if "_as_" in block else GROWS_WITH_LOSS
    note = f" ({block.replace('_as_', ' as ').replace('_', ', ')})"
    return (
        Measure(
            f"gradient_noise_fraction{suffix}",
            f"Gradient noise fraction{note}",
            f"tr Sigma / (tr Sigma + |G|^2) of a batch gradient over {words}, each averaged over a window first.",
            transform="log",
            pooled=(trace, second),
            ceiling=1.0,
        ),
        Measure(
            trace,
            f"tr Sigma{note}",
            f"Unbiased trace of the covariance of a batch gradient over {words}.",
            transform="log",
            barred_between_losses=barred,
        ),
        Measure(
            sq_norm,
            f"|G|^2{note}",
            f"Unbiased squared norm of the mean gradient over {words}; may be negative.",
            barred_between_losses=barred,
        ),
        Measure(
            second,
            f"E|g|^2{note}",
            f"Mean squared norm of a batch gradient over {words}.",
            transform="log",
            barred_between_losses=barred,
        ),
    )


def _columns(block: str, noise: GradientNoise) -> dict[str, Tensor]:
    values = (noise.trace_cov, noise.mean_sq_norm, noise.second_moment)
    return {f"gradient_{kind}_{block}": value for kind, value in zip(KINDS, values, strict=True)}


@probe(
    least={"batches": 2},
    holds=("batch",),
    measures=(
        *_measures("towers", "the encoders", ""),
        *_measures("scalars", "the loss's scalars", "_scalars"),
        *_measures(
            "towers_preconditioned", "the encoders in Adam's norm, sum_i g_i^2 / (sqrt(v_i) + eps)", "_preconditioned"
        ),
        Measure(
            "gradient_cosine_towers",
            "Cosine of batch gradients (towers)",
            "Mean cosine between the gradients of two independent batches over the encoders, unbiased over all pairs "
            "of batches.",
            ceiling=1.0,
        ),
    ),
)
def gradient_noise(replica: Replica, *, batches: int = 8) -> dict[str, Tensor]:
    """Measure covariance trace, squared mean and cosine of the gradients of independently drawn whole batches.

    The unit is a batch of the training size, since a contrastive loss couples its samples. Towers and trained scalars
    are measured separately, since t and b can outweigh all other parameters. Towers are also measured in the norm of
    Adam's steps (NaN before the first step, and under an optimizer that divides by no diagonal). See
    `stability.probes.noise` for the estimators.
    """
    blocks = {"towers": in_towers}
    if any(not in_towers(name) for name in replica.params):
        blocks["scalars"] = lambda name: not in_towers(name)
    norms = {"plain": None, "adam": replica.preconditioner or None}
    noise = gradient_noise_in(norms, replica.objective, replica.params, replica.batches, blocks=blocks)
    plain, adam = noise["plain"].by_block, noise["adam"].by_block["towers"]
    absent = torch.full_like(adam.trace_cov, torch.nan)
    scalars = plain.get("scalars", GradientNoise(absent, absent, absent, absent))
    started = _has_diagonal(replica)
    preconditioned = _columns("towers_preconditioned", adam)
    return {
        **_columns("towers", plain["towers"]),
        **_columns("scalars", scalars),
        **{name: torch.where(started, value, absent) for name, value in preconditioned.items()},
        "gradient_cosine_towers": plain["towers"].mean_cosine,
    }


def _has_diagonal(replica: Replica) -> Tensor:
    """Return whether the optimizer divides its steps by a diagonal that is not one number everywhere, 0-d."""
    # Before Adam's first step its v is zero everywhere, and its norm is the plain one times 1 / eps.
    towers = [value for name, value in replica.preconditioner.items() if in_towers(name)]
    if not towers:
        return torch.zeros_like(replica.learning_rate, dtype=torch.bool)
    highest, lowest = (torch.stack([pick(value) for value in towers]) for pick in (torch.amax, torch.amin))
    return highest.amax() > lowest.amin()


def _as(role: str, words: str) -> tuple[Measure, ...]:
    return _measures(f"towers_as_{role}", f"the encoders under {words} at this run's parameters", f"_as_{role}")


@probe(
    least={"batches": 2},
    held_out_batches=True,
    holds=("batch",),
    measures=(
        *_as("clip", "CLIP's loss"),
        *_as("siglip", "SigLIP's loss"),
        Measure(
            "matched_bias",
            "Bias b at matched parameters",
            "The b under which SigLIP's loss was taken: the run's own, or the one that minimizes it over batches of "
            "held-out pairs.",
        ),
    ),
)
def matched_gradient_noise(replica: Replica, *, batches: int = 8) -> dict[str, Tensor]:
    """Measure the gradient noise of CLIP's and of SigLIP's loss over the encoders at this run's parameters.

    This compares the two losses at the same checkpoint, whichever loss trained the run. Both use the run's t. SigLIP
    uses the run's b or, if the run's loss has none, the b that minimizes SigLIP's mean loss over as many batches of
    held-out pairs, drawn from a separate stream and corrupted like the run's. It is never fitted on the batches whose
    noise is measured, which would bias it towards them. Where the run's loss is over shards of a batch, so are these.
    NaN for a run whose loss has no t (``log_scale``). See `stability.probes.matched`.
    """
    towers = {name: value for name, value in replica.params.items() if in_towers(name)}
    log_scale, bias = (replica.params.get(f"loss.{name}") for name in ("log_scale", "bias"))
    if log_scale is None:
        absent = torch.full_like(replica.learning_rate, torch.nan)
        return {m.name: absent for m in probe["matched_gradient_noise"].traits.measures if m.pooled is None}
    if bias is None:
        # Shards of a batch are as good as smaller batches: the mean loss is the same.
        image, text = (
            x.unflatten(1, (replica.shards, -1)).flatten(0, 1) for x in _embedded(replica, replica.held_out_batches)
        )
        bias = matched.fitted_bias(image, text, log_scale)

    def as_clip(params: Params, batch: Batch) -> Tensor:
        return sharded(clip, replica.shards)(*_embed(replica, params, batch), log_scale=log_scale)

    def as_siglip(params: Params, batch: Batch) -> Tensor:
        return sharded(siglip, replica.shards)(*_embed(replica, params, batch), log_scale=log_scale, bias=bias)

    noise = matched.matched_gradient_noise({"clip": as_clip, "siglip": as_siglip}, towers, replica.batches)
    columns = {role: _columns(f"towers_as_{role}", value) for role, value in noise.items()}
    return columns["clip"] | columns["siglip"] | {"matched_bias": bias}


def _embed(replica: Replica, params: Params, batch: Batch) -> tuple[Tensor, Tensor]:
    return replica.embed_image(params, batch["image"]), replica.embed_text(params, batch["text"])


def _embedded(replica: Replica, batches: Batch) -> tuple[Tensor, Tensor]:
    """Return batches as embeddings (K, B, D), computed once: fitting b then needs no further passes of the encoders."""
    embeddings = [
        _embed(replica, replica.params, {side: batches[side][k] for side in ("image", "text")})
        for k in range(len(batches["image"]))
    ]
    return torch.stack([image for image, _ in embeddings]), torch.stack([text for _, text in embeddings])
