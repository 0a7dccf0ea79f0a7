"""From a run directory, finished or not, to the results of its study and of its replications."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from stability.grid import Run, runs_of
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
    """Return the results of a run directory, finished or not; *warn* gets a sentence on each damaged file.

    Raises `InputError` if no run lies there.
    """
    where = Path(run_dir)
    manifest = read_manifest(where)
    study = read_study(manifest, where)
    found = _read(study, manifest, where, warn)
    if found is None:
        raise InputError(
            f"{where}: the tuning runs are not all finished, so no setting is chosen and nothing is tested; "
            "`stability run` goes on with them"
        )
    return replace(found, replications=tuple(_read_again(again, where, warn) for again in study.replications))


def _read_again(study: Study, where: Path, warn: Callable[[str], None]) -> Replicated:
    """Return what the directory *where* of a study holds of one of its replications, and what is missing of it."""
    place = replication_path(where, study.replication)
    if not (place / MANIFEST).is_file():
        return Replicated(study, None, "not begun")
    found = _read(study, read_manifest(place), place, warn)
    if found is None:
        return Replicated(study, None, "its tuning is not finished")
    missing = int((found.runs["status"] == "planned").sum())
    return Replicated(study, found, f"{missing:,} of {len(found.runs):,} runs are not finished" if missing else "")


def _read(study: Study, manifest: dict[str, Any], where: Path, warn: Callable[[str], None]) -> Results | None:
    """Return the results of one study in its directory; None while its tuning is not finished."""
    steps = read_groups(where, manifest["groups"], warn)
    if study.tune is None:
        return _results(study, manifest, steps, runs_of(study))
    tuning = search(study, manifest, steps)
    if tuning is None:
        return None
    untuned = _results(study, manifest, steps, runs_of(study)) if study.tune.untuned else None
    found = _results(study, manifest, steps, runs_of(study, tuning.chosen))
    return replace(found, tuning=tuning, untuned=untuned)


def _results(study: Study, manifest: dict[str, Any], steps: pd.DataFrame, runs: Sequence[Run]) -> Results:
    # In the order of the study, so that nothing depends on the order in which groups were finished.
    place = {run.id: number for number, run in enumerate(runs)}
    steps = steps.assign(place=steps["run"].map(place)).dropna(subset=["place"])
    steps = steps.sort_values(["place", "step"], kind="stable").drop(columns="place").reset_index(drop=True)
    return Results(study, manifest, run_frame(study, manifest, steps, runs), steps, study.measures)
