"""Reading of a run directory, finished or not, as the results of its study and replications."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from stability.grid import Run, runs_of
from stability.registration import read_record, record_look
from stability.registry import InputError
from stability.results import (
    Replicated,
    Results,
    run_frame,
)
from stability.store import MANIFEST, read_groups, read_manifest, read_study, replication_path
from stability.study import Study
from stability.tuning import search


def load_results(run_dir: str | Path, warn: Callable[[str], None] = lambda sentence: None) -> Results:
    """Return the results of a run directory, finished or not; *warn* is called with a sentence on each damaged file.

    Raises:
        InputError: The directory holds no run, or its tuning is not finished.
    """
    where = Path(run_dir)
    manifest = read_manifest(where)
    study = read_study(manifest, where)
    results = _read(study, manifest, where, warn)
    if results is None:
        raise InputError(
            f"{where}: the tuning runs are not all finished, so no setting is chosen and nothing is tested; "
            "`stability run` goes on with them"
        )
    return replace(results, replications=tuple(_read_replication(one, where, warn) for one in study.replications))


def load_to_show(run_dir: str | Path, warn: Callable[[str], None] = lambda sentence: None) -> Results:
    """Return `load_results` of a run directory whose verdicts are about to be shown, and record that as a look.

    Seeds that are added after a look, at no registered one, make its claims exploratory (`stability.registration`). If
    a look cannot be recorded, *warn* is called with a sentence.
    """
    results, where = load_results(run_dir, warn), Path(run_dir)
    shown = {where: results} | {
        replication_path(where, again.study.replication): again.results
        for again in results.replications
        if again.results
    }
    for directory, one in shown.items():
        try:
            record_look(directory, one.manifest, one.study)
        except OSError as error:
            warn(f"{directory}: that its results were looked at is not recorded ({error.strerror or error})")
    return results


def _read_replication(study: Study, run_dir: Path, warn: Callable[[str], None]) -> Replicated:
    """Return the results of one replication of the study in *run_dir*, and which of its runs are missing."""
    directory = replication_path(run_dir, study.replication)
    if not (directory / MANIFEST).is_file():
        return Replicated(study, None, "not begun")
    results = _read(study, read_manifest(directory), directory, warn)
    if results is None:
        return Replicated(study, None, "its tuning is not finished")
    missing = int((results.runs["status"] == "planned").sum())
    return Replicated(study, results, f"{missing:,} of {len(results.runs):,} runs are not finished" if missing else "")


def _read(study: Study, manifest: dict[str, Any], run_dir: Path, warn: Callable[[str], None]) -> Results | None:
    """Return the results of one study in its directory, or None while its tuning is not finished."""
    steps, record = read_groups(run_dir, manifest["groups"], warn), read_record(manifest, run_dir)
    if study.tune is None:
        return replace(_results(study, manifest, steps, runs_of(study)), record=record)
    tuning = search(study, manifest, steps)
    if tuning is None:
        return None
    untuned = _results(study, manifest, steps, runs_of(study)) if study.tune.untuned else None
    untuned = untuned and replace(untuned, record=record)
    results = _results(study, manifest, steps, runs_of(study, tuning.chosen))
    return replace(results, tuning=tuning, untuned=untuned, record=record)


def _results(study: Study, manifest: dict[str, Any], steps: pd.DataFrame, runs: Sequence[Run]) -> Results:
    # In the order of the study, so that nothing depends on the order in which groups finished.
    order = {run.id: number for number, run in enumerate(runs)}
    steps = steps.assign(order=steps["run"].map(order)).dropna(subset=["order"])
    steps = steps.sort_values(["order", "step"], kind="stable").drop(columns="order").reset_index(drop=True)
    return Results(study, manifest, run_frame(study, manifest, steps, runs), steps, study.measures)
