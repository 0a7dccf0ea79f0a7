"""Forks: copies of a population's replicas that train on apart, alike in everything but the order of their data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from stability.grid import Run
from stability.probes import probe
from stability.study import Study
from stability.train.optimizer import Moments
from stability.train.probing import places_of

if TYPE_CHECKING:
    from stability.train import Population

CHILDREN = 2
"""Copies of a replica that a probe compares at the end of training."""


def forked(population: Population, places: Sequence[int]) -> Population:
    """Return a copy of the replicas at *places*: parameters, moments, clipping, state and random streams as they are.

    Nothing that a step changes is shared with the original.
    """
    rows = torch.tensor(places, device=population.theta.device)
    runs = [population.runs[place] for place in places]
    whole = list(places) == list(range(len(population.runs)))
    moments = population.moments
    return replace(
        population,
        runs=runs,
        feed=population.feed if whole else population.feed.select(list(places)),
        theta=population.theta.detach()[rows],
        moments=Moments(moments.first[rows], moments.second[rows], moments.count),
        clip=replace(population.clip, recent=population.clip.recent[rows]),
        alive=population.alive[rows],
        generators=[population.generators[place].clone_state() for place in places],
        draws={run.luck: population.draws[run.luck].clone_state() for run in runs},
        state={name: value[rows] for name, value in population.state.items()},
    )


def order_of(step: int, child: int) -> str:
    """Return the name of the random stream of the batches of a child that parts at *step*."""
    return f"batches/fork/{step}/{child}"


def child_steps(study: Study, name: str, runs: Sequence[Run]) -> float:
    """Return the steps, in units of one step of all *runs*, that the children of a probe train; 0 if it has none."""
    if not probe[name].traits.get("forks"):
        return 0.0
    share = len(places_of(study, name, runs)) / len(runs)
    return share * CHILDREN * sum(study.train.steps - step for step in study.due(name))
