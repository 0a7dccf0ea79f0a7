"""Estimates of the memory of a replica in training and probing, which limit the number of replicas per call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from stability.curvature.graphs import bytes_of
from stability.datasets import Pairs, rows
from stability.devices import to_device
from stability.grid import Run, runs_of
from stability.optimizers import buffer_widths
from stability.precision import autocast
from stability.probes import Batch, HeldOut, probe
from stability.probes.cost import saved_bytes
from stability.study import Study, optimizer_of
from stability.train.data import population_data
from stability.train.features import bytes_kept
from stability.train.model import initial_parameters, model_spec
from stability.train.population import Population
from stability.train.recipes import segments_of
from stability.train.shift import shifted_runs

STATE_COPIES = 8
"""Flat copies of the parameters in a step: parameters, gradient, two moments, update and its temporaries."""

FORK_COPIES = 5
"""Further flat copies for a fork: the children's parameters and moments, and the final parameters of both."""

SLACK = 2.0
"""Factor on the saved activations: the temporaries of the backward pass need about as much again."""

READING_COPIES = 32
"""Flat copies of a replica's parameters in a probe: parameters, preconditioner, gradients, sums."""

BACKWARD = 8
"""Memory of a batch with first and second derivatives, as a multiple of all tensors of one evaluation."""

TABLES = 16
"""Numbers per pair of held-out samples in a probe: similarities, sorted similarities and their indices."""


def bytes_per_reading(population: Population, name: str, options: Mapping[str, Any]) -> int:
    """Return an estimate of the bytes that a probe needs for one replica, from its trait ``holds``.

    The estimate comes from one evaluation of one replica on one batch and on the held-out pairs, so it depends only on
    the study and on shapes. *options* are all options of the probe.
    """
    spec, data, held_out, theta = population.spec, population.data, population.held_out, population.theta
    holds = probe[name].traits.holds
    params = spec.layout.unflatten(theta[0].detach())
    # The basis of the Krylov space has one vector per step.
    vectors = READING_COPIES + int(options.get("steps", 0))
    total = vectors * _bytes(theta[0])
    count = int(options.get("batches", 0))
    if count:
        batch = _first_batch(population)
        evaluated = bytes_of(lambda: spec.objective(params, batch), params)
        samples = sum(map(_bytes, pytree.tree_leaves(batch)))
        unseen = probe[name].traits.held_out_batches
        sides = [data.samples_of(side) for side in ("image", "text", *data.extra_modalities)]
        selected = sum(_bytes(x[0]) for x, is_shared in sides if not is_shared and not data.on_host)
        total += (1 + unseen) * (count * samples + selected)
        total += BACKWARD * evaluated * (count if "batches" in holds else "batch" in holds)
    if "embeddings" in holds or "similarities" in holds:
        embeddings = (
            lambda: spec.embed_image(params, held_out.image),
            lambda: spec.embed_text(params, held_out.text),
            lambda: spec.embed_extra_modalities(params, held_out.extra_modalities),
        )
        total += 2 * sum(bytes_of(embed, params) for embed in embeddings)
    if "similarities" in holds:
        towers = len(spec.towers)
        total += TABLES * towers * (towers - 1) // 2 * len(held_out.image) ** 2 * theta.element_size()
    return total


def resident_bytes(population: Population) -> int:
    """Return the bytes that data, parameters and moments take on the device between two steps."""
    data = population.data
    pairs = [] if data.on_host else [data.image, data.text, *data.extra_modalities.values()]
    state = [population.theta, *population.optimizer.buffers.values()]
    return sum(map(_bytes, [*pairs, *_tensors(population.held_out), *state]))


@dataclass(frozen=True)
class DataBytes:
    """The bytes of data on an accelerator.

    Attributes:
        held_out: held-out pairs.
        shared: training pairs that all replicas share.
        own: training pairs of each replica: a corrupted modality, or the subset of pairs that a run trains on.
    """

    held_out: int
    shared: int
    own: int


def bytes_of_data(study: Study, pairs: Pairs) -> DataBytes:
    """Return the bytes of the data on an accelerator whose memory holds the training pairs.

    At a shift, the data before and after it are there together for a moment, so they count twice.
    """
    before = _bytes_of_data(study, pairs, runs_of(study))
    if study.data.shift is None:
        return before
    after = _bytes_of_data(study, study.shifted_pairs(pairs), shifted_runs(runs_of(study), study.data.shift))
    return DataBytes(*(sum(parts) for parts in zip(astuple(before), astuple(after), strict=True)))


def _bytes_of_data(study: Study, pairs: Pairs, runs: Sequence[Run]) -> DataBytes:
    noisiest: dict[tuple[str, int], Run] = {}
    for run in runs:
        current = noisiest.setdefault((run.corruption, run.train_pairs), run)
        if run.noise > current.noise:
            noisiest[run.corruption, run.train_pairs] = run
    shared, own = [0], [0]
    for run in noisiest.values() if study.data.corruption == "fixed" else ():
        data = population_data([run], pairs, "fixed", torch.device("cpu"))
        sides = [data.samples_of(name) for name in ("image", "text", *data.extra_modalities)]
        shared.append(sum(_bytes(samples) for samples, is_shared in sides if is_shared))
        own.append(sum(_bytes(samples) for samples, is_shared in sides if not is_shared))
    seen = [rows(samples, pairs.held_out) for samples in (*pairs.modalities.values(), pairs.caption, pairs.label)]
    seen += [pairs.prompts, *([] if pairs.hard_negatives is None else [pairs.hard_negatives])]
    return DataBytes(sum(map(_bytes, seen)), max(shared), max(own))


def _tensors(held_out: HeldOut) -> list[Tensor]:
    hard = [part for part in (held_out.hard_negatives, held_out.head, held_out.tail) if part is not None]
    return [
        held_out.image,
        held_out.text,
        held_out.caption,
        held_out.label,
        held_out.prompts,
        *hard,
        *held_out.extra_modalities,
    ]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _first_batch(population: Population) -> Batch:
    """Return the first pairs of the first replica, with placeholders for the reserved inputs of losses."""
    data, device = population.data, population.theta.device
    size = data.batch_size
    sides = {name: data.samples_of(name) for name in ("image", "text", *data.extra_modalities)}
    return {
        **{name: to_device((x if shared else x[0])[:size], device) for name, (x, shared) in sides.items()},
        "index": torch.arange(size, device=device),
        "step": torch.zeros((), device=device),
        "uniform": torch.zeros(size, size, device=device),
        "state": {name: value[0] for name, value in population.state.items()},
    }


def bytes_per_replica(study: Study, arm: str, batch_size: int, pairs: Pairs) -> int:
    """Return an estimate of the bytes that one replica needs for a training step.

    Counts the tensors that autograd saves in one forward pass of one replica (each storage once) and the features of
    frozen towers (those of all its pairs, though replicas may share them, twice where the data shift), so it depends
    only on the study.

    Args:
        study: the study.
        arm: name of the arm.
        batch_size: B.
        pairs: the study's data.
    """
    spec = model_spec(study, arm, batch_size, pairs)
    theta = initial_parameters(study, spec, pairs, [0])[0].requires_grad_()
    index = pairs.train[:batch_size]
    batch = {
        **{name: samples[index] for name, samples in pairs.modalities.items()},
        "index": torch.arange(batch_size),
        "step": torch.tensor(0),
        "uniform": torch.zeros(batch_size, batch_size),
        "state": spec.loss.initial_state(len(pairs.train)),
    }
    # On an accelerator the operands of 16-bit products take less than their rounded copies on a CPU do.
    with autocast(spec.precision.towers, theta.device):
        saved = saved_bytes(lambda: spec.objective(spec.layout.unflatten(theta), batch))
    features = sum(bytes_kept(split, len(pairs.train)) for split in spec.splits.values())
    features *= (study.data.corruption == "fixed") * (2 if study.data.shift else 1)
    forks = any(probe[name].traits.forks for name in study.probes)
    keeps_update = any(probe[name].traits.update for name in study.probes)
    numbers = (STATE_COPIES + (FORK_COPIES if forks else 0) + keeps_update) * theta.numel()
    # Of an optimizer with more than the two moments that the copies count, also for the children of forks.
    train = study.train_of(arm)
    widths = buffer_widths(optimizer_of(train)[0], segments_of(spec, train), theta.numel())
    more = max(0, sum(widths.values()) - 2 * theta.numel())
    return int(SLACK * saved) + (numbers + (1 + forks) * more) * theta.element_size() + features
