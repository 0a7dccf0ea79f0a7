"""Forks: copies of a population's replicas that continue training and differ only in the order of their data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from stability.devices import to_device
from stability.grid import Run
from stability.probes import probe
from stability.study import Study
from stability.train.population import Population
from stability.train.probe_runner import probed_indices
from stability.train.recipes import recipes_of

CHILDREN = 2
"""Number of copies of a replica that a probe compares at the end of training."""


def forked(population: Population, replicas: Sequence[int]) -> Population:
    """Return a copy of some replicas, by index, with their parameters, optimizer, clipping, state and random streams.

    The copy shares nothing with the original that a step changes.
    """
    rows = to_device(torch.tensor(replicas), population.theta.device)
    runs = [population.runs[replica] for replica in replicas]
    whole = list(replicas) == list(range(len(population.runs)))
    theta = population.theta[rows]
    return replace(
        population,
        runs=runs,
        data=population.data if whole else population.data.select(list(replicas)),
        theta=theta,
        grad=torch.zeros_like(theta),
        optimizer=population.optimizer.select(rows),
        recipes=recipes_of(population.study, population.spec, runs, theta),
        rates=population.rates.select(rows),
        clipper=population.clipper.select(rows),
        alive=population.alive[rows],
        loss_scale=population.loss_scale and population.loss_scale.select(rows),
        generators=[population.generators[replica].clone_state() for replica in replicas],
        loss_generators={run.rng_seed: population.loss_generators[run.rng_seed].clone_state() for run in runs},
        features={name: kept.select(rows) for name, kept in population.features.items()},
        state={name: value[rows] for name, value in population.state.items()},
        update=None,
    )


def fork_stream(step: int, child: int) -> str:
    """Return the name of the random stream for the batches of a child that branches at *step*."""
    return f"batches/fork/{step}/{child}"


def child_steps(study: Study, name: str, runs: Sequence[Run]) -> float:
    """Return the number of steps that a probe's children train, in steps of all *runs*; 0 if it has no children."""
    if not probe[name].traits.forks:
        return 0.0
    share = len(probed_indices(study, name, runs)) / len(runs)
    return share * CHILDREN * sum(study.train.steps - step for step in study.due(name))
