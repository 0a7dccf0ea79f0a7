"""Measures of every training step, which need no probe."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from stability.probes.registry import GROWS_WITH_LOSS, Measure, probe


def _spike_rate(column: str, name: str, of: str, also: str = "") -> Measure:
    return Measure(
        name,
        f"Rate of spikes of the {of}",
        f"Spikes of the {of} after warm-up: rises of 8 robust standard deviations above the 100 steps before, free of "
        f"the loss's scale.{also} Read it on runs of 5,000 steps or more.",
        unit="per 1,000 steps",
        spikes=column,
    )


STEP_MEASURES = (
    Measure(
        "loss",
        "Training loss",
        "Loss of the step's batch, before the update.",
        "nats",
        better="lower",
        barred_between_losses=GROWS_WITH_LOSS,
    ),
    Measure(
        "gradient_norm",
        "Gradient norm",
        "Euclidean norm of the batch gradient over all parameters.",
        transform="log",
        barred_between_losses=GROWS_WITH_LOSS,
    ),
    Measure("update_norm", "Update norm", "Euclidean norm of the step that the optimizer took.", transform="log"),
    Measure(
        "update_rms",
        "RMS of the update",
        "Root mean square of the step over all trained weight matrices; vectors and the loss's scalars are left out.",
        transform="log",
    ),
    Measure("log_scale", "log t", "Logarithm of the loss's inverse temperature t.", scalar="log_scale"),
    Measure("bias", "Bias b", "The loss's additive bias on the logits; absent in losses without one.", scalar="bias"),
    Measure("learning_rate", "Learning rate", "Rate of the step, before the multiplier of the loss's scalars."),
    Measure("grad_clipped_fraction", "Clipped steps", "1 where the gradient was clipped, else 0.", "share"),
    Measure(
        "loss_scale",
        "Loss scale",
        "Factor on the loss in float16: halved by an overflow, doubled after an interval without one; absent in other "
        "formats.",
        transform="log",
        needs="float16",
    ),
    Measure(
        "skipped_step_fraction",
        "Skipped steps",
        "1 where an overflow made the run skip the step, which then has no gradient norm, else 0; only in float16.",
        "share",
        needs="float16",
    ),
    Measure(
        "overflow",
        "Overflow of the gradient",
        "Share of the entries of the scaled gradient that are not finite; only in float16.",
        "share",
        needs="float16",
    ),
    Measure(
        "false_negative_fraction",
        "False negatives",
        "Share of the batch's off-diagonal pairs with equal captions: positives that the loss takes as negatives.",
        "share",
    ),
    _spike_rate(
        "loss",
        "loss_spike_rate",
        "training loss",
        " At small batches these are mostly batches of hard pairs: held_out_spike_rate counts spikes of one batch.",
    ),
    Measure(
        "gradient_norm_spike_rate",
        "Rate of spikes of the gradient norm",
        "Spikes of the gradient norm after warm-up: the median of five consecutive steps lies 5 robust standard "
        "deviations of the logarithm above the 100 steps before, so that a single hard batch is none. Read it on runs "
        "of 5,000 steps or more.",
        unit="per 1,000 steps",
        spikes="gradient_norm",
        spike_rule="lasting",
    ),
    # Weight matrices only: a rule on all parameters would fire on 0-d scalars, and losses differ in how many they have.
    _spike_rate("update_rms", "update_rms_spike_rate", "update's RMS"),
)


def measures_of(names: Iterable[str], offers: Collection[str]) -> dict[str, Measure]:
    """Return by name the step measures and those of the probes *names*, on data that offer *offers*."""
    measures = [*STEP_MEASURES, *(measure for name in names for measure in probe[name].traits.measures)]
    return {measure.name: measure for measure in measures if not measure.needs or measure.needs in offers}
