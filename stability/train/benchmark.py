"""Estimates of a group's run time from a few real steps and probe runs."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch

from stability.datasets import Pairs
from stability.grid import Group
from stability.probes.cost import seconds_of
from stability.study import Study
from stability.train.forks import CHILDREN, child_steps
from stability.train.trainer import Parents, Trainer

REPEATED = 3.0
"""Seconds: a probe run that took less is timed again, since the first run may include one-time loading."""


@dataclass(frozen=True)
class Timing:
    """The estimated run time of a group, in seconds.

    Attributes:
        ready: set-up and warm-up.
        steps: all training steps.
        probes: all probe runs, including the children they fork.
        loading: extra time of first probe runs, spent once per process for all groups it trains.
    """

    ready: float
    steps: float
    probes: float
    loading: float = 0.0

    @property
    def seconds(self) -> float:
        """Total without *loading*."""
        return self.ready + self.steps + self.probes


def time_group(
    study: Study, group: Group, pairs: Pairs, device: torch.device, steps: int, with_probes: bool = True
) -> Timing:
    """Estimate the seconds that *group* will take, from a few real steps (their median) and probe runs.

    Children of forked runs are not trained here: their steps take as long as those of their parents. Neither are the
    parents of runs that start from others, whose checkpoints are there when these train.

    Args:
        study: the study.
        group: the group.
        pairs: the study's data.
        device: the device to train on.
        steps: the number of steps to time.
        with_probes: whether to time probes; if not, they count as 0 seconds.
    """
    start_of = study.start_of(group.arm, group.batch_size)
    cold = _cold(study, group, pairs, device, study.probes if with_probes else ())
    start = time.perf_counter()
    trainer = Trainer(study, group, pairs, device, parents=Parents(trained=False))
    for _ in range(trainer.warmup_steps):
        trainer.advance()
    ready = time.perf_counter() - start
    step_seconds = sorted(seconds_of(trainer.advance, device) for _ in range(steps))[steps // 2]
    children = [trainer.population.theta] * CHILDREN
    probes = loading = 0.0
    for name, seconds in cold.items():
        if seconds < REPEATED:
            first = seconds_of(partial(trainer.read, name, children), device)
            loading += max(0.0, seconds - first)
            seconds = seconds_of(partial(trainer.read, name, children), device)
            probes += first - seconds
        probes += seconds * len(study.due(name, start_of)) + step_seconds * child_steps(study, name, group.runs)
    own_steps = study.train.steps - study.first_step(group.arm, group.batch_size)
    return Timing(ready, step_seconds * own_steps, probes, loading)


def _cold(study: Study, group: Group, pairs: Pairs, device: torch.device, names: Iterable[str]) -> dict[str, float]:
    """Return the seconds of each probe's first run in this process, after one step; both include one-time loading."""
    trainer = Trainer(study, group, pairs, device, parents=Parents(trained=False))
    trainer.advance()
    children = [trainer.population.theta] * CHILDREN
    return {name: seconds_of(partial(trainer.read, name, children), device) for name in names}
