"""Seconds that the report of a large run directory takes.

python benchmarks/report.py

Trains a study of many short runs (linear towers, two losses, two batch sizes) on all cores, which is not timed, then
reads, tests and reports it as ``stability report`` does.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import stability as st

STUDY = """
title = "Benchmark"
question = "How long does a report take?"
source = "benchmarks/report.py"
[data]
name = "digits"
[model]
image = "linear"
text = "token_transformer"
embed_dim = 8
[train]
steps = {steps}
[grid]
arms = ["clip", "siglip"]
batch_size = [8, 16]
lr = [1e-3]
seeds = {seeds}
[probes.retrieval]
every = 50
[[claims]]
id = "recall"
primary = true
text = "SigLIP retrieves better than CLIP"
measure = "recall_at_1"
contrast = "difference"
compare = ["siglip", "clip"]
expect = "higher"
margin = 0.02
"""

ARMS = 4
"""Losses times batch sizes."""


def main(arguments: Sequence[str]) -> None:
    """Train the study and time its report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=200)
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "benchmark.toml"
        path.write_text(STUDY.format(steps=asked.steps, seeds=asked.runs // ARMS))
        out = st.run(st.load_study(path), "cpu", out=Path(folder) / "run")
        start, spent = time.perf_counter(), time.process_time()
        st.write_report(out)
        seconds, spent = time.perf_counter() - start, time.process_time() - spent
    row = {"runs": asked.runs, "steps": asked.steps, "seconds": round(seconds, 2), "processor_seconds": round(spent, 2)}
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
