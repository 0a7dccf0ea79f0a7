"""How much memory a replica takes while it trains or is probed: what decides how many do so side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from stability.curvature.graphs import bytes_of
from stability.datasets import Pairs, rows
from stability.devices import to_device
from stability.grid import Run, runs_of
from stability.probes import Batch, HeldOut, probe
from stability.study import Study
from stability.train.features import bytes_kept
from stability.train.feed import PopulationData, population_data
from stability.train.population import ModelSpec, initial_parameters, model_spec

if TYPE_CHECKING:
    from stability.train.probing import Snapshot

STATE_COPIES = 8
"""Flat copies of the parameters that a step holds: parameters, gradient, two moments, update and its temporaries."""

FORK_COPIES = 5
"""What a fork holds beside them: the copies' own parameters and moments, and where their two ends are kept."""

SLACK = 2.0
"""Activations are held once for the backward pass; its temporaries need about as much again."""


READING_COPIES = 32
"""Flat copies of the parameters that a reading holds of a replica: parameters, preconditioner, gradients, sums."""

BACKWARD = 8
"""What a batch takes with its derivatives, second ones too, as a multiple of all that one evaluation computes."""

TABLES = 16
"""Numbers that a reading holds for each pair of held-out samples: similarities, sorted ones and their indices."""


def bytes_per_reading(
    name: str, options: Mapping[str, Any], plan: ModelSpec, feed: PopulationData, held: HeldOut, snapshot: Snapshot
) -> int:
    """Return an estimate of the bytes that probe *name* holds of one replica, by what it declares to hold.

    From one evaluation of one replica on one batch and on the held-out pairs: a function of the study and of shapes.
    """
    holds = probe[name].traits.get("holds", ("batches", "similarities"))
    params = plan.layout.unflatten(snapshot.theta[0].detach())
    # A basis of the Krylov space has a vector a step.
    vectors = READING_COPIES + int(options.get("steps", 0))
    total = vectors * _bytes(snapshot.theta[0])
    count = int(options.get("batches", 0))
    if count:
        batch = _first_batch(feed, snapshot)
        evaluated = bytes_of(lambda: plan.objective(params, batch), params)
        samples = sum(map(_bytes, pytree.tree_leaves(batch)))
        unseen = bool(probe[name].traits.get("held_out_batches"))
        sides = [feed.side(side) for side in ("image", "text", *feed.extra_modalities)]
        selected = sum(_bytes(own[0]) for own, is_shared in sides if not is_shared and not feed.on_host)
        total += (1 + unseen) * (count * samples + selected)
        total += BACKWARD * evaluated * (count if "batches" in holds else "batch" in holds)
    if "embeddings" in holds or "similarities" in holds:
        embeddings = (
            lambda: plan.embed_image(params, held.image),
            lambda: plan.embed_text(params, held.text),
            lambda: plan.embed_extra_modalities(params, held.extra_modalities),
        )
        total += 2 * sum(bytes_of(embed, params) for embed in embeddings)
    if "similarities" in holds:
        towers = len(plan.towers)
        total += TABLES * towers * (towers - 1) // 2 * len(held.image) ** 2 * snapshot.theta.element_size()
    return total


def bytes_lying(feed: PopulationData, held: HeldOut, snapshot: Snapshot) -> int:
    """Return the bytes that data and population take between two steps: *feed*, *held*, parameters and moments."""
    pairs = [] if feed.on_host else [feed.image, feed.text, *feed.extra_modalities.values()]
    state = [snapshot.theta, *snapshot.optimizer.buffers.values()]
    return sum(map(_bytes, [*pairs, *_tensors(held), *state]))


@dataclass(frozen=True)
class DataBytes:
    """The bytes of data on an accelerator: *held_out* pairs, training pairs that replicas *shared*, and each's *own*.

    Training pairs are a replica's own on a side that is corrupted beforehand, and where a run trains on a part of them.
    """

    held_out: int
    shared: int
    own: int


def bytes_of_data(study: Study, pairs: Pairs) -> DataBytes:
    """Return what data would take on an accelerator, if its memory has room for the training pairs."""
    noisiest: dict[tuple[str, int], Run] = {}
    for run in runs_of(study):
        known = noisiest.setdefault((run.corruption, run.train_pairs), run)
        if run.noise > known.noise:
            noisiest[run.corruption, run.train_pairs] = run
    shared, own = [0], [0]
    for run in noisiest.values() if study.data.corruption == "fixed" else ():
        feed = population_data([run], pairs, "fixed", torch.device("cpu"))
        sides = [feed.side(name) for name in ("image", "text", *feed.extra_modalities)]
        shared.append(sum(_bytes(samples) for samples, is_shared in sides if is_shared))
        own.append(sum(_bytes(samples) for samples, is_shared in sides if not is_shared))
    seen = [rows(samples, pairs.held_out) for samples in (*pairs.modalities.values(), pairs.caption, pairs.label)]
    seen += [pairs.prompts, *([] if pairs.hard_negatives is None else [pairs.hard_negatives])]
    return DataBytes(sum(map(_bytes, seen)), max(shared), max(own))


def _tensors(held: HeldOut) -> list[Tensor]:
    hard = [] if held.hard_negatives is None else [held.hard_negatives]
    return [held.image, held.text, held.caption, held.label, held.prompts, *hard, *held.extra_modalities]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _first_batch(feed: PopulationData, snapshot: Snapshot) -> Batch:
    """Return the first pairs of the first replica, with stand-ins for what a loss may ask for beside them."""
    size, device = feed.batch_size, snapshot.theta.device
    sides = {name: feed.side(name) for name in ("image", "text", *feed.extra_modalities)}
    return {
        **{name: to_device((x if shared else x[0])[:size], device) for name, (x, shared) in sides.items()},
        "index": torch.arange(size, device=device),
        "step": torch.zeros((), device=device),
        "uniform": torch.zeros(size, size, device=device),
        "state": {name: value[0] for name, value in snapshot.state.items()},
    }


def bytes_per_replica(study: Study, arm: str, batch_size: int, pairs: Pairs) -> int:
    """Return an estimate of the bytes that one replica needs for a training step.

    Counts what autograd saves in one forward pass of one replica (each storage once) and the features of locked towers
    (those of all its pairs, though replicas may share them), so it depends on the study alone.
    """
    plan = model_spec(study, arm, batch_size, pairs)
    theta = initial_parameters(study, plan, pairs, [0])[0].requires_grad_()
    index = pairs.train[:batch_size]
    saved: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = {
        **{name: samples[index] for name, samples in pairs.modalities.items()},
        "index": torch.arange(batch_size),
        "step": torch.tensor(0),
        "uniform": torch.zeros(batch_size, batch_size),
        "state": plan.loss.initial_state(len(pairs.train)),
    }
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = plan.objective(plan.layout.unflatten(theta), batch)
    del loss
    features = sum(bytes_kept(cut, len(pairs.train)) for cut in plan.cuts.values())
    features *= study.data.corruption == "fixed"
    forks = any(probe[name].traits.get("forks") for name in study.probes)
    copies = STATE_COPIES + (FORK_COPIES if forks else 0)
    return int(SLACK * sum(saved.values())) + copies * theta.numel() * theta.element_size() + features
