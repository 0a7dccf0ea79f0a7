"""The training loss on pairs that training never sees."""

from __future__ import annotations

import torch
from torch import Tensor

from stability.probes.registry import GROWS_WITH_LOSS, Measure, Replica, mean_over, probe


@probe(
    least={"batches": 1},
    held_out_batches=True,
    holds=("batch",),
    measures=(
        Measure(
            "held_out_loss",
            "Held-out loss",
            "Mean loss of whole batches of held-out pairs, of the training batch size and corrupted like the run's. "
            "Losses differ in scale.",
            "nats",
            better="lower",
            barred_between_losses=GROWS_WITH_LOSS,
        ),
        Measure(
            "held_out_loss_jump",
            "Jump of the held-out loss",
            "Largest held-out loss after the event minus that at the event, which was measured before the first update "
            "after it. Losses differ in scale.",
            "nats",
            after_event=("held_out_loss", "jump"),
            barred_between_losses=GROWS_WITH_LOSS,
        ),
    ),
)
def held_out_loss(replica: Replica, *, batches: int = 4) -> dict[str, Tensor]:
    """Measure the mean of the run's own loss over independent batches of held-out pairs, new at every step.

    The batches have the training batch size, since a contrastive loss depends on it. NaN for a loss with a state: its
    running estimates are those of training pairs.

    Args:
        replica: one replica.
        batches: number of batches.
    """
    if "state" in replica.batches:
        return {"held_out_loss": torch.full_like(replica.learning_rate, torch.nan)}
    # The loss may also need the step or random numbers, which only training batches bring along.
    unseen = {**replica.batches, **replica.held_out_batches}
    return {"held_out_loss": mean_over(unseen, lambda batch: replica.objective(replica.params, batch)).detach()}


@probe(
    least={"batches": 1},
    fixed_batches=True,
    held_out_batches=True,
    holds=("batch",),
    measures=(
        Measure(
            "fixed_held_out_loss",
            "Loss of fixed held-out batches",
            "Mean loss of whole batches of held-out pairs that are the same at every step. Losses differ in scale.",
            "nats",
            better="lower",
        ),
        Measure(
            "held_out_spike_rate",
            "Rate of spikes of the held-out loss",
            "Spikes after warm-up of the loss of fixed held-out batches: rises of 8 robust standard deviations and a "
            "tenth of the loss above the 20 readings before, of which at most a quarter is left within 20 readings.",
            unit="per 1,000 steps",
            spikes="fixed_held_out_loss",
            spike_rule="healing",
        ),
    ),
)
def fixed_held_out_loss(replica: Replica, *, batches: int = 1) -> dict[str, Tensor]:
    """Measure the mean of the run's own loss over batches of held-out pairs that are the same at every step.

    Only the parameters move between two readings, so a spike is one of the run and not of a hard batch. Read it every
    few steps (`every = 5`). NaN for a loss with a state, as in `held_out_loss`.

    Args:
        replica: one replica.
        batches: number of batches.
    """
    return {"fixed_held_out_loss": held_out_loss(replica, batches=batches)["held_out_loss"]}
