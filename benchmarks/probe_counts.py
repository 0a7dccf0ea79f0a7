"""What one reading of a probe asks of an accelerator: launches, copies and reads, counted on a pretended one.

Counts, unlike times, need no GPU: a reading whose launches or copies grow with the number of replicas is not as wide as
it could be. ``python benchmarks/probe_counts.py`` prints a table; ``tests/pretended_device.py`` says what is counted.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import torch
from pretended_device import DEVICE, counted, pretended

from stability.grid import Group, runs_of
from stability.probes import probe
from stability.study import Schedule, parse_study
from stability.train import Trainer
from stability.train.forks import CHILDREN

REPLICAS = (4, 64)

ON_THE_CPU = "cross_check"
"""Computed there, replica by replica, for minutes."""

STUDY = """
title = "Counts of probes"
question = "How many launches does a reading take?"
source = "this benchmark"

[data]
name = "digits"

[model]
image = { name = "mlp", width = 8, depth = 1 }
text = { name = "token_transformer", width = 4, heads = 1 }
embed_dim = 4

[train]
steps = 8
warmup = 2

[grid]
arms = ["clip", "siglip"]
batch_size = [8]
noise = [0.0]
lr = [0.01]
seeds = 4

[probes.retrieval]

[[claims]]
id = "recall"
primary = true
text = "SigLIP recalls as much as CLIP"
measure = "recall_at_1"
contrast = "difference"
compare = ["siglip", "clip"]
expect = "equal"
margin = 0.1
"""

OPTIONS = {
    "curvature": {"batches": 4, "steps": 10, "edge_steps": 4, "trace_probes": 2},
    "cross_check": {"trace_probes": 2},
    "cost": {"repeats": 1},
    "few_shot": {"draws": 1},
    "linear_mode": {"points": 3},
}
"""Settings of probes other than their defaults, so that each takes seconds."""


@dataclass(frozen=True)
class Counts:
    """What one reading takes: operations on the device, copies to it, and what the host reads of it."""

    launches: int
    copies: int
    reads: int


def probe_counts(name: str, replicas: int) -> Counts:
    """Return the counts of one reading of the probe called *name* by that many small replicas, the first one apart."""
    study = parse_study(STUDY, "counts.toml", "counts")
    schedule = Schedule.model_validate(OPTIONS.get(name, {}))
    study = study.model_copy(
        update={"probes": {name: schedule}, "grid": study.grid.model_copy(update={"seeds": replicas})}
    )
    with pretended():
        runs = tuple(run for run in runs_of(study) if run.arm == "siglip")
        trainer = Trainer(study, Group("g", runs), study.pairs(), DEVICE)
        trainer.step()
        children = [trainer.population.theta.clone() for _ in range(CHILDREN)]
        trainer.read(name, children)
    with counted() as counts:
        trainer.read(name, children)
    to_device = sum(event.kind == "to device" for event in counts.events)
    return Counts(counts.launches, to_device, len(counts.reads))


def main() -> None:
    """Print the counts of every probe, for few and for many replicas."""
    torch.set_num_threads(1)
    print(f"{'probe':18}" + "".join(f"{f'R = {replicas}: launches, copies, reads':>40}" for replicas in REPLICAS))
    for name in sorted({*probe} - {ON_THE_CPU}):
        found = [probe_counts(name, replicas) for replicas in REPLICAS]
        print(f"{name:18}" + "".join(f"{each.launches:>24,}{each.copies:>8,}{each.reads:>8,}" for each in found))


if __name__ == "__main__":
    main()
