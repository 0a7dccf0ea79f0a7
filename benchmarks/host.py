"""What a training step asks of the host at the width of a GPU: launches, waits and milliseconds, on a CPU.

python benchmarks/host.py --json benchmarks/host.json

A GPU waits for its host where launching takes longer than computing, and at every copy and read that the host waits
for. Both are counted here without a GPU. Launches and waits (blocking copies and reads) are those of one step on the
tests' pretended accelerator. Milliseconds are of processor time: *calls* is a step of 8 replicas, whose arithmetic is
next to nothing, so it is what Python and torch's dispatch take whatever the replicas; *inputs* is what the host
prepares for a step of all replicas, measured at their number (the mean of some blocks of batches).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import workload

from stability.execute.machine import core_count, device_model, reproducible_arithmetic
from stability.grid import Group, runs_of
from stability.store import write_atomically
from stability.study import parse_study
from stability.train import Trainer, train_step

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from pretended_device import DEVICE, counted, pretended

TOWERS = """
[data]
name = "latent"
view_dim = 16
pairs = 2048
[model]
embed_dim = 16
image = { name = "mlp", width = 16, depth = 2 }
text = { name = "mlp", width = 16, depth = 2 }
"""

REPLICAS = 1024
CASES = ((20, 1), (20, 4), (1024, 1), (1024, 4))
"""Numbers of seeds and of learning rates among the replicas."""

LAUNCHES, MILLISECONDS = 130, 3.0
"""The most that a step may take, before it is recorded as a CUDA graph."""


@dataclass(frozen=True)
class Row:
    """What one step takes of the host."""

    seeds: int
    rates: int
    replicas: int
    launches: int
    waits: int
    calls_ms: float
    inputs_ms: float
    ms: float


def trainer_of(replicas: int, seeds: int, rates: int, device: torch.device, arm: str = "clip") -> Trainer:
    """Return a trainer of so many replicas, with their seeds and learning rates in turn."""
    study_text = workload.STUDY.format(batch_size=4, replicas=max(2, seeds)) + TOWERS
    lrs = ", ".join(f"{1e-3 * (number + 1):g}" for number in range(rates))
    study = parse_study(study_text.replace("lr = [1e-3]", f"lr = [{lrs}]"), "host.toml", "host")
    runs = {(run.seed, run.lr): run for run in runs_of(study) if run.arm == arm}
    all_seeds, all_rates = (sorted({key[axis] for key in runs}) for axis in (0, 1))
    chosen = [
        runs[all_seeds[number % seeds], all_rates[number // seeds % rates if replicas > seeds else number % rates]]
        for number in range(replicas)
    ]
    return Trainer(study, Group("host", tuple(chosen)), study.pairs(), device)


def milliseconds(work: Callable[[], object], repeats: int, of: Callable[[list[float]], float] = min) -> float:
    """Return the processor time of *work*, by default the least of *repeats*."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(1000 * (time.process_time() - start))
    return of(times)


def measure(replicas: int, seeds: int, rates: int, repeats: int) -> Row:
    """Return what a step of so many replicas takes of the host."""
    few, many = (trainer_of(count, min(seeds, count), rates, torch.device("cpu")) for count in (8, replicas))
    for _ in range(3):
        few.advance()
    calls = milliseconds(few.advance, repeats)
    many.inputs()
    inputs = milliseconds(many.inputs, repeats, statistics.mean)
    with pretended():
        there = trainer_of(replicas, seeds, rates, DEVICE)
        there.advance()
        with counted() as counts:
            train_step(there.population, there.inputs())
    return Row(
        seeds=seeds,
        rates=rates,
        replicas=replicas,
        launches=counts.launches,
        waits=len(counts.waits),
        calls_ms=round(calls, 2),
        inputs_ms=round(inputs, 2),
        ms=round(calls + inputs, 2),
    )


def show(rows: Sequence[Row]) -> None:
    """Print rows as a Markdown table."""
    print("| seeds | rates | launches | waits | calls, ms | inputs, ms | ms |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for row in rows:
        cells = (row.seeds, row.rates, row.launches, row.waits, row.calls_ms, row.inputs_ms, row.ms)
        print("| " + " | ".join(map(str, cells)) + " |")


def main(arguments: Sequence[str]) -> None:
    """Measure all cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, default=REPLICAS)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    print(f"{device_model(torch.device('cpu'))}, {core_count()} cores, torch {torch.__version__}")
    with reproducible_arithmetic():
        rows = [
            measure(options.replicas, min(seeds, options.replicas), rates, options.repeats) for seeds, rates in CASES
        ]
    show(rows)
    print(f"asked: at most {LAUNCHES} launches and {MILLISECONDS} ms, no wait")
    if options.json:
        write_atomically(options.json, (json.dumps([asdict(row) for row in rows], indent=1) + "\n").encode())


if __name__ == "__main__":
    main(sys.argv[1:])
