"""Plans the groups that are still to be trained and estimates what they cost in time and memory."""

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
from stability.grid import Group, Run, groups_of, runs_of, shape_of, study_of, tuning_runs_of
from stability.registry import InputError
from stability.study import Settings, Study
from stability.train import Timing, time_group
from stability.train.data import HOST_SHARE
from stability.train.memory import DataBytes, bytes_of_data, bytes_per_replica
from stability.train.probe_runner import selects

MAX_REPLICAS = {"cpu": 32, "cuda": 1024}
"""Most replicas per group by device type: more only overflow a CPU's caches, and a GPU is already fully used."""


@dataclass(frozen=True)
class Plan:
    """The groups still to be trained and the bytes of one replica of each shape.

    Groups come after those that their runs start from, then longest first.
    """

    groups: tuple[Group, ...]
    bytes: dict[str, int]


def worker_count(device: torch.device) -> int:
    """Return the number of processes that train in parallel: one per CPU core, or one per GPU.

    Each process has one thread, because the operations of a small model are too short to split between threads.
    """
    return max(1, len(devices_of(device))) if device.type == "cuda" else core_count()


def workers_on(on: str, device: torch.device) -> int:
    """Return the number of processes that train in parallel for ``--on``: ``local``, or ``processes:N``.

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
    """Return how many workers of *executor* share one GPU; 1 unless it is a `WorkerPool`."""
    return executor.sharing if isinstance(executor, WorkerPool) else 1


def plan_groups(
    study: Study, device: torch.device, runs: Sequence[Run], kept: Sequence[Group] = (), sharing: int = 1
) -> Plan:
    """Return the *kept* groups and new ones of *runs*, after those that they start from, then longest first.

    A new group has as many replicas as fit half the memory of its worker; on an accelerator, half of what the data
    leave. The plan is a pure function of study and machine, and on a GPU of the number of workers that share it.

    Args:
        study: The study.
        device: The device to train on.
        runs: The runs to put into new groups.
        kept: Groups planned before.
        sharing: How many workers share a GPU.
    """
    memory = device_memory(device) // (sharing if is_accelerator(device) else worker_count(device))
    needs, width = {}, {}
    by_settings: dict[Settings, dict[str, Run]] = {}
    for run in (*runs_of(study), *runs, *(run for group in kept for run in group.runs)):
        by_settings.setdefault(run.shared, {})[shape_of(run)] = run
    for settings, run_by_shape in by_settings.items():
        at = study.at(settings)
        pairs = at.pairs()
        data = bytes_of_data(at, pairs) if is_accelerator(device) else DataBytes(0, 0, 0)
        for shape, run in run_by_shape.items():
            needs[shape] = bytes_per_replica(at, run.arm, run.batch_size, pairs)
            width[shape] = _width(memory, MAX_REPLICAS[device.type], needs[shape], data)
    groups = (*kept, *groups_of(runs, lambda run: width[shape_of(run)]))
    ordered = sorted(groups, key=lambda group: (group.depth, -needs[shape_of(group.runs[0])] * len(group.runs)))
    return Plan(tuple(ordered), needs)


def _width(memory: int, widest: int, need: int, data: DataBytes) -> int:
    """Return how many replicas of *need* bytes train together: at least 2, at most *widest*.

    >>> _width(1000, 32, 50, DataBytes(100, 200, 0)), _width(1000, 32, 50, DataBytes(100, 100, 10))
    (7, 6)
    >>> _width(1000, 32, 50, DataBytes(100, 100, 50))  # the pairs of so many replicas stay on the host
    9
    """
    replicas = min(widest, (memory - data.held_out - data.shared) // 2 // (need + data.own))
    if data.shared + replicas * data.own > HOST_SHARE * memory:
        replicas = min(widest, (memory - data.held_out) // 2 // need)
    return max(2, replicas)


@dataclass(frozen=True)
class Cost:
    """The estimated cost of a study on one machine.

    If the test is also run without tuning, runs that tuning does not change count twice here and are trained once.

    Attributes:
        runs: Runs of the test.
        tuning_runs: Runs of the tuning search before it.
        groups: Groups of both.
        steps: Training steps of a run.
        least_steps: Training steps of the run that starts last from another; the same without such runs.
        device: Model of the device.
        workers: Processes that train in parallel.
        seconds: Total time of training and probes, *start* included.
        start: Seconds until the first worker is ready and has loaded what it needs, spent once.
        measured_steps: Steps that were timed in each group.
        bytes: Memory while the largest groups train: that of the GPU, or of all worker processes, including what Python
            and PyTorch take (excluding it if the system does not report a peak).
    """

    runs: int
    tuning_runs: int
    groups: int
    steps: int
    least_steps: int
    device: str
    workers: int
    seconds: float
    start: float
    measured_steps: int
    bytes: int


@dataclass(frozen=True)
class MeasuredCost:
    """The measured cost of a few steps of one group: start (seconds since 1970), times, and peak memory in bytes."""

    began: float
    timing: Timing
    bytes: int


def measure(
    study: Study, group: Group, device: torch.device, bytes_expected: int, steps: int, with_probes: bool
) -> MeasuredCost:
    """Return the measured cost of *group*, from a few real steps and calls of its probes.

    Args:
        study: The study that the group belongs to.
        group: The group to measure.
        device: The device to train on.
        bytes_expected: Used as the peak of memory if the system does not report one.
        steps: How many steps to time.
        with_probes: Whether to time each probe too.
    """
    began = time.time()
    trained = study_of(study, group)
    pairs = trained.pairs()
    with reproducible_arithmetic(), peak_of(device) as peak_memory:
        timing = time_group(trained, group, pairs, device, steps, with_probes)
        peak = peak_memory()
    return MeasuredCost(began, timing, bytes_expected if peak is None else peak)


def estimate(
    study: Study,
    device: torch.device,
    steps: int = 5,
    *,
    workers: int | None = None,
    executor: Executor | None = None,
) -> Cost:
    """Return the cost of *study*, measured on a few real steps and probe calls of one group of every shape.

    The cost of a probe depends on the towers and the batch and hardly on the loss, so probes are timed for one arm of
    each batch size.

    Args:
        study: The study.
        device: The device to train on.
        steps: How many steps to time in each group.
        workers: The number of processes that will train in parallel (None: `worker_count`). More workers take more
            memory in total, but the groups stay the same, unless more workers than GPUs have to share one.
        executor: Where to measure, in parallel as the groups will train; None measures serially in this process.
    """
    test = runs_of(study)
    plan = plan_groups(study, device, (*tuning_runs_of(study), *test), sharing=sharing_of(executor))
    workers = min(workers or worker_count(device), max(1, len(plan.groups)))
    samples, start = _measured(study, plan, device, steps, workers, executor)
    # If the test is also run without tuning, it is trained twice.
    copies = 2 if study.tune and study.tune.untuned else 1
    # The test cannot start before the last group of the search is done, nor a run before those it starts from.
    seconds: dict[tuple[bool, int], list[float]] = {}
    peaks = []
    for group in plan.groups:
        sample = samples[group.arm, _cost_shape(study, group)]
        part = seconds.setdefault((group.tuning, group.depth), [])
        part += [sample.timing.seconds] * (1 if group.tuning else copies)
        peaks.append(sample.bytes)
    # Each worker starts once, and loads data and libraries at its first measurement.
    start += max((sample.timing.loading for sample in samples.values()), default=0.0)
    return Cost(
        runs=len(test) * copies,
        tuning_runs=sum(len(group.runs) for group in plan.groups if group.tuning),
        groups=sum(map(len, seconds.values())),
        steps=study.train.steps,
        least_steps=min(_own_steps(study, arm) for arm in study.grid.arms),
        device=device_model(device),
        workers=workers,
        seconds=start + sum(_makespan(durations, workers) for durations in seconds.values()),
        start=start,
        measured_steps=steps,
        bytes=sum(sorted(peaks)[-workers:]),
    )


def _own_steps(study: Study, arm: str) -> int:
    """Return how many steps the runs of an arm train themselves, at the smallest batch size."""
    return study.train.steps - study.first_step(arm, min(study.grid.batch_size))


CostShape = tuple[int, Settings, bool, int, tuple[int, ...]]


def _cost_shape(study: Study, group: Group) -> CostShape:
    """Return what a group's cost depends on besides its arm: batch size, settings, tuning, runs, and runs probed."""
    trained = study_of(study, group)
    probed = tuple(sum(selects(trained, name, run) for run in group.runs) for name in trained.probes)
    return group.batch_size, group.settings, group.tuning, len(group.runs), probed


def _measured(
    study: Study, plan: Plan, device: torch.device, steps: int, workers: int, executor: Executor | None
) -> tuple[dict[tuple[str, CostShape], MeasuredCost], float]:
    """Return the measured cost of each arm and shape, and the seconds until a worker was ready for the first."""
    groups = {(group.arm, _cost_shape(study, group)): group for group in reversed(plan.groups)}
    probed = {shape: arm for arm, shape in groups}
    work = {
        (arm, shape): partial(
            measure,
            study,
            group,
            device,
            bytes_expected=plan.bytes[shape_of(group.runs[0])] * max(2, len(group.runs)),
            steps=steps,
            with_probes=probed[shape] == arm,
        )
        for (arm, shape), group in groups.items()
    }
    submitted = time.time()
    if executor is None:
        samples = {key: measurement() for key, measurement in work.items()}
    else:
        # Every worker must be busy: an idle one would leave its share of the machine to the others.
        copies = -(-workers // max(1, len(work)))
        jobs = [(key, executor.submit(measurement)) for key, measurement in work.items() for _ in range(copies)]
        samples = {key: job.result() for key, job in jobs}
    start = min((sample.began for sample in samples.values()), default=submitted) - submitted
    complete = {key: _with_probes(sample, samples[probed[key[1]], key[1]]) for key, sample in samples.items()}
    return complete, start


def _with_probes(sample: MeasuredCost, probed: MeasuredCost) -> MeasuredCost:
    timing = replace(sample.timing, probes=probed.timing.probes)
    return replace(sample, timing=timing, bytes=max(sample.bytes, probed.bytes))


def _makespan(seconds: Sequence[float], workers: int) -> float:
    """Return when the last worker finishes if each takes the next group as soon as it is free.

    >>> _makespan([3.0, 3.0, 2.0, 2.0], workers=2), _makespan([], workers=2)
    (5.0, 0.0)
    """
    busy = [0.0] * workers
    for length in seconds:
        busy[busy.index(min(busy))] += length
    return max(busy)
