"""The search before the test: which setting each loss and batch size gets, as a pure function of the tuning runs."""

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
"""A tuning run counts as the mean of its measure over the last fifth of its steps."""


def known_runs(study: Study, where: Path, finished: list[dict[str, Any]]) -> tuple[tuple[Run, ...], bool]:
    """Return the runs of *study* that can be named by now, and whether more follow once the search is finished.

    Without a search, these are the runs of the grid. With one they are its runs, and once all of them are among the
    *finished* groups of the directory *where*, those of the test with what was chosen.
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
    """Return what the tuning runs among *steps* have tried and what follows from it; None if some are missing."""
    runs, plan = tuning_runs_of(study), search_of(study)
    if not {run.id for run in runs} <= set(steps["run"]):
        return None
    place = {run.id: number for number, run in enumerate(runs)}
    rows = steps[steps["run"].isin(place)]
    rows = rows.assign(place=rows["run"].map(place)).sort_values(["place", "step"], kind="stable")
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


def _tried(results: Results, places: Sequence[int], measure: Measure) -> pd.DataFrame:
    """Return a row per tuning run (see `Tuning`); a diverged one has the chance level as value, and no score."""
    frame, values = results.runs, summarize(results, measure.name, REDUCTION)
    diverged = frame["status"] == "diverged"
    columns = {"value": values, "score": transformed(results, measure.name, values, measure.transform)}
    aligned = {name: column.reindex(frame["run"]).to_numpy(dtype=float) for name, column in columns.items()}
    chance = np.full(len(frame), np.nan)
    if measure.chance:
        chance = summarize(results, measure.chance, "final").reindex(frame["run"]).to_numpy(dtype=float)
    return frame[["arm", "batch_size", "seed", "lr"]].assign(
        setting=list(places),
        value=np.where(diverged, chance, aligned["value"]),
        score=np.where(diverged, np.nan, aligned["score"]),
        diverged=diverged,
    )


def choose(tried: pd.DataFrame, settings: Sequence[Setting], better: Literal["higher", "lower"]) -> Setting:
    """Return the setting whose runs score best on average, over one arm and batch size.

    A diverged run is the worst there is: a setting with fewer of them comes first, whatever the others reach. Ties go
    to the lower rate, then to the setting listed first.

    >>> runs = pd.DataFrame({"setting": [0, 0, 1, 1], "score": [1.0, 2.0, 3.0, float("nan")]})
    >>> choose(runs, [Setting(1e-3), Setting(1e-2)], "higher")
    Setting(lr=0.001, options=())
    """
    sign = -1.0 if better == "higher" else 1.0

    def rank(place: int) -> tuple[int, float, float, int]:
        scores = tried.loc[tried["setting"] == place, "score"].to_numpy(dtype=float)
        kept = scores[np.isfinite(scores)]
        mean = sign * float(np.mean(kept)) if len(kept) else np.inf
        return len(scores) - len(kept), mean, settings[place].lr, place

    return settings[min(range(len(settings)), key=rank)]


def edges(study: Study, tuning: Tuning) -> tuple[tuple[str, int, str], ...]:
    """Return where the choice lies at the end of what was tried: arm, batch size, and which end of what, in words.

    A rate is at an end of two or more; an initial value or an option only where three or more numbers were tried, since
    one of two is always at an end.
    """
    found = []
    for (arm, size), setting in tuning.chosen.items():
        tried = settings_of(study, arm)
        axes = {"learning rate": (setting.lr, [each.lr for each in tried], 2)}
        for key, value in setting.options:
            axes[key] = (_number(value, size), [_number(dict(each.options)[key], size) for each in tried], 3)
        for axis, (value, values, least) in axes.items():
            if not all(map(math.isfinite, values)) or len(set(values)) < least:
                continue
            for end, word in ((min(values), "lowest"), (max(values), "highest")):
                if value == end:
                    found.append((arm, size, f"the {word} {axis} tried, {value:.4g}"))
    return tuple(found)


def _number(value: Any, batch_size: int) -> float:
    """Return an initial value or an option as a number, NaN where it is none."""
    if value == "-log B":
        return Scalar("-log B").at(batch_size)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
