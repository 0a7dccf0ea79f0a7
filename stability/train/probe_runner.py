"""Runs probes over the replicas of a population; probes are written for one replica, and the axis is added here."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from stability.devices import is_accelerator, room_on, to_device
from stability.grid import Run, train_of
from stability.losses import loss
from stability.losses.chance import chance_level
from stability.probes import Replica, probe
from stability.streams import stream
from stability.study import Study, optimizer_of
from stability.train.data import PopulationData, held_out_data, independent_indices, uniform_numbers
from stability.train.memory import bytes_per_reading, resident_bytes
from stability.train.optimizer import evaluation_point, lr_schedule_factor, preconditioner
from stability.train.population import Population

CHUNK, STACKED_CHUNK = 8, 4
"""Replicas probed at once on a CPU: under vmap, and in probes with the trait ``stacked``, which may keep second-order
graphs. On an accelerator the memory determines the number."""


@dataclass(frozen=True)
class ProbeResult:
    """What a probe measured.

    Attributes:
        replicas: indices of the r measured replicas.
        values: by measure, values (r,) or lists (r, length).
    """

    replicas: list[int]
    values: Mapping[str, Tensor]


def _reserved_inputs(
    population: Population, chosen: list[int], generators: Mapping[int | str, torch.Generator], lead: torch.Size
) -> dict[str, Any]:
    """Return the reserved inputs of the loss for some replicas, (r, *lead, ...): step, random numbers and state.

    Args:
        population: the replicas.
        chosen: the indices of r of them.
        generators: the streams of random numbers, by seed.
        lead: the axes between replica and batch.
    """
    reserved, device, shape = population.spec.loss.reserved, population.theta.device, (len(chosen), *lead)
    inputs: dict[str, Any] = {}
    if "step" in reserved:
        inputs["step"] = torch.full(shape, population.step, device=device)
    if "uniform" in reserved:
        runs = [population.runs[replica] for replica in chosen]
        inputs["uniform"] = to_device(uniform_numbers(runs, generators, lead), device)
    if "state" in reserved:
        rows = to_device(torch.tensor(chosen), device)
        inputs["state"] = {
            name: value[rows].view(len(chosen), *(1 for _ in lead), *value.shape[1:]).expand(*shape, *value.shape[1:])
            for name, value in population.state.items()
        }
    return inputs


def read(population: Population, name: str, children: Sequence[Tensor] = ()) -> ProbeResult:
    """Run a probe on the runs that its schedule selects.

    Args:
        population: the replicas, before the update of this step.
        name: the probe.
        children: the final flat parameters (R, P) of each child, for a probe that forks.
    """
    chosen = probed_indices(population.study, name, population.runs)
    if not chosen:
        return ProbeResult([], {})
    traits, device = probe[name].traits, population.theta.device
    if not is_accelerator(device):
        widest = STACKED_CHUNK if traits.stacked else CHUNK
    else:
        room = room_on(device, 0, taken=resident_bytes(population))
        # A single replica is measured twice, unless the probe measures replicas one by one.
        least = 1 if traits.alone else 2
        widest = max(least, room // bytes_per_reading(population, name, _options(population.study, name)))
    study, parts = population.study, []
    for train, same in itertools.groupby(chosen, key=lambda replica: train_of(study, population.runs[replica])):
        as_trained = replace(population, study=study.model_copy(update={"train": train}))
        parts += [_read_some(as_trained, name, children, part) for part in _chunks(list(same), widest)]
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


def _read_some(population: Population, name: str, children: Sequence[Tensor], chosen: list[int]) -> dict[str, Tensor]:
    variant, study, spec, run = probe[name], population.study, population.spec, population.runs[0]
    # A single replica would be computed by other kernels than two, so it is duplicated; the copy is dropped below.
    padded = chosen if len(chosen) > 1 or variant.traits.alone else chosen * 2
    options = _options(study, name)
    count = options.get("batches", 0)
    rows = to_device(torch.tensor(padded), population.theta.device)
    state = population.optimizer.select(rows)
    diagonal = preconditioner(state, study.train)
    params = evaluation_point(population.theta[rows], state, study.train)
    tensors: dict[str, Any] = {
        "params": spec.layout.unflatten_contiguous(params),
        "preconditioner": {} if diagonal is None else spec.layout.unflatten_contiguous(diagonal),
        "learning_rate": learning_rates(population, padded),
        "batches": probe_batches(population, name, count, padded),
        "held_out_batches": (
            held_out_batches(population, name, count, padded) if variant.traits.held_out_batches else {}
        ),
        "update": (
            spec.layout.unflatten_contiguous(population.update[rows])
            if variant.traits.update and population.update is not None and population.step
            else {}
        ),
        "children": tuple(spec.layout.unflatten_contiguous(child[rows]) for child in children),
    }
    chance = math.nan
    if variant.traits.chance:
        # A ratio to chance is undefined if chance is 0.
        chance = chance_level(loss[study.arm(run.arm, run.options).loss], run.batch_size // spec.shards) or math.nan
    warm = study.train.warmup
    if population.start is not None:
        warm = max(warm, population.start.first_step + population.start.warmup)
    constant_lr = study.train.lr_schedule == "constant" and population.step >= warm
    optimizer, settings = optimizer_of(study.train)
    threshold_of = optimizer.traits.stability_threshold
    threshold = threshold_of(**settings) if threshold_of else math.nan

    def replica(varying: dict[str, Any]) -> Replica:
        return Replica(
            objective=spec.objective,
            embed_image=spec.embed_image,
            embed_text=spec.embed_text,
            embed_extra_modalities=spec.embed_extra_modalities,
            held_out=population.held_out,
            towers=spec.towers,
            constant_rate=constant_lr,
            frozen=spec.frozen,
            chance=chance,
            stability_threshold=threshold,
            shards=spec.shards,
            **varying,
        )

    def measure(varying: dict[str, Any]) -> dict[str, Tensor]:
        values: dict[str, Tensor] = variant(replica(varying), **options)
        return values

    values = measure(tensors) if variant.traits.stacked else vmap(measure)(tensors)
    return {key: value[: len(chosen)].detach() for key, value in values.items()}


def _some(data: PopulationData, replicas: list[int]) -> PopulationData:
    """Return the data of some of the replicas, without a copy if these are all."""
    return data if replicas == list(range(len(data.runs))) else data.select(replicas)


def learning_rates(population: Population, replicas: list[int]) -> Tensor:
    """Return the learning rates (r,) of some replicas at this step; after the last step, those of the last step."""
    train = population.study.train
    factor = lr_schedule_factor(train, min(population.step, train.steps - 1), population.start)
    rates = torch.tensor([population.runs[replica].lr * factor for replica in replicas])
    return to_device(rates, population.theta.device)


def probe_batches(population: Population, name: str, count: int, chosen: list[int]) -> dict[str, Tensor]:
    """Return independent batches for some replicas: new at every step, or fixed if the probe declares it.

    Args:
        population: the replicas.
        name: the probe.
        count: the number of batches for each replica.
        chosen: the indices of the replicas.
    """
    if not count:
        return {}
    fixed = probe[name].traits.fixed_batches
    use = f"probe/{name}" if fixed else f"probe/{name}/{population.step}"
    draw = _fixed_indices if fixed else independent_indices
    some = _some(population.data, chosen)
    seeds = [run.rng_seed for run in some.runs]
    by_seed = {seed: draw(seed, use, count, some.available, some.batch_size) for seed in dict.fromkeys(seeds)}
    index = torch.stack([by_seed[seed] for seed in seeds])
    generators = {seed: stream(seed, f"loss/{use}") for seed in by_seed}
    inputs = _reserved_inputs(population, chosen, generators, index.shape[1:-1])
    return some.batch(index, some.generators(use)) | inputs


_fixed_indices = lru_cache(maxsize=2048)(independent_indices)
"""Cached indices of fixed batches, since permuting all pairs for each of many seeds takes seconds."""


def held_out_batches(population: Population, name: str, count: int, chosen: list[int]) -> dict[str, Tensor]:
    """Return independent batches (r, count, B, ...) of held-out pairs: new at every step, or fixed if declared.

    They have a separate random stream, so that drawing them changes no other batch. Like training pairs, they are
    corrupted at the run's noise level and are the same for all losses at one seed.

    Args:
        population: the replicas.
        name: the probe.
        count: the number of batches for each replica.
        chosen: the indices of the replicas.
    """
    use, held_out, data = f"probe/{name}/held-out", population.held_out, _some(population.data, chosen)
    unseen = held_out_data(data, held_out.image, held_out.text, held_out.extra_modalities, held_out.caption, use)
    fixed = probe[name].traits.fixed_batches
    step_use, seeds = use if fixed else f"{use}/{population.step}", [run.rng_seed for run in data.runs]
    draw = _fixed_indices if fixed else independent_indices
    by_seed = {seed: draw(seed, step_use, count, unseen.available, data.batch_size) for seed in dict.fromkeys(seeds)}
    index = torch.stack([by_seed[seed] for seed in seeds])
    return unseen.batch(index, unseen.generators(step_use))
