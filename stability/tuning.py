"""Hyperparameter search: the setting chosen for each loss and batch size, a pure function of the tuning runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from stability.grid import Run, runs_of, tuning_runs_of
from stability.losses import Scalar
from stability.probes import Measure
from stability.results import Results, Tuning, run_frame, summarize, transformed
from stability.store import read_groups
from stability.study import Setting, Study, search_of, settings_of, tuning_measure

REDUCTION = "tail_mean"
"""A tuning run is scored by the mean of its measure over the last fifth of its steps."""


def known_runs(study: Study, where: Path, finished: list[dict[str, Any]]) -> tuple[tuple[Run, ...], bool]:
    """Return the runs of *study* that are determined so far, and whether more follow once the search is finished.

    Without a search, these are the runs of the grid. With one, they are the tuning runs; once all of these are in the
    *finished* groups of the directory *where*, the test runs with the chosen settings are added.
    """
    first = tuning_runs_of(study)
    if not study.tune:
        return runs_of(study), False
    groups = [entry for entry in finished if entry.get("tuning")]
    tuning = search(study, {"groups": groups}, read_groups(where, groups, lambda sentence: None))
    if tuning is None:
        return first, True
    untuned = runs_of(study) if study.tune.untuned else ()
    return tuple({run.id: run for run in (*first, *runs_of(study, tuning.chosen), *untuned)}.values()), False


def search(study: Study, manifest: Mapping[str, Any], steps: pd.DataFrame) -> Tuning | None:
    """Return the result of the search from the tuning runs in *steps*, or None if some are missing."""
    runs, plan = tuning_runs_of(study), search_of(study)
    if not {run.id for run in runs} <= set(steps["run"]):
        return None
    order = {run.id: number for number, run in enumerate(runs)}
    rows = steps[steps["run"].isin(order)]
    rows = rows.assign(order=rows["run"].map(order)).sort_values(["order", "step"], kind="stable")
    frame = run_frame(plan, manifest, rows, runs)
    results = Results(plan, dict(manifest), frame, rows, plan.measures)
    measure = plan.measures[tuning_measure(study)]
    settings = {arm: settings_of(study, arm) for arm in study.grid.arms}
    tried = _tried(results, [settings[run.arm].index(Setting(run.lr, run.options)) for run in runs], measure)
    assert measure.better
    cells = dict(iter(tried.groupby(["arm", "batch_size"], sort=False)))
    chosen = {
        (arm, size): choose(cells[arm, size], settings[arm], measure.better)
        for arm, size in itertools.product(study.grid.arms, study.grid.batch_size)
    }
    return Tuning(measure, tried, chosen)


def _tried(results: Results, indices: Sequence[int], measure: Measure) -> pd.DataFrame:
    """Return a row per tuning run (see `Tuning`); a diverged run has the chance level as value and no score."""
    frame, values = results.runs, summarize(results, measure.name, REDUCTION)
    diverged = frame["status"] == "diverged"
    columns = {"value": values, "score": transformed(results, measure.name, values, measure.transform)}
    aligned = {name: column.reindex(frame["run"]).to_numpy(dtype=float) for name, column in columns.items()}
    chance = np.full(len(frame), np.nan)
    if measure.chance:
        chance = summarize(results, measure.chance, "final").reindex(frame["run"]).to_numpy(dtype=float)
    return frame[["arm", "batch_size", "seed", "lr"]].assign(
        setting=list(indices),
        value=np.where(diverged, chance, aligned["value"]),
        score=np.where(diverged, np.nan, aligned["score"]),
        diverged=diverged,
    )


def choose(tried: pd.DataFrame, settings: Sequence[Setting], better: Literal["higher", "lower"]) -> Setting:
    """Return the setting with the best mean score, for one arm and batch size.

    A setting with fewer diverged runs always ranks before one with more. Ties go to the lower rate, then to the setting
    listed first.

    >>> runs = pd.DataFrame({"setting": [0, 0, 1, 1], "score": [1.0, 2.0, 3.0, float("nan")]})
    >>> choose(runs, [Setting(1e-3), Setting(1e-2)], "higher")
    Setting(lr=0.001, options=())
    """
    sign = -1.0 if better == "higher" else 1.0

    def rank(index: int) -> tuple[int, float, float, int]:
        scores = tried.loc[tried["setting"] == index, "score"].to_numpy(dtype=float)
        finite = scores[np.isfinite(scores)]
        mean = sign * float(np.mean(finite)) if len(finite) else np.inf
        return len(scores) - len(finite), mean, settings[index].lr, index

    return settings[min(range(len(settings)), key=rank)]


def edges(study: Study, tuning: Tuning) -> tuple[tuple[str, int, str], ...]:
    """Return the choices at the edge of the searched range: arm, batch size, and which edge of which axis, in words.

    A rate counts if two or more were tried; an initial value or an option only if three or more numbers were tried,
    since one of two is always at an edge.
    """
    at_edges = []
    for (arm, size), setting in tuning.chosen.items():
        tried = settings_of(study, arm)
        axes = {"learning rate": (setting.lr, [one.lr for one in tried], 2)}
        for key, value in setting.options:
            seen = size // study.train_of(arm).shards
            axes[key] = (_number(value, seen), [_number(dict(one.options)[key], seen) for one in tried], 3)
        for axis, (value, values, min_values) in axes.items():
            if not all(map(math.isfinite, values)) or len(set(values)) < min_values:
                continue
            for bound, word in ((min(values), "lowest"), (max(values), "highest")):
                if value == bound:
                    at_edges.append((arm, size, f"the {word} {axis} tried, {value:.4g}"))
    return tuple(at_edges)


def _number(value: Any, batch_size: int) -> float:
    """Return an initial value or an option as a number, NaN if it is not one."""
    if value == "-log B":
        return Scalar("-log B").at(batch_size)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
