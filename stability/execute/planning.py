"""Which groups are still to be trained, how many replicas side by side, and what that will cost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stability.datasets import Pairs
from stability.execute.machine import device_memory, device_model
from stability.grid import Group, groups_of, runs_of
from stability.study import Study
from stability.train import time_group
from stability.train.memory import bytes_per_replica

WIDEST = {"cpu": 32, "cuda": 1024}
"""Replicas side by side: beyond this a CPU only leaves its caches, and a GPU is busy."""

THREADS = 4
"""More threads than this do not help at these sizes."""


@dataclass(frozen=True)
class Plan:
    """What is still to be trained, and how: a pure function of study, device and its memory, and what is stored."""

    groups: tuple[Group, ...]
    threads: int
    bytes: dict[str, int]


def widths(study: Study, pairs: Pairs, device: torch.device) -> tuple[dict[tuple[str, int], int], dict[str, int]]:
    """Return for each arm and batch size how many replicas fit half the memory, and the bytes that each one needs."""
    budget = device_memory(device) // 2
    needs = {
        (arm, size): bytes_per_replica(study, arm, size, pairs)
        for arm in study.grid.loss
        for size in study.grid.batch_size
    }
    fits = {shape: max(2, min(WIDEST[device.type], budget // need)) for shape, need in needs.items()}
    return fits, {f"{arm} {size}": need for (arm, size), need in needs.items()}


def plan_groups(study: Study, device: torch.device, stored: Sequence[str] = ()) -> Plan:
    """Return the groups still to be trained when the runs *stored* are finished."""
    width, needs = widths(study, study.pairs(), device)
    missing = [run for run in runs_of(study) if run.id not in set(stored)]
    return Plan(groups_of(missing, width), min(THREADS, os.cpu_count() or 1), needs)


@dataclass(frozen=True)
class Cost:
    """What a study takes on one device: counts, seconds of training and probes, bytes at the widest group."""

    runs: int
    groups: int
    steps: int
    device: str
    threads: int
    seconds: float
    measured_steps: int
    bytes: int


def estimate(study: Study, device: torch.device, steps: int = 3) -> Cost:
    """Return the cost of *study*, measured on a few real steps and one reading of every probe per group shape."""
    plan = plan_groups(study, device)
    torch.set_num_threads(plan.threads)
    pairs = study.pairs()
    by_shape = {(group.arm, group.batch_size, len(group.runs)): group for group in plan.groups}
    seconds = {shape: time_group(study, group, pairs, device, steps) for shape, group in by_shape.items()}
    needs = [plan.bytes[f"{group.arm} {group.batch_size}"] * len(group.runs) for group in plan.groups]
    return Cost(
        runs=sum(len(group.runs) for group in plan.groups),
        groups=len(plan.groups),
        steps=study.train.steps,
        device=device_model(device),
        threads=plan.threads,
        seconds=sum(seconds[group.arm, group.batch_size, len(group.runs)] for group in plan.groups),
        measured_steps=steps,
        bytes=max(needs, default=0),
    )
