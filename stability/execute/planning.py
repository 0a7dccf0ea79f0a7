"""Which groups are still to be trained, how many replicas side by side, and what that will cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial

import torch

from stability.devices import is_accelerator
from stability.execute.devices import devices_of
from stability.execute.machine import core_count, device_memory, device_model, peak_of, reproducible_arithmetic
from stability.execute.pool import WorkerPool
from stability.grid import Group, Run, groups_of, runs_of, study_of, tuning_runs_of
from stability.registry import InputError
from stability.study import Study
from stability.train import Timing, time_group
from stability.train.feed import HOST_SHARE
from stability.train.memory import DataBytes, bytes_of_data, bytes_per_replica
from stability.train.probing import selects

MAX_REPLICAS = {"cpu": 32, "cuda": 1024}
"""Replicas side by side: beyond this a CPU only leaves its caches, and a GPU is busy."""


@dataclass(frozen=True)
class Plan:
    """The groups still to be trained, longest first, and the bytes of one replica of each arm and batch size."""

    groups: tuple[Group, ...]
    bytes: dict[str, int]


def worker_count(device: torch.device) -> int:
    """Return how many processes train side by side: one a core on a CPU, each with one thread; one on each GPU.

    One thread each, because the arithmetic of a small model is too short to share: two threads wait for each other.
    """
    return max(1, len(devices_of(device))) if device.type == "cuda" else core_count()


def workers_on(on: str, device: torch.device) -> int:
    """Return how many processes train side by side for ``--on``: ``local``, or ``processes:N``.

    >>> workers_on("processes:3", torch.device("cpu")), workers_on("local", torch.device("cuda"))
    (3, 1)
    """
    kind, _, count = on.partition(":")
    if on == "local":
        return worker_count(device)
    if kind != "processes" or not (count.isdecimal() and count.isascii() and int(count)):
        raise InputError(f"--on: got {on!r}; allowed where a study is planned: local, or processes:N with N at least 1")
    return int(count)


def sharing_of(executor: Executor | None) -> int:
    """Return how many workers of *executor* share one GPU; 1 where it is not known to place its workers."""
    return executor.sharing if isinstance(executor, WorkerPool) else 1


def plan_groups(
    study: Study, device: torch.device, runs: Sequence[Run], kept: Sequence[Group] = (), sharing: int = 1
) -> Plan:
    """Return the *kept* groups and new ones of *runs*, longest first.

    A new group is as wide as half the memory of its worker allows, on an accelerator half of what the data leave. That
    is a pure function of study and machine, and on a GPU of how many workers are *sharing* it.
    """
    pairs = study.pairs()
    data = bytes_of_data(study, pairs) if is_accelerator(device) else DataBytes(0, 0, 0)
    needs = {
        (arm, size): bytes_per_replica(study, arm, size, pairs)
        for arm in study.grid.arms
        for size in study.grid.batch_size
    }
    memory = device_memory(device) // (sharing if is_accelerator(device) else worker_count(device))
    width = {shape: _width(memory, MAX_REPLICAS[device.type], need, data) for shape, need in needs.items()}
    groups = (*kept, *groups_of(runs, width))
    longest_first = sorted(groups, key=lambda group: -needs[group.arm, group.batch_size] * len(group.runs))
    return Plan(tuple(longest_first), {f"{arm} {size}": need for (arm, size), need in needs.items()})


def _width(memory: int, widest: int, need: int, data: DataBytes) -> int:
    """Return how many replicas of *need* bytes train side by side: at least 2, at most *widest*.

    >>> _width(1000, 32, 50, DataBytes(100, 200, 0)), _width(1000, 32, 50, DataBytes(100, 100, 10))
    (7, 6)
    >>> _width(1000, 32, 50, DataBytes(100, 100, 50))  # pairs of so many are left on the host
    9
    """
    beside = min(widest, (memory - data.held_out - data.shared) // 2 // (need + data.own))
    if data.shared + beside * data.own > HOST_SHARE * memory:
        beside = min(widest, (memory - data.held_out) // 2 // need)
    return max(2, beside)


@dataclass(frozen=True)
class Cost:
    """What a study takes on one machine: counts, seconds of training and probes, bytes while the widest train.

    Of the *seconds*, *start* are those until the first worker is ready and has loaded what it needs, paid once.

    *runs* are those of the test, *tuning_runs* those of the search before it, *groups* both. Where the test is also run
    without tuning, runs that tuning leaves as they are count twice here and are trained once. *bytes* are those of the
    GPU, or of all worker processes with what Python and PyTorch take (where the system tells no peak, without).
    """

    runs: int
    tuning_runs: int
    groups: int
    steps: int
    device: str
    workers: int
    seconds: float
    start: float
    measured_steps: int
    bytes: int


@dataclass(frozen=True)
class Sample:
    """What a few steps of one group took: when they began (seconds since 1970), times, and the bytes at their peak."""

    began: float
    timing: Timing
    bytes: int


def measure(
    study: Study, group: Group, device: torch.device, bytes_expected: int, steps: int, with_probes: bool
) -> Sample:
    """Return what *group* takes, from a few real steps and, *with_probes*, readings of each of its probes.

    *bytes_expected* stand in for the peak of memory where the system does not tell it.
    """
    began = time.time()
    pairs = study.pairs()
    with reproducible_arithmetic(), peak_of(device) as grown:
        timing = time_group(study_of(study, group), group, pairs, device, steps, with_probes)
        peak = grown()
    return Sample(began, timing, bytes_expected if peak is None else peak)


def estimate(
    study: Study,
    device: torch.device,
    steps: int = 5,
    *,
    workers: int | None = None,
    executor: Executor | None = None,
) -> Cost:
    """Return the cost of *study*, from a few real steps and readings of one group of every shape.

    What a probe takes hangs on the towers and the batch, hardly on the loss: it is read for one arm of each batch size.
    The measurements are taken on *executor*, side by side as the groups will train, or one by one in this process.
    *workers* is the number of processes that will train side by side (None: `worker_count`); more workers take more
    memory in all, but the groups stay the same (except where more workers than GPUs have to share one).
    """
    test = runs_of(study)
    plan = plan_groups(study, device, (*tuning_runs_of(study), *test), sharing=sharing_of(executor))
    workers = min(workers or worker_count(device), max(1, len(plan.groups)))
    samples, start = _measured(study, plan, device, steps, workers, executor)
    # Without tuning as well, the test is trained twice over.
    copies = 2 if study.tune and study.tune.untuned else 1
    seconds: dict[bool, list[float]] = {True: [], False: []}
    needs = []
    for group in plan.groups:
        sample = samples[group.arm, _shape(study, group)]
        seconds[group.tuning] += [sample.timing.seconds] * (1 if group.tuning else copies)
        needs.append(sample.bytes)
    # Each worker starts once, and loads at its first readings.
    start += max((sample.timing.loading for sample in samples.values()), default=0.0)
    return Cost(
        runs=len(test) * copies,
        tuning_runs=sum(len(group.runs) for group in plan.groups if group.tuning),
        groups=sum(map(len, seconds.values())),
        steps=study.train.steps,
        device=device_model(device),
        workers=workers,
        # Nothing of the test can begin before the last of the search is done.
        seconds=start + sum(_makespan(each, workers) for each in seconds.values()),
        start=start,
        measured_steps=steps,
        bytes=sum(sorted(needs)[-workers:]),
    )


Shape = tuple[int, bool, int, tuple[int, ...]]


def _shape(study: Study, group: Group) -> Shape:
    """Return what the cost of a group hangs on beside its arm: batch size, part of the study, width, runs probed."""
    trained = study_of(study, group)
    probed = tuple(sum(selects(trained, name, run) for run in group.runs) for name in trained.probes)
    return group.batch_size, group.tuning, len(group.runs), probed


def _measured(
    study: Study, plan: Plan, device: torch.device, steps: int, workers: int, executor: Executor | None
) -> tuple[dict[tuple[str, Shape], Sample], float]:
    """Return a sample of the groups of every arm and shape, and the seconds until a worker was ready for the first."""
    groups = {(group.arm, _shape(study, group)): group for group in reversed(plan.groups)}
    probed = {shape: arm for arm, shape in groups}
    work = {
        (arm, shape): partial(
            measure,
            study,
            group,
            device,
            bytes_expected=plan.bytes[f"{arm} {group.batch_size}"] * max(2, len(group.runs)),
            steps=steps,
            with_probes=probed[shape] == arm,
        )
        for (arm, shape), group in groups.items()
    }
    submitted = time.time()
    if executor is None:
        samples = {key: each() for key, each in work.items()}
    else:
        # A worker with nothing to do would leave its share of the machine to the others.
        copies = -(-workers // max(1, len(work)))
        jobs = [(key, executor.submit(each)) for key, each in work.items() for _ in range(copies)]
        samples = {key: job.result() for key, job in jobs}
    start = min((sample.began for sample in samples.values()), default=submitted) - submitted
    whole = {key: _with_probes(sample, samples[probed[key[1]], key[1]]) for key, sample in samples.items()}
    return whole, start


def _with_probes(sample: Sample, probed: Sample) -> Sample:
    timing = replace(sample.timing, probes=probed.timing.probes)
    return replace(sample, timing=timing, bytes=max(sample.bytes, probed.bytes))


def _makespan(seconds: Sequence[float], workers: int) -> float:
    """Return when the last worker is done if each takes the next group as it gets free.

    >>> _makespan([3.0, 3.0, 2.0, 2.0], workers=2), _makespan([], workers=2)
    (5.0, 0.0)
    """
    busy = [0.0] * workers
    for length in seconds:
        busy[busy.index(min(busy))] += length
    return max(busy)
