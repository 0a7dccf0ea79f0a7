"""Probes: a catalogue of measurements of one replica at one step, each declaring the measures it makes.

A probe is ``(replica, *, <options>) -> dict[str, Tensor]`` with one entry per declared measure, written for one
replica: the trainer calls it under ``vmap``. One that hands its work to a kernel with a replica axis of its own
declares ``stacked=True`` and receives every tensor with a leading replica axis; ``alone=True`` says that it takes
replicas one by one, so that one need not be padded to two. ``fixed_batches=True`` asks for the same batches at every
step, ``held_out_batches=True`` for as many batches of held-out pairs, ``least={"batches": 2}`` bounds options from
below, and ``several=("fork",)`` names those that take a list too. ``holds`` says what lies in memory at once of each
replica, which decides how many an accelerator reads at once: what is computed from all ``"batches"``, or from one
``"batch"``; the ``"embeddings"`` of held-out pairs, or all their ``"similarities"`` too. A probe that does not say is
taken to hold batches and similarities.

``forks="fork"`` names the option that holds the steps at which the probe measures: there the trainer trains two copies
of the replica to the end, with data in two other orders, and hands both ends over as the replica's *children*.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from stability.registry import Registry

probe = Registry("probe")

Params = dict[str, Tensor]
Batch = dict[str, Any]
"""Tensors by name: image, text, modality-3 and on, index, and what a loss asks for beside them (its state is itself
tensors by name)."""


@dataclass(frozen=True)
class Measure:
    """One column of the run files: what it means, its unit, and how a claim may treat it.

    *transform* says on which scale arms are contrasted: linear; log (positive quantities); log_above_chance, which is
    log((x - chance) / (1 - chance)) with *chance* the column that holds its chance level. A *pooled* measure is the
    ratio of the means of two columns over a window of steps, never a mean of ratios. A measure of *spikes* is the rate
    of spikes of the column it names, one number a run. A *listed* one is a list per step. *better* says which way is
    good, where one is: it decides what "best" and "reaching a threshold" mean. *ceiling* is the highest value that it
    can have: where both sides of a claim lie at it, a report says that no difference could show. *error_of* is the
    column whose computed error it is, as a residual is, which may be nothing but rounding. *needs* is what the data
    must offer for it (see `stability.datasets`): a run on data that do not makes no such measure; *scalar* is what the
    loss must have for it: a run under one that has not gives none.
    """

    name: str
    label: str
    text: str
    unit: str = ""
    transform: Literal["linear", "log", "log_above_chance"] = "linear"
    chance: str = ""
    pooled: tuple[str, str] | None = None
    spikes: str = ""
    listed: bool = False
    better: Literal["higher", "lower", ""] = ""
    needs: str = ""
    ceiling: float = math.inf
    error_of: str = ""
    scalar: str = ""

    @property
    def stored(self) -> bool:
        """Tell whether run files hold this measure; the others are derived from columns that they hold."""
        return self.pooled is None and not self.spikes


@dataclass(frozen=True)
class HeldOut:
    """Pairs that training never sees, the prompts that name their classes, and texts that are almost right.

    Without classes, prompts are (0, 0, ...); see `datasets.Pairs` for shapes. What is selected by captions or labels is
    found once, on the CPU: an accelerator would make the host wait at every selection by a mask.
    """

    image: Tensor
    text: Tensor
    caption: Tensor
    label: Tensor
    prompts: Tensor
    hard_negatives: Tensor | None = None
    extra_modalities: tuple[Tensor, ...] = ()

    @cached_property
    def matches(self) -> Tensor:
        """Positions, in a flattened (m, m) table of pairs, of those with equal captions."""
        return self._positions(True)

    @cached_property
    def mismatches(self) -> Tensor:
        """Positions, in a flattened (m, m) table of pairs, of those with different captions."""
        return self._positions(False)

    def _positions(self, equal: bool) -> Tensor:
        caption = self.caption.cpu()
        same = caption[:, None] == caption
        return (same == equal).flatten().nonzero()[:, 0].to(self.caption.device)

    @cached_property
    def labelled(self) -> Tensor:
        """Positions of the images that have a class."""
        return (self.label.cpu() >= 0).nonzero()[:, 0].to(self.label.device)

    @cached_property
    def classes(self) -> np.ndarray:
        """Classes of the images that have one, on the host."""
        label = self.label.cpu()
        return label[label >= 0].numpy()


@dataclass(frozen=True)
class Replica:
    """All that a probe may see of one run at one step.

    params: towers and the loss's scalars (``image.*``, ``text.*``, ``loss.*``); objective(params, batch) -> loss;
    embed_image and embed_text (params, input) -> unit rows; embed_extra_modalities (params, inputs) -> unit rows of each
    modality beyond these two; batches: independent training batches, stacked along a leading axis, of the size that the
    run trains with (as many as the probe's option ``batches`` says); held_out_batches: as many of held-out pairs, the
    samples of their modalities alone, for a probe that declares ``held_out_batches=True``; preconditioner: Adam's
    bias-corrected sqrt(v_hat) + eps, like params, or ones under SGD; learning_rate: the rate at this step, before
    per-parameter multipliers; constant_rate: whether the schedule is past its warm-up and constant from here on;
    momentum: that of SGD, None under AdamW (whose betas are *betas*); fixed: the names of parameters that are not
    trained; chance: the loss of embeddings that say nothing, for a probe that declares ``chance=True``, else NaN;
    children: for a probe that declares ``forks``, the parameters at the end of training of two copies of the replica
    that part here, NaN for one that did not stay finite.
    """

    params: Params
    objective: Callable[[Params, Batch], Tensor]
    embed_image: Callable[[Params, Tensor], Tensor]
    embed_text: Callable[[Params, Tensor], Tensor]
    embed_extra_modalities: Callable[[Params, tuple[Tensor, ...]], tuple[Tensor, ...]]
    held_out: HeldOut
    batches: Batch
    preconditioner: Params
    learning_rate: Tensor
    betas: tuple[float, float]
    constant_rate: bool
    momentum: float | None = None
    frozen: frozenset[str] = frozenset()
    chance: float = math.nan
    held_out_batches: Batch = field(default_factory=dict)
    children: tuple[Params, ...] = ()


def mean_over(batches: Any, loss: Callable[[Any], Tensor]) -> Tensor:
    """Return the mean of ``loss(batch)`` over whole *batches*, stacked along the first axis of each tensor.

    One after the other on a CPU; on an accelerator all in one call.
    """
    first = pytree.tree_leaves(batches)[0]
    if first.device.type != "cpu":
        return torch.vmap(loss)(batches).mean()
    each = [pytree.tree_map(lambda leaf, k=k: leaf[k], batches) for k in range(len(first))]
    return torch.stack([loss(batch) for batch in each]).mean()


def embedded(embed: Callable[[Params], Tensor], params: Params) -> np.ndarray:
    """Return ``embed(params) -> (N, D)`` of each replica of *params* (R, ...), float64 (R, N, D) on the host.

    Replica by replica on a CPU; on an accelerator all together, and copied at once.
    """
    leaves = list(params.values())
    if leaves[0].device.type == "cpu":
        each = [{name: value[place] for name, value in params.items()} for place in range(len(leaves[0]))]
        rows = torch.stack([embed(one).detach() for one in each])
    else:
        rows = torch.vmap(embed)(params).detach().cpu()
    return rows.double().numpy()


def in_towers(name: str) -> bool:
    """Tell whether a parameter belongs to an encoder (its complement: the loss's trained scalars)."""
    return not name.startswith("loss.")


def _spike_rate(column: str, name: str, of: str) -> Measure:
    return Measure(
        name,
        f"Rate of spikes of the {of}",
        f"Spikes of the {of} after warm-up: rises of 8 robust standard deviations above the 100 steps before, free of "
        "the loss's scale. Read it on runs of 5,000 steps or more.",
        unit="per 1,000 steps",
        spikes=column,
    )


STEP_MEASURES = (
    Measure("loss", "Training loss", "Loss of the step's batch, before the update.", "nats", better="lower"),
    Measure(
        "gradient_norm",
        "Gradient norm",
        "Euclidean norm of the batch gradient over all parameters.",
        transform="log",
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
        "false_negative_fraction",
        "False negatives",
        "Share of the batch's off-diagonal pairs with equal captions: positives that the loss takes as negatives.",
        "share",
    ),
    _spike_rate("loss", "loss_spike_rate", "training loss"),
    _spike_rate("gradient_norm", "gradient_norm_spike_rate", "gradient norm"),
    # Of weight matrices alone: a rule on all parameters would fire on 0-d scalars, and losses differ in their number.
    _spike_rate("update_rms", "update_rms_spike_rate", "update's RMS"),
)


def measures_of(names: Iterable[str], offers: Collection[str]) -> dict[str, Measure]:
    """Return every measure that a run with these probes makes on data that offer this, by name, the trainer's first."""
    made = [*STEP_MEASURES, *(measure for name in names for measure in probe[name].traits["measures"])]
    return {measure.name: measure for measure in made if not measure.needs or measure.needs in offers}


# Variants register on import.
from stability.probes import (  # noqa: E402
    cost,
    downstream,
    embeddings,
    forks,
    gradients,
    modalities,
    perturbations,
    scalars,
    shots,
    spectra,
)

__all__ = [
    "STEP_MEASURES",
    "HeldOut",
    "Measure",
    "Replica",
    "cost",
    "downstream",
    "embedded",
    "embeddings",
    "forks",
    "gradients",
    "in_towers",
    "mean_over",
    "measures_of",
    "modalities",
    "perturbations",
    "probe",
    "scalars",
    "shots",
    "spectra",
]
