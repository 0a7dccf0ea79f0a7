"""Runs probes over the replicas of a population; probes are written for one replica, and the axis is added here."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from stability.check import chance_level
from stability.datasets import Pairs, rows
from stability.devices import is_accelerator, room_on, to_device
from stability.grid import Run, train_of
from stability.losses import loss
from stability.probes import HeldOut, Replica, probe
from stability.streams import stream
from stability.study import Study, optimizer_of
from stability.train.feed import PopulationData, held_out_data, independent_indices, uniform_numbers
from stability.train.memory import bytes_per_reading, resident_bytes
from stability.train.optimizer import OptimizerState, lr_schedule_factor, preconditioner
from stability.train.population import ModelSpec

CHUNK, STACKED_CHUNK = 8, 4
"""Replicas probed at once on a CPU: under vmap, and in probes with the trait ``stacked``, which may keep second-order
graphs. On an accelerator the memory determines the number."""


@dataclass(frozen=True)
class Snapshot:
    """The state of a population at one step, before the update."""

    theta: Tensor
    optimizer: OptimizerState
    state: Mapping[str, Tensor]
    step: int


@dataclass(frozen=True)
class ProbeResult:
    """What a probe measured.

    Attributes:
        replicas: indices of the r measured replicas.
        values: by measure, values (r,) or lists (r, length).
    """

    replicas: list[int]
    values: Mapping[str, Tensor]


def held_out(pairs: Pairs, device: torch.device) -> HeldOut:
    """Return the held-out part of the data, on *device*."""
    image, text, caption, label = (
        rows(part, pairs.held_out).to(device) for part in (pairs.image, pairs.text, pairs.caption, pairs.label)
    )
    hard = None if pairs.hard_negatives is None else pairs.hard_negatives.to(device)
    extra_modalities = tuple(samples[pairs.held_out].to(device) for samples in pairs.extra_modalities)
    return HeldOut(image, text, caption, label, pairs.prompts.to(device), hard, extra_modalities)


def extra_loss_inputs(
    spec: ModelSpec,
    runs: Sequence[Run],
    generators: Mapping[int | str, torch.Generator],
    state: Mapping[str, Tensor],
    step: int,
    lead: torch.Size,
    device: torch.device,
) -> dict[str, Any]:
    """Return the reserved inputs of the loss, (R, *lead, ...): step, random numbers and state.

    Args:
        spec: what all replicas share.
        runs: the run of each replica.
        generators: the streams of random numbers, by seed.
        state: the loss's state, each tensor (R, ...).
        step: the training step.
        lead: the axes between replica and batch.
        device: where the inputs are needed.
    """
    inputs: dict[str, Any] = {}
    shape = (len(runs), *lead)
    if "step" in spec.loss.reserved:
        inputs["step"] = torch.full(shape, step, device=device)
    if "uniform" in spec.loss.reserved:
        inputs["uniform"] = to_device(uniform_numbers(runs, generators, lead), device)
    if "state" in spec.loss.reserved:
        inputs["state"] = {
            name: value.view(len(runs), *(1 for _ in lead), *value.shape[1:]).expand(*shape, *value.shape[1:])
            for name, value in state.items()
        }
    return inputs


def read(
    name: str,
    study: Study,
    spec: ModelSpec,
    feed: PopulationData,
    held: HeldOut,
    snapshot: Snapshot,
    children: Sequence[Tensor] = (),
) -> ProbeResult:
    """Run a probe on the runs that its schedule selects.

    Args:
        name: the probe.
        study: the study.
        spec: what all replicas share.
        feed: the training data.
        held: the held-out pairs.
        snapshot: the state of the population.
        children: the final flat parameters (R, P) of each child, for a probe that forks.
    """
    chosen = probed_indices(study, name, feed.runs)
    if not chosen:
        return ProbeResult([], {})
    if not is_accelerator(snapshot.theta.device):
        widest = STACKED_CHUNK if probe[name].traits.get("stacked") else CHUNK
    else:
        room = room_on(snapshot.theta.device, 0, taken=resident_bytes(feed, held, snapshot))
        # A single replica is measured twice, unless the probe measures replicas one by one.
        least = 1 if probe[name].traits.get("alone") else 2
        widest = max(least, room // bytes_per_reading(name, _options(study, name), spec, feed, held, snapshot))
    parts = []
    for train, same in itertools.groupby(chosen, key=lambda replica: train_of(study, feed.runs[replica])):
        trained = study if train == study.train else study.model_copy(update={"train": train})
        parts += [
            _read_some(name, trained, spec, feed, held, snapshot, children, part)
            for part in _chunks(list(same), widest)
        ]
    return ProbeResult(chosen, _on_host({key: torch.cat([part[key] for part in parts]) for key in parts[0]}))


def _options(study: Study, name: str) -> dict[str, Any]:
    """Return all options of a probe: those of the study, and defaults for the others."""
    return {key: value.default for key, value in probe[name].options.items()} | study.probes[name].options


def _on_host(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy *values* (r, ...) to the host in one transfer, so that the host synchronizes with the device once."""
    on_device = {key: value for key, value in values.items() if value.device.type != "cpu"}
    if len({value.dtype for value in on_device.values()}) != 1:
        return {key: value.cpu() for key, value in values.items()}
    flat = torch.cat([value.flatten(1) if value.dim() > 1 else value[:, None] for value in on_device.values()], 1)
    widths = [math.prod(value.shape[1:]) for value in on_device.values()]
    parts = zip(on_device.items(), flat.cpu().split(widths, 1), strict=True)
    return values | {key: part.reshape(value.shape) for (key, value), part in parts}


def probed_indices(study: Study, name: str, runs: Sequence[Run]) -> list[int]:
    """Return the indices of the runs that a probe measures."""
    return [index for index, run in enumerate(runs) if selects(study, name, run)]


def selects(study: Study, name: str, run: Run) -> bool:
    """Return whether a probe measures this run."""
    schedule = study.probes[name]
    return (
        (schedule.seeds is None or run.seed < study.grid.first_seed + schedule.seeds)
        and (schedule.noise is None or run.noise in schedule.noise)
        and (schedule.batch_size is None or run.batch_size in schedule.batch_size)
    )


def _chunks(chosen: list[int], widest: int) -> list[list[int]]:
    """Split the replicas into parts of at most *widest*, as even as possible."""
    parts = -(-len(chosen) // widest)
    return [chosen[part * len(chosen) // parts : (part + 1) * len(chosen) // parts] for part in range(parts)]


def _read_some(
    name: str,
    study: Study,
    spec: ModelSpec,
    feed: PopulationData,
    held: HeldOut,
    snapshot: Snapshot,
    children: Sequence[Tensor],
    chosen: list[int],
) -> dict[str, Tensor]:
    variant = probe[name]
    # A single replica would be computed by other kernels than two, so it is duplicated; the copy is dropped below.
    padded = chosen if len(chosen) > 1 or variant.traits.get("alone") else chosen * 2
    options = _options(study, name)
    rows = to_device(torch.tensor(padded), snapshot.theta.device)
    tensors: dict[str, Any] = {
        "params": spec.layout.unflatten_contiguous(snapshot.theta[rows]),
        "preconditioner": spec.layout.unflatten_contiguous(
            preconditioner(snapshot.optimizer.select(rows), study.train)
        ),
        "learning_rate": learning_rates(study, feed, snapshot, padded),
        "batches": probe_batches(name, options.get("batches", 0), spec, feed, snapshot, padded),
        "held_out_batches": {},
        "children": tuple(spec.layout.unflatten_contiguous(child[rows]) for child in children),
    }
    if variant.traits.get("held_out_batches"):
        tensors["held_out_batches"] = held_out_batches(name, options["batches"], _some(feed, padded), held, snapshot)
    chance = math.nan
    if variant.traits.get("chance"):
        # A ratio to chance is undefined if chance is 0.
        chance = chance_level(loss[study.arm(feed.runs[0].arm, feed.runs[0].options).loss], feed.batch_size) or math.nan
    constant_lr = study.train.lr_schedule == "constant" and snapshot.step >= study.train.warmup

    optimizer, settings = optimizer_of(study.train)
    threshold_of = optimizer.traits.get("stability_threshold")
    threshold = threshold_of(**settings) if threshold_of else math.nan

    def replica(varying: dict[str, Any]) -> Replica:
        return Replica(
            objective=spec.objective,
            embed_image=spec.embed_image,
            embed_text=spec.embed_text,
            embed_extra_modalities=spec.embed_extra_modalities,
            held_out=held,
            constant_rate=constant_lr,
            frozen=spec.frozen,
            chance=chance,
            stability_threshold=threshold,
            **varying,
        )

    def measure(varying: dict[str, Any]) -> dict[str, Tensor]:
        values: dict[str, Tensor] = variant(replica(varying), **options)
        return values

    values = measure(tensors) if variant.traits.get("stacked") else vmap(measure)(tensors)
    return {key: value[: len(chosen)].detach() for key, value in values.items()}


def _some(feed: PopulationData, replicas: list[int]) -> PopulationData:
    """Return the data of some of the replicas, without a copy if these are all."""
    return feed if replicas == list(range(len(feed.runs))) else feed.select(replicas)


def learning_rates(study: Study, feed: PopulationData, snapshot: Snapshot, replicas: list[int]) -> Tensor:
    """Return the learning rates (r,) of some replicas at this step; after the last step, those of the last step."""
    factor = lr_schedule_factor(study.train, min(snapshot.step, study.train.steps - 1))
    rates = torch.tensor([feed.runs[replica].lr * factor for replica in replicas])
    return to_device(rates, snapshot.theta.device)


def probe_batches(
    name: str, count: int, spec: ModelSpec, feed: PopulationData, snapshot: Snapshot, chosen: list[int]
) -> dict[str, Tensor]:
    """Return *count* independent batches for each replica: new at every step, or fixed if the probe declares it."""
    if not count:
        return {}
    fixed = probe[name].traits.get("fixed_batches")
    use = f"probe/{name}" if fixed else f"probe/{name}/{snapshot.step}"
    draw = _fixed_indices if fixed else independent_indices
    by_seed = {
        seed: draw(seed, use, count, feed.available, feed.batch_size)
        for seed in dict.fromkeys(feed.runs[replica].rng_seed for replica in chosen)
    }
    device = snapshot.theta.device
    index = torch.stack([by_seed[feed.runs[replica].rng_seed] for replica in chosen])
    some = _some(feed, chosen)
    generators = {seed: stream(seed, f"loss/{use}") for seed in by_seed}
    state = snapshot.state
    if state:
        rows = to_device(torch.tensor(chosen), device)
        state = {key: value[rows] for key, value in state.items()}
    inputs = extra_loss_inputs(spec, some.runs, generators, state, snapshot.step, index.shape[1:-1], device)
    return some.batch(index, some.generators(use)) | inputs


_fixed_indices = lru_cache(maxsize=2048)(independent_indices)
"""Cached indices of fixed batches, since permuting all pairs for each of many seeds takes seconds."""


def held_out_batches(
    name: str, count: int, feed: PopulationData, held: HeldOut, snapshot: Snapshot
) -> dict[str, Tensor]:
    """Return *count* independent batches (R, count, B, ...) of held-out pairs, new at every step.

    They have a separate random stream, so that drawing them changes no other batch. Like training pairs, they are
    corrupted at the run's noise level and are the same for all losses at one seed.
    """
    use = f"probe/{name}/held-out"
    unseen = held_out_data(feed, held.image, held.text, held.extra_modalities, held.caption, use)
    step_use, size = f"{use}/{snapshot.step}", feed.batch_size
    by_seed = {
        seed: independent_indices(seed, step_use, count, unseen.available, size)
        for seed in dict.fromkeys(run.rng_seed for run in feed.runs)
    }
    index = torch.stack([by_seed[run.rng_seed] for run in feed.runs])
    return unseen.batch(index, unseen.generators(step_use))
