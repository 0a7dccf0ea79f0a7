"""The runs of a directory as data frames, and the reduction of each run's measure to one number."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from stability import stats
from stability.grid import Chosen, Run, level_of, runs_of
from stability.losses import loss
from stability.losses.chance import chance_level
from stability.probes import STEP_MEASURES, Measure
from stability.registration import Record
from stability.stats.after_event import AfterEvent
from stability.stats.collapse import RECALL_LIMIT, Course, best_loss, collapsed_at, diverged_at, late_recall
from stability.study import LATE, Options, Study, combinations
from stability.vocabulary import AXES, axes_in

FLOOR = 1.1
"""Bounded measures are clamped to at least this many times chance: the chance-corrected log is unbounded below."""

RECALL = "recall_at_1"
"""The recall that tells whether a run collapsed."""


@dataclass(frozen=True)
class Results:
    """The contents of a run directory.

    Attributes:
        study: The study.
        manifest: Its manifest.
        runs: One row per run.
        steps: One row per run and step.
        measures: The measures by name.
        tuning: The finished search of a study with ``[tune]``.
        untuned: Results without tuning, if the study requests them.
        replications: Results of its replications.
        record: What was claimed before the runs, if the run directory has a record of that.
    """

    study: Study
    manifest: dict[str, Any]
    runs: pd.DataFrame
    steps: pd.DataFrame
    measures: dict[str, Measure]
    tuning: Tuning | None = None
    untuned: Results | None = None
    replications: tuple[Replicated, ...] = ()
    record: Record | None = None


@dataclass(frozen=True)
class Replicated:
    """A replication of the study: its results so far (or None), and which runs are missing, in words."""

    study: Study
    results: Results | None
    missing: str


@dataclass(frozen=True)
class Tuning:
    """A finished hyperparameter search.

    Attributes:
        measure: The measure that was optimized.
        tried: A row per tuning run: arm, batch_size, seed, lr, setting (its index among the arm's), value (of the
            measure, late in the run), score (the same on the measure's scale) and diverged.
        chosen: The chosen setting by arm and batch size.
    """

    measure: Measure
    tried: pd.DataFrame
    chosen: Chosen


def run_frame(
    study: Study, manifest: Mapping[str, Any], steps: pd.DataFrame, runs: Iterable[Run] | None = None
) -> pd.DataFrame:
    """Return one row per run: its cell, status (finished, diverged, failed, planned), divergence and collapse.

    With ``[tune]`` the *rate* of a run depends on its arm and batch size, so it is not an axis; *lr*, which names the
    cell, is then the single rate of the grid. With ``grid.lr_multipliers`` the axis is *lr_multiplier*. *collapsed* is
    1 or 0, missing without a curve; see `stability.stats.collapse`.

    Args:
        study: The study.
        manifest: The manifest of its run directory.
        steps: One row per run and step.
        runs: The runs of the table; None for those of the grid.
    """
    status = {run: group["status"] for group in manifest["groups"] for run in group["runs"]}
    read = [name for name in ("step", "loss", RECALL, f"{RECALL}_chance") if name in steps]
    curves = dict(iter(steps[["run", *read]].groupby("run", sort=False)))
    at = {settings: study.at(settings) for settings in ((), *combinations(study.grid.settings))}
    # Of some losses the chance level is searched numerically, so once for all seeds.
    chance = cache(lambda settings, *arm: _chance_level(at[settings], *arm))
    rows, courses = [], {}
    for run in runs_of(study) if runs is None else runs:
        row = {"run": run.id, **{key: getattr(run, key) for key in ("arm", "seed", *AXES)}, **dict(run.levels)}
        if study.tune or study.grid.lr_multipliers:
            row |= {"lr": study.grid.lr[0], "rate": run.lr}
        row |= {"status": status.get(run.id, "planned"), "diverged_at": math.nan}
        if row["status"] == "finished" and run.id not in curves:
            row["status"] = "planned"
        if run.id in curves:
            total, warmup = _length(at[run.settings], run.arm, run.batch_size)
            level = chance(run.settings, run.arm, run.batch_size, run.options)
            first = study.first_step(run.arm, run.batch_size)
            course = _course(curves[run.id], level, first, total, warmup)
            step = diverged_at(course.loss, level, course.warmup)
            row |= {
                "status": "finished" if step is None else "diverged",
                "diverged_at": math.nan if step is None else first + step,
            }
            courses[run.id] = (first, course)
        rows.append(row)
    frame = pd.DataFrame(rows)
    if frame.empty:
        return frame
    at_step = _collapses(frame, courses)
    collapsed = [float(run in at_step) if run in courses else math.nan for run in frame["run"]]
    return frame.assign(collapsed=collapsed, collapsed_at=frame["run"].map(at_step).astype(float))


def _course(curve: pd.DataFrame, chance: float, first: int, total: int, warmup: int) -> Course:
    """Return what tells whether a run collapsed; its steps count from *first*."""
    measured = {RECALL, f"{RECALL}_chance"} <= {*curve.columns}
    recall = curve[["step", RECALL, f"{RECALL}_chance"]].dropna() if measured else pd.DataFrame()
    times = recall[RECALL] / recall[f"{RECALL}_chance"] if len(recall) else pd.Series(dtype=float)
    return Course(
        loss=curve["loss"].to_numpy()[: total - first],
        chance=chance,
        warmup=warmup - first,
        recall_steps=recall["step"].to_numpy(np.float64) - first if len(recall) else np.empty(0),
        recall=times.to_numpy(np.float64),
        recall_ceiling=1 / float(recall[f"{RECALL}_chance"].iloc[-1]) if len(recall) else math.inf,
    )


def _collapses(runs: pd.DataFrame, courses: Mapping[str, tuple[int, Course]]) -> dict[str, int]:
    """Return the step at which each collapsed run did, by the best loss in its cell at all rates and seeds."""
    cell = [axis for axis in axes_in(runs.columns) if axis not in ("lr", "lr_multiplier")]
    keys = dict(zip(runs["run"], zip(*(runs[axis] for axis in cell), strict=True), strict=True))
    arms = dict(zip(runs["run"], runs["arm"], strict=True))
    best: dict[Any, float] = {}
    learnable = set()
    for run, (_, course) in courses.items():
        key = arms[run], keys[run]
        best[key] = min(best.get(key, math.inf), best_loss(course))
        if late_recall(course, LATE) >= RECALL_LIMIT:
            learnable.add(keys[run])
    steps = {
        run: (first, collapsed_at(course, best=best[arms[run], keys[run]], learnable=keys[run] in learnable, late=LATE))
        for run, (first, course) in courses.items()
    }
    return {run: first + step for run, (first, step) in steps.items() if step is not None}


def _chance_level(study: Study, name: str, batch_size: int, options: Options) -> float:
    arm = study.arm(name, options)
    # A shard sees its own pairs only, so its chance level is that of a smaller batch, and the mean of shards has it.
    return chance_level(loss[arm.loss], batch_size // study.train_of(name).shards, arm.options)


def by_settings(results: Results) -> Iterator[tuple[Study, pd.DataFrame]]:
    """Yield the runs of each combination of levels of `Grid.settings`, with the study that trained them."""
    study, axes = results.study, results.study.grid.settings
    for settings in combinations(axes):
        runs = results.runs
        for key, value in settings:
            runs = runs[runs[key] == level_of(value, axes[key])]
        yield study.at(settings), runs


def summarize(results: Results, name: str, reduction: str) -> pd.Series:
    """Return one number per run (indexed by run) for a measure.

    Reductions: "first" is the first measured value, before the first step if it is measured there; "final" the last;
    "best" the best; "tail_mean" the mean over the last fifth of the steps; "mean_after_warmup" the area under the curve
    after warm-up, per step. A pooled measure is the ratio of its two means. A spike rate is already one number per run,
    over all steps after warm-up, and so is a measure after an event, which is NaN for runs without one.

    Steps count from the start of training: a run that starts from another has the late window of all runs, and its
    warm-up ends with its own.
    """
    measure = results.measures[name]
    if measure.spikes:
        return _spike_rates(results, measure)
    if measure.after_event:
        return _after_event(results, *measure.after_event)
    if measure.pooled:
        top, bottom = (summarize(results, part, reduction) for part in measure.pooled)
        return top / bottom
    rows = results.steps[["run", "step", name]].dropna()
    if reduction == "tail_mean":
        rows = rows[rows["step"] >= (1 - LATE) * rows["run"].map(_lengths(results)[0]).astype(float)]
    elif reduction == "mean_after_warmup":
        rows = rows[rows["step"] >= rows["run"].map(_lengths(results)[1]).astype(float)]
        return rows.groupby("run", sort=False)[["step", name]].apply(_area)
    by_run = rows.groupby("run", sort=False)[name]
    if reduction == "first":
        return by_run.first().astype(float)
    if reduction == "final":
        return by_run.last().astype(float)
    if reduction == "best":
        return (by_run.max() if measure.better == "higher" else by_run.min()).astype(float)
    return by_run.agg(lambda values: float(np.mean(values.to_numpy(np.float64))))


def _lengths(results: Results) -> tuple[pd.Series, pd.Series]:
    """Return the steps and the warm-up steps of each run, indexed by run."""
    runs, train = results.runs, results.study.train
    warmups = runs.get("train.warmup", pd.Series(train.warmup, runs.index))
    cells = zip(runs["arm"], runs["batch_size"], warmups, strict=True)
    lengths = [_length(results.study, arm, size, warmup) for arm, size, warmup in cells]
    total, warmup = (pd.Series([pair[k] for pair in lengths], runs["run"], dtype=float) for k in (0, 1))
    return total, warmup


def _length(study: Study, arm: str, batch_size: int, warmup: int | None = None) -> tuple[int, int]:
    """Return the last step of a run and the step after its warm-up: after both, for one that starts with its own."""
    total, warm = study.lengths(batch_size, warmup)
    start = study.start_of(arm, batch_size)
    return total, max(warm, start.first_step + start.warmup) if start else warm


def _after_event(results: Results, column: str, how: AfterEvent) -> pd.Series:
    """Return what the course of a column after the event of each run is summed up to; NaN without an event."""
    total, events = _lengths(results)[0], _events(results)
    higher = results.measures[column].better == "higher"

    def summed_up(rows: pd.DataFrame, run: Any) -> float:
        event = events.get(run)
        if event is None:
            return math.nan
        steps, values = rows["step"].to_numpy(), rows[column].to_numpy(np.float64)
        return stats.SUMMARIES[how](steps, values, event, int(total[run]), higher)

    rows = results.steps[["run", "step", column]].dropna()
    return pd.Series({run: summed_up(part, run) for run, part in rows.groupby("run", sort=False)}, dtype=float)


def _events(results: Results) -> dict[str, int | None]:
    """Return the step of the event of each run; None without one."""
    events: dict[str, int | None] = {}
    for study, runs in by_settings(results):
        cells = runs[["run", "arm", "batch_size"]].itertuples(index=False)
        events |= {run: study.event_step(arm, size) for run, arm, size in cells}
    return events


def diverged_level(results: Results, name: str) -> pd.Series | float:
    """Return per run what a measure counts as if the run diverged, having learned nothing; NaN where nothing follows.

    That is the chance level of a bounded measure. A measure after an event is that of a run which is at chance from the
    event on.
    """
    measure, steps = results.measures[name], results.steps
    column = measure.columns[0] if measure.after_event else name
    chance = results.measures[column].chance if column in results.measures else ""
    if not chance:
        return math.nan
    if measure.after_event is None:
        return summarize(results, chance, "final")
    after = steps["step"] > steps["run"].map(_events(results)).astype(float)
    at_chance = steps.assign(**{column: steps[column].mask(after, steps[chance])})
    return summarize(replace(results, steps=at_chance), name, "final")


def _spike_rates(results: Results, measure: Measure) -> pd.Series:
    """Return each run's spikes per 1,000 steps after warm-up, of the logarithm if the measure's transform is log.

    A column that is not read at every step has its readings counted, and their mean distance makes them steps.
    """
    column, (total, warmup) = measure.spikes, _lengths(results)
    steps = results.steps[["run", "step", column]]
    logged = steps[(steps["step"] >= steps["run"].map(warmup)) & (steps["step"] < steps["run"].map(total))]
    log = results.measures[column].transform == "log"
    probed = column not in {one.name for one in STEP_MEASURES}

    def rate(rows: pd.DataFrame) -> float:
        rows = rows.dropna() if probed else rows
        values, at = rows[column].to_numpy(np.float64), rows["step"].to_numpy(np.float64)
        logs = np.log(np.where(values > 0, values, np.nan)) if log else values
        found = stats.SPIKE_RULES[measure.spike_rule](logs)
        return found.rate * (len(at) - 1) / (at[-1] - at[0]) if probed and len(at) > 1 else found.rate

    return pd.Series({run: rate(rows) for run, rows in logged.groupby("run", sort=False)}, dtype=float)


def _area(curve: pd.DataFrame) -> float:
    """Return the mean height of a curve of (step, value) rows by the trapezoidal rule; for one point its value."""
    steps, values = (curve.iloc[:, column].to_numpy(np.float64) for column in (0, 1))
    return float(np.trapezoid(values, steps) / (steps[-1] - steps[0])) if len(steps) > 1 else float(values[0])


def steps_to_threshold(results: Results, name: str, threshold: float) -> pd.Series:
    """Return per run the first measured step at which a measure reaches the threshold, infinity if there is none."""
    rows = results.steps[["run", "step", name]].dropna()
    better = results.measures[name].better
    reached = rows[rows[name] >= threshold] if better == "higher" else rows[rows[name] <= threshold]
    first = reached.groupby("run", sort=False)["step"].min().astype(float)
    return first.reindex(results.runs["run"], fill_value=math.inf)


def chance_losses(results: Results) -> pd.Series:
    """Return per run the chance level of its training loss."""
    chosen = results.tuning.chosen if results.tuning else {}
    levels: dict[str, float] = {}
    for study, runs in by_settings(results):
        for arm, size in dict.fromkeys(zip(runs["arm"].tolist(), runs["batch_size"].tolist(), strict=True)):
            options = chosen[arm, size].options if chosen else ()
            cell = runs["run"][(runs["arm"] == arm) & (runs["batch_size"] == size)]
            levels |= dict.fromkeys(cell, _chance_level(study, arm, size, options))
    return pd.Series(levels, dtype=float).reindex(results.runs["run"])


def transformed(results: Results, name: str, values: pd.Series, scale: str) -> pd.Series:
    """Return one number per run on the scale on which arms are compared (see `probes.Measure`).

    Args:
        results: The results of the study.
        name: The measure.
        values: One number per run, indexed by run.
        scale: The transform.
    """
    if scale == "log":
        return np.log(values.where(values > 0))
    if scale == "relative_to_chance":
        # NaN stays NaN: a run without a value has none on any scale.
        return (values / chance_losses(results).reindex(values.index)).clip(upper=1.0)
    if scale == "log_above_chance":
        chance = summarize(results, results.measures[name].chance, "final").reindex(values.index)
        return np.log((np.maximum(values, FLOOR * chance) - chance) / (1 - chance))
    return values
