"""Training of one group of runs as a population with a leading replica axis, with probes run at scheduled steps."""

from __future__ import annotations

from stability.train.benchmark import Timing, time_group
from stability.train.group import train_group
from stability.train.population import Population, population_of
from stability.train.replay import Replay, replay
from stability.train.trainer import Trainer, train_step

__all__ = [
    "Population",
    "Replay",
    "Timing",
    "Trainer",
    "population_of",
    "replay",
    "time_group",
    "train_group",
    "train_step",
]
