"""Training: one group of runs, as one population with a leading replica axis, measured by probes on the way."""

from __future__ import annotations

from stability.train.divergence import diverged_at
from stability.train.group import train_group
from stability.train.replaying import Replay, replay
from stability.train.timing import Timing, time_group
from stability.train.trainer import Population, Trainer, population_of, train_step

__all__ = [
    "Population",
    "Replay",
    "Timing",
    "Trainer",
    "diverged_at",
    "population_of",
    "replay",
    "time_group",
    "train_group",
    "train_step",
]
