"""What a group will take, told from a few real steps and readings of its probes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch

from stability.datasets import Pairs
from stability.grid import Group
from stability.study import Study
from stability.train.forking import CHILDREN, child_steps
from stability.train.trainer import Trainer

REPEATED = 3.0
"""Seconds: a reading that took less is timed again, since the first one may have loaded what it needs."""


@dataclass(frozen=True)
class Timing:
    """Seconds of a group: to get ready, of all its steps, of all readings of its probes with the children they fork.

    *loading* is what first readings took longer than later ones: a process pays it once, whatever groups it trains.
    """

    ready: float
    steps: float
    probes: float
    loading: float = 0.0

    @property
    def seconds(self) -> float:
        """All of the group's own."""
        return self.ready + self.steps + self.probes


def time_group(
    study: Study, group: Group, pairs: Pairs, device: torch.device, steps: int, with_probes: bool = True
) -> Timing:
    """Return the seconds that *group* will take, from a few real steps (their median) and readings of its probes.

    Without probes (*with_probes*) these count as none. Children of forked runs are not trained here: their steps take
    what those of their parents take.
    """
    cold = _cold(study, group, pairs, device, study.probes if with_probes else ())
    start = time.perf_counter()
    trainer = Trainer(study, group, pairs, device)
    for _ in range(trainer.warmup_steps):
        trainer.advance()
    ready = time.perf_counter() - start
    each = sorted(_seconds(trainer.advance, device) for _ in range(steps))[steps // 2]
    children = [trainer.population.theta] * CHILDREN
    probes = loading = 0.0
    for name, reading in cold.items():
        if reading < REPEATED:
            first = _seconds(partial(trainer.read, name, children), device)
            loading += max(0.0, reading - first)
            reading = _seconds(partial(trainer.read, name, children), device)
            probes += first - reading
        probes += reading * len(study.due(name)) + each * child_steps(study, name, group.runs)
    return Timing(ready, each * study.train.steps, probes, loading)


def _cold(study: Study, group: Group, pairs: Pairs, device: torch.device, names: Iterable[str]) -> dict[str, float]:
    """Return the seconds of the first readings there are, by probe, after a step: both load what they need, once."""
    trainer = Trainer(study, group, pairs, device)
    trainer.advance()
    children = [trainer.population.theta] * CHILDREN
    return {name: _seconds(partial(trainer.read, name, children), device) for name in names}


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
