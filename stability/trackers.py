"""Sends the results of a run directory to experiment trackers, a registry of ``(results, out) -> sentence``.

The sentence says where the results are. They are sent after training, from the contents of the run directory: one
tracked run per finished run, with its grid cell as parameters, its curves, and its final values as a summary. Lists
(spectra) are only in `stability.exports`.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from stability.analysis import Results, load_results, summarize
from stability.extras import optional
from stability.registry import InputError, Registry, Traits
from stability.store import writing
from stability.vocabulary import axes_in

tracker = Registry("tracker", Traits)

BATCH = 1000
"""Largest number of metrics that MLflow accepts in one call."""


@dataclass(frozen=True)
class Tracked:
    """One run for a tracker.

    Attributes:
        id: Id of the run.
        name: Readable name made of the run's grid cell and seed.
        cell: Arm, seed and the values of the grid's axes.
        curves: One row per step, one column per measure.
        final: Final value of each measure, if finite.
    """

    id: str
    name: str
    cell: Mapping[str, Any]
    curves: pd.DataFrame
    final: Mapping[str, float]


def send(
    run_dir: str | Path,
    to: str,
    out: str | Path | None = None,
    warn: Callable[[str], None] = lambda sentence: None,
) -> str:
    """Write the runs of a run directory to a tracker and return a sentence that says where they are.

    Args:
        run_dir: The run directory.
        to: Name of the tracker.
        out: The folder to write into (default: ``<run_dir>/export/<tracker>``); it must be empty or not exist.
        warn: Called with a sentence on each damaged file.

    Raises:
        InputError: The tracker is unknown or not installed, or the folder is not empty.
    """
    variant = tracker.get_or_explain(to, "--tracker")
    results = load_results(run_dir, warn)
    folder = Path(out) if out is not None else Path(run_dir) / "export" / to
    with writing(f"--out {folder}:", "; name a folder that can"):
        folder.mkdir(parents=True, exist_ok=True)
        used = any(folder.iterdir())
    if used:
        raise InputError(f"--out {folder}: holds files already; name a folder that is empty or not there")
    sentence: str = variant(results, folder)
    return sentence


def tracked(results: Results) -> Iterator[Tracked]:
    """Yield every run that has measurements, in the order of the study."""
    names = [name for name, measure in results.measures.items() if not measure.listed]
    stored = [name for name in names if name in results.steps]
    final = pd.DataFrame({name: summarize(results, name, "final") for name in stored})
    steps_by_run = dict(iter(results.steps.groupby("run", sort=False)))
    for row in results.runs.to_dict("records"):
        if row["run"] in steps_by_run:
            cell = {key: row[key] for key in ("arm", "seed", *axes_in(row))}
            name = (
                f"{row['arm']}-b{row['batch_size']}-{row['corruption']}{row['noise']:g}-lr{row['lr']:g}-s{row['seed']}"
            )
            curves = steps_by_run[row["run"]][["step", *stored]]
            yield Tracked(row["run"], name, {**cell, "status": row["status"]}, curves, _finite(final.loc[row["run"]]))


def _finite(values: pd.Series) -> dict[str, float]:
    return {str(name): float(value) for name, value in values.items() if math.isfinite(value)}


def _points(curves: pd.DataFrame) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield each step with the finite values measured there, by measure."""
    for row in curves.to_dict("records"):
        step = int(row.pop("step"))
        yield step, {str(name): value for name, value in row.items() if math.isfinite(value)}


@tracker
def tensorboard(results: Results, out: Path) -> str:
    """Write TensorBoard event files, one folder per run, with the grid cells as hyperparameters."""
    optional("tensorboard", "--tracker tensorboard", "tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    for run in tracked(results):
        with SummaryWriter(str(out / run.name)) as writer:
            for step, values in _points(run.curves):
                for name, value in values.items():
                    writer.add_scalar(name, value, step)
            writer.add_hparams(
                dict(run.cell), {f"final/{name}": value for name, value in run.final.items()}, run_name="."
            )
    return f"tensorboard --logdir {out}"


@tracker
def wandb(results: Results, out: Path) -> str:
    """Write Weights & Biases runs, offline unless WANDB_MODE says otherwise; ``wandb sync`` uploads them."""
    library = optional("wandb", "--tracker wandb", "wandb")
    mode = os.environ.get("WANDB_MODE", "offline")
    for run in tracked(results):
        with library.init(
            project=results.study.name,
            group=run.cell["arm"],
            name=run.name,
            id=run.id,
            config=dict(run.cell),
            dir=str(out),
            mode=mode,
        ) as target:
            for step, values in _points(run.curves):
                target.log(values, step=step)
            target.summary.update(dict(run.final))
    return f"wandb sync {out}/wandb/offline-run-*" if mode == "offline" else f"sent to Weights & Biases ({mode})"


@tracker
def mlflow(results: Results, out: Path) -> str:
    """Write MLflow runs into a database in the folder, or to the server that MLFLOW_TRACKING_URI names."""
    library = optional("mlflow", "--tracker mlflow", "mlflow")
    address = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(out / 'mlflow.db').absolute()}"
    client = library.MlflowClient(tracking_uri=address)
    existing = client.get_experiment_by_name(results.study.name)
    artifacts = None if address.startswith("http") else (out / "artifacts").absolute().as_uri()
    experiment = existing.experiment_id if existing else client.create_experiment(results.study.name, artifacts)
    now = int(1000 * time.time())
    metric, param, tag = (getattr(library.entities, name) for name in ("Metric", "Param", "RunTag"))
    for run in tracked(results):
        run_id = client.create_run(experiment, run_name=run.name, tags={"run": run.id}).info.run_id
        points = [
            metric(name, value, now, step) for step, values in _points(run.curves) for name, value in values.items()
        ]
        client.log_batch(
            run_id,
            metrics=[metric(f"final.{name}", value, now, 0) for name, value in run.final.items()],
            params=[param(key, str(value)) for key, value in run.cell.items()],
            tags=[tag("study", results.study.name)],
        )
        for start in range(0, len(points), BATCH):
            client.log_batch(run_id, metrics=points[start : start + BATCH])
        client.set_terminated(run_id)
    return f"mlflow ui --backend-store-uri {address}"
