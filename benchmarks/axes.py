"""What a level of an axis costs: a step of a population that has several, against the same population with one.

python benchmarks/axes.py --json benchmarks/axes.json
python benchmarks/axes.py --json benchmarks/axes.json --only train.weight_decay

Both are timed in turns in one process on one thread, the medians of several rounds. The first table holds settings
whose levels are trained side by side, at equal numbers of replicas. The second holds settings whose levels have groups
of their own; their ratio is that of a replica's step at the level to that at the study's own value. Rows are in the
order of the levels. With --only, the other rows of the file are kept.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from stability.execute.machine import device_model, reproducible_arithmetic
from stability.grid import Group, groups_of, runs_of, study_of
from stability.store import write_atomically
from stability.study import Study, parse_study
from stability.train import Trainer

CPU = torch.device("cpu")
LARGEST = 1.10
"""The most that levels side by side may take, as a ratio to one level."""

BASE = """
title = "Axes"
question = "What does an axis cost?"
[data]
name = "latent"
[model]
image = {{ name = "mlp", width = 32 }}
text = {{ name = "mlp", width = 32 }}
embed_dim = 32
[train]
steps = 1000
warmup = 20
[grid]
arms = ["siglip"]
batch_size = [64]
lr = [1e-3]
seeds = {seeds}
{axis}
[probes.retrieval]
"""
SIDE_BY_SIDE = {
    "train.warmup": [0, 20, 100],
    "train.lr_schedule": ["constant", "cosine"],
    "train.betas": [[0.9, 0.95], [0.9, 0.99], [0.9, 0.999]],
    "train.eps": [1e-8, 1e-6, 1e-3],
    "train.weight_decay": [0.0, 1e-4, 1e-2],
    "train.clip_norm": ["none", 1.0, 0.1],
    "train.scalar_lr_multiplier": [1.0, 3.0, 10.0],
    "arms.*.log_scale": [0.0, 1.0, 2.0],
}
GROUPS = {
    "train.optimizer": ["adamw", "sgd", "lion", "stable_adamw", "lamb", "adafactor", "muon", "schedule_free"],
    "model.*.width": [16, 32, 64, 128],
    "model.*.depth": [1, 2, 4],
    "model.embed_dim": [16, 32, 64],
    "arms.*.max_scale": [10.0, 100.0],
    "train.precision": ["float32", "bfloat16", "float16"],
    "train.shards": [1, 2, 4],
}
REPLICAS = 24


@dataclass(frozen=True)
class Row:
    """The cost of one axis or level: its name, and the ratio of its step to that without it."""

    name: str
    milliseconds: float
    ratio: float


def study_with(axis: str, levels: Sequence[object], seeds: int) -> Study:
    """Return the study with an axis, or without if it is ""."""
    line = f"{json.dumps(axis)} = {json.dumps(list(levels))}" if axis else ""
    return parse_study(BASE.format(axis=line, seeds=seeds), "axes.toml", "axes")


def trainers_of(study: Study) -> dict[str, Trainer]:
    """Return a trainer for each group, by the levels that its runs share."""

    def trainer(group: Group) -> Trainer:
        trained = study_of(study, group)
        return Trainer(trained, group, trained.pairs(), CPU)

    groups = groups_of(runs_of(study), lambda run: 10_000)
    return {", ".join(f"{key} = {value}" for key, value in group.settings): trainer(group) for group in groups}


def medians(trainers: Sequence[Trainer], rounds: int, steps: int) -> list[float]:
    """Return the median milliseconds of a step of each trainer, timed in turns."""
    seconds: list[list[float]] = [[] for _ in trainers]
    for _ in range(rounds):
        for trainer, taken in zip(trainers, seconds, strict=True):
            start = time.perf_counter()
            for _ in range(steps):
                trainer.advance()
            taken.append((time.perf_counter() - start) / steps)
    return [1000 * statistics.median(taken[1:]) for taken in seconds]


def with_rows(content: dict[str, Any], rows: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Return the content of a file with these rows in the place of those of the same names, and new ones at the end."""
    if content["device"] != device_model(CPU):
        raise SystemExit(f"the other rows are from {content['device']}, not {device_model(CPU)}: measure all of them")
    measured = {row.name: asdict(row) for table in rows.values() for row in table}
    tables = {}
    for title, table in rows.items():
        old = [row["name"] for row in content[title]]
        new = [measured[row.name] for row in table if row.name not in old]
        tables[title] = [measured.get(row["name"], row) for row in content[title]] + new
    return content | tables


def main() -> int:
    """Print both tables; return 1 if levels side by side take longer than the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--only", nargs="+", choices=[*SIDE_BY_SIDE, *GROUPS], help="measure these axes alone")
    options = parser.parse_args()
    wanted = options.only or [*SIDE_BY_SIDE, *GROUPS]
    torch.set_num_threads(1)
    rows: dict[str, list[Row]] = {"side_by_side": [], "groups": []}
    with reproducible_arithmetic():
        for axis, levels in ((axis, levels) for axis, levels in SIDE_BY_SIDE.items() if axis in wanted):
            (plain,) = trainers_of(study_with("", (), REPLICAS)).values()
            (mixed,) = trainers_of(study_with(axis, levels, REPLICAS // len(levels))).values()
            base, taken = medians([plain, mixed], options.rounds, options.steps)
            rows["side_by_side"].append(Row(f"{axis} ({len(levels)} levels)", taken, taken / base))
        for axis, levels in ((axis, levels) for axis, levels in GROUPS.items() if axis in wanted):
            (plain,) = trainers_of(study_with("", (), REPLICAS)).values()
            by_name = trainers_of(study_with(axis, levels, REPLICAS))
            # Groups come sorted as text, 128 before 16.
            by_level = {name: by_name[name] for name in (f"{axis} = {level}" for level in levels)}
            base, *taken = medians([plain, *by_level.values()], options.rounds, options.steps)
            rows["groups"] += [Row(name, ms, ms / base) for name, ms in zip(by_level, taken, strict=True)]
    print(f"{device_model(CPU)}, one thread, {REPLICAS} replicas")
    for title, table in rows.items():
        print(
            f"\n{title}\n" + "\n".join(f"  {row.name:40s} {row.milliseconds:8.2f} ms {row.ratio:6.2f}" for row in table)
        )
    slow = [row.name for row in rows["side_by_side"] if row.ratio > LARGEST]
    print(f"\nside by side at most {LARGEST}: {'met' if not slow else 'missed by ' + ', '.join(slow)}")
    if options.json:
        content = {"device": device_model(CPU), "replicas": REPLICAS}
        content |= {title: [asdict(row) for row in table] for title, table in rows.items()}
        if options.only:
            content = with_rows(json.loads(options.json.read_text()), rows)
        write_atomically(options.json, json.dumps(content, indent=1).encode() + b"\n")
    return 1 if slow else 0


if __name__ == "__main__":
    raise SystemExit(main())
