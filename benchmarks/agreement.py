"""How far the measures of the same runs lie apart where only rounding differs, as it does between two machines.

python benchmarks/agreement.py [--measures] [--json FILE] [STUDY...]

Each study is trained twice, the second time without the processor's vector instructions: other kernels, which add up
in another order and round otherwise. Compared are means over the runs of a group, as `stability verify` compares them
between machines, at the step where they differ most. Shipped studies are at scale smoke. Two are our own: LATE trains
until recall has levelled off, EDGE for 5,000 steps at up to four times its learning rate, where the loss spikes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from stability import execute
from stability.execute.machine import device_model, pick_device, versions
from stability.execute.tolerances import EARLY, SHARE, pair_of
from stability.execute.verifying import timed
from stability.execute.worker import Task, train_local
from stability.grid import Group
from stability.probes import STEP_MEASURES, probe
from stability.store import group_path, read_group, read_manifest, read_study
from stability.study import Study, load_study, parse_study
from stability.tuning import known_runs

STUDIES = ("quickstart", "gradient-noise", "curvature", "noise-robustness", "modality-gap", "spikes", "late", "edge")
"""Shipped ones at scale smoke, and our own."""

PROBES = """
[probes.retrieval]
every = {every}

[probes.gradient_noise]
every = {every}
batches = 4

[probes.matched_gradient_noise]
at = [0.5, 1.0]
batches = 2

[probes.curvature]
at = [0.25, 1.0]
batches = 2
steps = 10
seeds = 2

[probes.geometry]
every = {every}

[probes.separability]
"""

LATE = """
title = "Late"
question = "How far do two machines part late in training?"
source = "benchmarks/agreement.py"

[data]
name = "digits"

[model]
image = { name = "mlp", width = 32, depth = 1 }
text = { name = "token_transformer", width = 16, heads = 2 }
embed_dim = 16

[train]
steps = 400
warmup = 10
scalar_lr_multiplier = 10.0

[grid]
arms = ["clip", "siglip"]
batch_size = [32]
corruption = ["mismatch"]
noise = [0.0, 0.4]
lr = [0.01]
seeds = 4
""" + PROBES.format(every=50)

EDGE = """
title = "Edge"
question = "How far do two machines part where training spikes?"
source = "benchmarks/agreement.py"

[data]
name = "latent"
pairs = 4096

[model]
image = { name = "mlp", width = 32, depth = 2 }
text = { name = "mlp", width = 32, depth = 2 }
embed_dim = 16

[train]
steps = 5000
warmup = 50
lr_schedule = "constant"
betas = [0.9, 0.999]
scalar_lr_multiplier = 10.0

[grid]
arms = ["clip", "siglip"]
batch_size = [32]
lr = [0.01]
lr_multipliers = [1, 4]
seeds = 4
""" + PROBES.format(every=500)

NO_VECTORS = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}


def study_named(name: str) -> Study:
    """Return a study of our own, or a shipped one at scale smoke."""
    own = {"late": LATE, "edge": EDGE}
    return parse_study(own[name], __file__, name) if name in own else load_study(name, scale="smoke")


def groups_in(where: Path) -> tuple[Study, list[Group]]:
    """Return the study of a run directory and its finished groups."""
    manifest = read_manifest(where)
    study = read_study(manifest, where)
    finished = [entry for entry in manifest["groups"] if entry["status"] == "finished"]
    runs = {run.id: run for run in known_runs(study, where, finished)[0]}
    return study, [Group(entry["id"], tuple(runs[run] for run in entry["runs"])) for entry in finished]


def train_again(where: Path, there: Path) -> None:
    """Train every group of a run directory again, in this process, into another."""
    (there / "groups").mkdir(parents=True)
    study, groups = groups_in(where)
    for group in groups:
        outcome = train_local(Task(study, group, there, pick_device("cpu")), lambda step: None)
        if outcome.failure:
            raise SystemExit(outcome.failure)


def apart(name: str, folder: Path) -> pd.DataFrame:
    """Return a row for each measure of each group: how far two trainings lie apart."""
    one, other = folder / name, folder / f"{name}-again"
    execute.run(study_named(name), "cpu", out=one, replications=False)
    command = [sys.executable, __file__, "--again", str(one), str(other)]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1", **NO_VECTORS}, check=True)
    rows = []
    study, groups = groups_in(one)
    for group in groups:
        stored, again = (read_group(group_path(where, group.id)) for where in (one, other))
        for measure in stored.select_dtypes("number").columns.difference(["step", *timed()], sort=False):
            if stored[measure].notna().any():
                found = {"study": name, "steps": study.train.steps, "measure": measure, "probe": made_by(measure)}
                rows.append(found | differences(measure, stored, again))
    return pd.DataFrame(rows)


def differences(measure: str, stored: pd.DataFrame, again: pd.DataFrame) -> dict[str, object]:
    """Return how far one measure of a group lies apart, at any step.

    Single runs in the first steps; then means and single runs, as a share of the largest mean; means in standard errors
    over seeds and, where they exceed what rounding may change, of the paired difference; and as a share of what
    `stability verify` allows.
    """
    pair = pair_of(measure, stored, again)
    off, runs = float(pair.off.max()), pair.again - pair.stored
    over_seeds = float((pair.stored.std(axis=1) / np.sqrt(pair.stored.count(axis=1))).max())
    return {
        "early": float(pair.early.max(axis=None)) / pair.size,
        "mean": off / pair.size,
        "run": float(runs.abs().max(axis=None)) / pair.size,
        "over seeds": off / over_seeds if over_seeds else np.nan,
        "paired": off / pair.error if off > SHARE * pair.size and pair.error else np.nan,
        "allowed": off / pair.allowed,
    }


def made_by(measure: str) -> str:
    """Return the name of the probe that makes a measure."""
    if measure in {each.name for each in STEP_MEASURES}:
        return "every step"
    return next(name for name, variant in probe.items() if measure in {m.name for m in variant.traits.measures})


def table(found: pd.DataFrame, by: str) -> str:
    """Return the largest differences as Markdown, a row for each probe or measure, means by steps trained."""
    lengths = sorted(found["steps"].unique())
    heads = [
        f"single run, {EARLY} steps",
        *(f"mean, {steps:,} steps" for steps in lengths),
        "single run",
        "mean / error over seeds",
        f"mean / paired error, above {SHARE}",
        "of what is allowed",
    ]
    lines = [f"| {by} | {' | '.join(heads)} |", f"|---|{'--:|' * len(heads)}"]
    for name, rows in found.groupby(by, sort=False):
        by_length = [rows["mean"][rows["steps"] == steps].max() for steps in lengths]
        rest = [rows[column].max() for column in ("run", "over seeds", "paired", "allowed")]
        lines.append(f"| {name} | {' | '.join(map(_said, [rows['early'].max(), *by_length, *rest]))} |")
    return "\n".join(lines)


def _said(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.1g}" if value < 0.01 else f"{value:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=f"of {', '.join(STUDIES)} (default: all)")
    parser.add_argument("--measures", action="store_true", help="a row for each measure, not for each probe")
    parser.add_argument("--json", type=Path, help="write every group and measure there")
    parser.add_argument("--again", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.again:
        train_again(*given.again)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = pd.concat([apart(name, Path(folder)) for name in given.studies or STUDIES], ignore_index=True)
    if given.json:
        given.json.write_text(found.to_json(orient="records", indent=1) + "\n")
    asked = " ".join(["python benchmarks/agreement.py", *sys.argv[1:]])
    print(f"`{asked}`, on {device_model(pick_device('cpu'))}, torch {versions()['torch']}:\n")
    print(table(found, "measure" if given.measures else "probe"))


if __name__ == "__main__":
    main()
