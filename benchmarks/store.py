"""Disk space of a large run directory, and the seconds to read means over its late window.

python benchmarks/store.py --json benchmarks/store.json

Writes runs x steps x measures of a random walk in float32, which compresses no better than a real training curve, as
groups of 32 runs, and reads the mean of one measure over the last tenth of the steps of every run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset as ds

from stability.probes import Measure
from stability.store import group_log, group_path, make_writable

WIDTH = 32
"""Runs a group."""

BLOCK = 50
"""Steps a write, as the trainer writes them."""


def write_group(where: Path, group: int, runs: int, steps: int, measures: Sequence[str]) -> None:
    """Write one group of random walks."""
    random = np.random.default_rng(group)
    declared = {name: Measure(name, name, "") for name in measures}
    with group_log(
        group_path(where, f"g{group:04}"), [f"g{group:04}r{run:02}" for run in range(runs)], declared
    ) as log:
        level = np.ones((len(measures), runs))
        for start in range(0, steps, BLOCK):
            size = min(BLOCK, steps - start)
            walk = level[:, None] + random.normal(scale=0.01, size=(len(measures), size, runs)).cumsum(1)
            level = walk[:, -1]
            log.write(np.arange(start, start + size), dict(zip(measures, walk, strict=True)))
        log.finish()


def late_means(where: Path, steps: int, measure: str) -> int:
    """Return for how many runs the mean of *measure* over the last tenth of the steps was read."""
    late = ds.dataset(where / "groups", format="parquet").to_table(
        columns=["run", measure], filter=pc.field("step") >= steps - steps // 10
    )
    return late.group_by("run").aggregate([(measure, "mean")]).num_rows


def main(arguments: Sequence[str]) -> None:
    """Write, weigh and read one run directory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--measures", type=int, default=20)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(arguments)
    measures = [f"measure_{number}" for number in range(asked.measures)]
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        make_writable(where)
        start = time.perf_counter()
        for group, first in enumerate(range(0, asked.runs, WIDTH)):
            write_group(where, group, min(WIDTH, asked.runs - first), asked.steps, measures)
        written = time.perf_counter() - start
        size = sum(path.stat().st_size for path in (where / "groups").iterdir())
        start, spent = time.perf_counter(), time.process_time()
        read = late_means(where, asked.steps, measures[0])
        seconds, spent = time.perf_counter() - start, time.process_time() - spent
    assert read == asked.runs
    row = {
        "runs": asked.runs,
        "steps": asked.steps,
        "measures": asked.measures,
        "gigabytes": round(size / 1e9, 3),
        "seconds_to_write": round(written, 1),
        "seconds_to_read_late_means_of_one_measure": round(seconds, 2),
        "processor_seconds_to_read_them": round(spent, 2),
    }
    print(json.dumps(row, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps([row], indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
