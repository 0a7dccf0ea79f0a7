"""The registry of probes and its interface.

A probe is ``(replica, *, <options>) -> dict[str, Tensor]`` with one entry per declared measure. It is written for one
replica, and the trainer calls it under ``vmap``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from stability.registry import Registry, Traits
from stability.stats.after_event import AfterEvent
from stability.stats.spike_detection import SpikeRule

Params = dict[str, Tensor]
Batch = dict[str, Any]
"""Tensors by name: image, text, modality-3 and on, index, and the extra inputs of the loss (its state is itself a dict
of tensors)."""


GROWS_WITH_LOSS = "grows when the loss is multiplied by a constant, which under Adam trains the same towers"
"""Why a measure must not decide between losses (`Measure.barred_between_losses`): losses have different scales."""


@dataclass(frozen=True)
class Measure:
    """One column of the run files: its meaning, its unit, and how a claim may treat it.

    Attributes:
        name: of the column.
        label: short title for tables and figures.
        text: one-sentence definition.
        unit: empty for a plain number.
        transform: the scale on which arms are contrasted: linear; log (positive quantities); log_above_chance, which is
            log((x - chance) / (1 - chance)).
        chance: the column that holds the measure's chance level.
        pooled: two columns; the measure is the ratio of their means over a window of steps, never a mean of ratios.
        spikes: a column; the measure is its rate of spikes, one number per run.
        spike_rule: what counts as one: see `stability.stats.spike_detection`.
        after_event: a column and how its course after the event of a run is summed up, one number per run; runs without
            an event have none (see `stability.stats.after_event`).
        listed: whether each step has a list of values.
        better: which direction is good, if any; it defines "best" and "reaching a threshold".
        needs: what the data must offer (see `stability.datasets`); other data yield no such measure.
        ceiling: the highest possible value; if both sides of a claim reach it, a report says that no difference could
            show.
        error_of: the column whose numerical error this is, such as a residual; it may be rounding alone.
        scalar: the trained scalar that the loss must have; a run without it yields no such measure.
        barred_between_losses: why a claim or ranking must not compare arms of different losses by it, to stand after
            "it"; empty if it may. Values relative to chance, which are free of the loss's scale, are exempt.
    """

    name: str
    label: str
    text: str
    unit: str = ""
    transform: Literal["linear", "log", "log_above_chance"] = "linear"
    chance: str = ""
    pooled: tuple[str, str] | None = None
    spikes: str = ""
    spike_rule: SpikeRule = "steps"
    after_event: tuple[str, AfterEvent] | None = None
    listed: bool = False
    better: Literal["higher", "lower", ""] = ""
    needs: str = ""
    ceiling: float = math.inf
    error_of: str = ""
    scalar: str = ""
    barred_between_losses: str = ""

    @property
    def inline_label(self) -> str:
        """Return the label as it stands within a sentence."""
        return self.label[:1].lower() + self.label[1:]

    @property
    def stored(self) -> bool:
        """Return whether run files hold this measure; the others are derived from stored columns."""
        return self.columns == (self.name,)

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the stored columns that it is read from."""
        if self.after_event:
            return self.after_event[:1]
        return self.pooled or (self.spikes or self.name,)

    @property
    def per_run(self) -> bool:
        """Return whether it is one number per run, so that no reduction applies."""
        return bool(self.spikes or self.after_event)


@dataclass(frozen=True)
class ProbeTraits(Traits):
    """What a probe declares.

    Attributes:
        measures: The measures that it returns.
        stacked: It handles the replica axis itself and receives every tensor with a leading replica axis.
        alone: It takes replicas one by one, so that a single replica need not be padded to two.
        fixed_batches: It receives the same batches at every step.
        held_out_batches: It receives in addition as many batches of held-out pairs.
        chance: It reads the loss's chance level.
        update: It reads the last step's change of the parameters, which is then kept.
        timed: Its values are times, which no second run repeats.
        forks: The option with the steps at which it measures; empty: the schedule says. At each of them the trainer
            trains two copies of the replica to the end, with data in two other orders, and passes their final
            parameters as *children*.
        holds: What a replica keeps in memory at once, which bounds how many an accelerator measures at once:
            activations of all ``"batches"`` or of one ``"batch"``; the ``"embeddings"`` of held-out pairs, or all their
            ``"similarities"`` too.
    """

    measures: tuple[Measure, ...]
    stacked: bool = False
    alone: bool = False
    fixed_batches: bool = False
    held_out_batches: bool = False
    chance: bool = False
    update: bool = False
    timed: bool = False
    forks: str = ""
    holds: tuple[str, ...] = ("batches", "similarities")


probe = Registry("probe", ProbeTraits)


@dataclass(frozen=True)
class HeldOut:
    """Held-out pairs, with class prompts and hard negatives; see `datasets.Pairs` for shapes.

    Indices that depend on captions or labels are computed once, on the CPU: on an accelerator every selection by a mask
    is a device sync.

    Attributes:
        image, text: the pairs.
        caption: ids; pairs with equal captions have the same id.
        label: class of each image, -1 for none.
        prompts: texts (classes, variants, ...); (0, 0, ...) without classes.
        hard_negatives: texts that are false for the pair by one word, if the data have them.
        extra_modalities: samples of each modality beyond image and text.
        head, tail: indices of the pairs whose class is of the more and of the less frequent half among training pairs,
            if the study sets frequencies.
    """

    image: Tensor
    text: Tensor
    caption: Tensor
    label: Tensor
    prompts: Tensor
    hard_negatives: Tensor | None = None
    extra_modalities: tuple[Tensor, ...] = ()
    head: Tensor | None = None
    tail: Tensor | None = None

    @cached_property
    def matches(self) -> Tensor:
        """Indices into a flattened (m, m) matrix of pairs: those with equal captions."""
        return self._positions(True)

    @cached_property
    def mismatches(self) -> Tensor:
        """Indices into a flattened (m, m) matrix of pairs: those with different captions."""
        return self._positions(False)

    def _positions(self, equal: bool) -> Tensor:
        caption = self.caption.cpu()
        same = caption[:, None] == caption
        return (same == equal).flatten().nonzero()[:, 0].to(self.caption.device)

    @cached_property
    def labelled(self) -> Tensor:
        """Indices of the images that have a class."""
        return (self.label.cpu() >= 0).nonzero()[:, 0].to(self.label.device)

    @cached_property
    def classes(self) -> np.ndarray:
        """Classes of the images that have one, on the host."""
        label = self.label.cpu()
        return label[label >= 0].numpy()


@dataclass(frozen=True)
class Replica:
    """The state of one run at one step, as a probe sees it.

    Attributes:
        params: towers and the loss's scalars (``image.*``, ``text.*``, ``loss.*``).
        objective: ``objective(params, batch) -> loss``.
        embed_image, embed_text: ``(params, input) ->`` unit rows.
        embed_extra_modalities: ``(params, inputs) ->`` unit rows of each further modality.
        held_out: pairs that training never sees.
        batches: independent training batches of the run's batch size, stacked along a leading axis (as many as the
            probe's option ``batches`` says).
        preconditioner: Adam's bias-corrected sqrt(v_hat) + eps, like *params*; ones under SGD; empty under an
            optimizer that divides by no diagonal.
        learning_rate: the rate at this step, before per-parameter multipliers.
        stability_threshold: the sharpness at which the run's optimizer becomes unstable at learning rate 1; NaN where
            it declares none.
        constant_rate: whether warm-up is over and the schedule is constant from here on.
        frozen: names of parameters that are not trained.
        chance: the loss of uninformative embeddings, for a probe that declares ``chance=True``, else NaN.
        shards: the number of parts of a batch whose mean loss *objective* is, each with its own negatives only.
        held_out_batches: as many batches of held-out pairs, modalities only, for a probe that declares
            ``held_out_batches=True``.
        towers: the modules of image, text and so on, to be called with *params*: their own weights are never used.
        update: the last step's change of each parameter, for a probe that declares ``update=True``; empty before the
            first step.
        children: final parameters of two copies of the replica that branch here, for a probe that declares ``forks``;
            NaN for a copy that did not stay finite.
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
    constant_rate: bool
    stability_threshold: float = math.nan
    frozen: frozenset[str] = frozenset()
    chance: float = math.nan
    shards: int = 1
    held_out_batches: Batch = field(default_factory=dict)
    towers: Mapping[str, nn.Module] = field(default_factory=dict)
    update: Params = field(default_factory=dict)
    children: tuple[Params, ...] = ()


def mean_over(batches: Any, loss: Callable[[Any], Tensor]) -> Tensor:
    """Return the mean of ``loss(batch)`` over whole *batches*, stacked along the first axis of each tensor.

    A loop on a CPU; one vmapped call on an accelerator.
    """
    first = pytree.tree_leaves(batches)[0]
    if first.device.type != "cpu":
        return torch.vmap(loss)(batches).mean()
    split = [pytree.tree_map(lambda leaf, k=k: leaf[k], batches) for k in range(len(first))]
    return torch.stack([loss(batch) for batch in split]).mean()


def embedded(embed: Callable[[Params], Tensor], params: Params) -> np.ndarray:
    """Return ``embed(params) -> (N, D)`` for each replica of *params* (R, ...), float64 (R, N, D) on the host.

    A loop over replicas on a CPU; one vmapped call and one copy on an accelerator.
    """
    leaves = list(params.values())
    if leaves[0].device.type == "cpu":
        replicas = [{name: value[index] for name, value in params.items()} for index in range(len(leaves[0]))]
        rows = torch.stack([embed(replica).detach() for replica in replicas])
    else:
        rows = torch.vmap(embed)(params).detach().cpu()
    return rows.double().numpy()


def in_towers(name: str) -> bool:
    """Return whether a parameter belongs to an encoder; the others are the loss's trained scalars."""
    return not name.startswith("loss.")
