"""Which groups are still to be trained, how many replicas side by side, and what that will cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stability.execute.machine import core_count, device_memory, device_model, reproducible_arithmetic
from stability.grid import Group, Run, groups_of, runs_of, study_of, tuning_runs_of
from stability.study import Study
from stability.train import Trainer, time_probes, time_steps
from stability.train.memory import bytes_per_replica

WIDEST = {"cpu": 32, "cuda": 1024}
"""Replicas side by side: beyond this a CPU only leaves its caches, and a GPU is busy."""


@dataclass(frozen=True)
class Plan:
    """The groups still to be trained, longest first, and the bytes of one replica of each arm and batch size."""

    groups: tuple[Group, ...]
    bytes: dict[str, int]


def worker_count(device: torch.device) -> int:
    """Return how many processes train side by side: one a core on a CPU, each with one thread; one on a GPU.

    One thread each, because the arithmetic of a small model is too short to share: two threads wait for each other.
    """
    return 1 if device.type == "cuda" else core_count()


def plan_groups(study: Study, device: torch.device, runs: Sequence[Run], kept: Sequence[Group] = ()) -> Plan:
    """Return the *kept* groups and new ones of *runs*, longest first.

    A new group is as wide as half the memory of its worker allows: a pure function of study and machine.
    """
    pairs = study.pairs()
    budget = device_memory(device) // 2 // worker_count(device)
    needs = {
        (arm, size): bytes_per_replica(study, arm, size, pairs)
        for arm in study.grid.loss
        for size in study.grid.batch_size
    }
    width = {shape: max(2, min(WIDEST[device.type], budget // need)) for shape, need in needs.items()}
    groups = (*kept, *groups_of(runs, width))
    longest_first = sorted(groups, key=lambda group: -needs[group.arm, group.batch_size] * len(group.runs))
    return Plan(tuple(longest_first), {f"{arm} {size}": need for (arm, size), need in needs.items()})


@dataclass(frozen=True)
class Cost:
    """What a study takes on one machine: counts, seconds of training and probes, bytes while the widest train.

    *runs* are those of the test, *tuning_runs* those of the search before it, *groups* both. Where the test is also run
    without tuning, runs that tuning leaves as they are count twice here and are trained once.
    """

    runs: int
    tuning_runs: int
    groups: int
    steps: int
    device: str
    workers: int
    seconds: float
    measured_steps: int
    bytes: int


def estimate(study: Study, device: torch.device, steps: int = 3) -> Cost:
    """Return the cost of *study*, from a few real steps of every arm and one reading of every probe per batch size.

    What a probe costs hangs on the towers and the batch, hardly on the loss.
    """
    test = runs_of(study)
    plan = plan_groups(study, device, (*tuning_runs_of(study), *test))
    pairs = study.pairs()
    training: dict[tuple[str, int, int, bool], float] = {}
    probing: dict[tuple[int, int, bool], float] = {}
    with reproducible_arithmetic():
        for group in plan.groups:
            shape = (group.batch_size, len(group.runs), group.tuning)
            if (group.arm, *shape) not in training:
                trainer = Trainer(study_of(study, group), group, pairs, device)
                training[group.arm, *shape] = time_steps(trainer, steps)
                if shape not in probing:
                    probing[shape] = time_probes(trainer)
    # Without tuning as well, the test is trained twice over.
    copies = 2 if study.tune and study.tune.untuned else 1
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for group in plan.groups:
        shape = (group.batch_size, len(group.runs), group.tuning)
        seconds[group.tuning] += [training[group.arm, *shape] + probing[shape]] * (1 if group.tuning else copies)
    needs = [plan.bytes[f"{group.arm} {group.batch_size}"] * len(group.runs) for group in plan.groups]
    workers = min(worker_count(device), max(1, len(plan.groups)))
    return Cost(
        runs=len(test) * copies,
        tuning_runs=sum(len(group.runs) for group in plan.groups if group.tuning),
        groups=sum(map(len, seconds.values())),
        steps=study.train.steps,
        device=device_model(device),
        workers=workers,
        # Nothing of the test can begin before the last of the search is done.
        seconds=sum(_makespan(each, workers) for each in seconds.values()),
        measured_steps=steps,
        bytes=sum(sorted(needs)[-workers:]),
    )


def _makespan(seconds: Sequence[float], workers: int) -> float:
    """Return when the last worker is done if each takes the next group as it gets free.

    >>> _makespan([3.0, 3.0, 2.0, 2.0], workers=2), _makespan([], workers=2)
    (5.0, 0.0)
    """
    busy = [0.0] * workers
    for length in seconds:
        busy[busy.index(min(busy))] += length
    return max(busy)
