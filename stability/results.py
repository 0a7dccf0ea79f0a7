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
from stability.probes import Measure
from stability.registration import Record
from stability.stats.after_event import AfterEvent
from stability.study import LATE, Options, Study, combinations
from stability.vocabulary import AXES

FLOOR = 1.1
"""Bounded measures are clamped to at least this many times chance: the chance-corrected log is unbounded below."""


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
    """Return one row per run: its cell, status (finished, diverged, failed, planned) and divergence.

    With ``[tune]`` the *rate* of a run depends on its arm and batch size, so it is not an axis; *lr*, which names the
    cell, is then the single rate of the grid. With ``grid.lr_multipliers`` the axis is *lr_multiplier*.

    Args:
        study: The study.
        manifest: The manifest of its run directory.
        steps: One row per run and step.
        runs: The runs of the table; None for those of the grid.
    """
    status = {run: group["status"] for group in manifest["groups"] for run in group["runs"]}
    losses = dict(iter(steps.groupby("run", sort=False)["loss"]))
    at = {settings: study.at(settings) for settings in ((), *combinations(study.grid.settings))}
    # Of some losses the chance level is searched numerically, so once for all seeds.
    chance = cache(lambda settings, *arm: _chance_level(at[settings], *arm))
    rows = []
    for run in runs_of(study) if runs is None else runs:
        row = {"run": run.id, **{key: getattr(run, key) for key in ("arm", "seed", *AXES)}, **dict(run.levels)}
        if study.tune or study.grid.lr_multipliers:
            row |= {"lr": study.grid.lr[0], "rate": run.lr}
        row |= {"status": status.get(run.id, "planned"), "diverged_at": math.nan}
        if row["status"] == "finished" and run.id not in losses:
            row["status"] = "planned"
        if run.id in losses:
            total, warmup = _length(at[run.settings], run.arm, run.batch_size)
            level = chance(run.settings, run.arm, run.batch_size, run.options)
            first = study.first_step(run.arm, run.batch_size)
            step = diverged_at(losses[run.id].to_numpy()[: total - first], level, warmup - first)
            row |= {
                "status": "finished" if step is None else "diverged",
                "diverged_at": math.nan if step is None else first + step,
            }
        rows.append(row)
    return pd.DataFrame(rows)


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
        return _spike_rates(results, measure.spikes)
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


def _spike_rates(results: Results, column: str) -> pd.Series:
    """Return each run's spikes per 1,000 steps after warm-up, of the logarithm if the measure's transform is log."""
    steps, (total, warmup) = results.steps, _lengths(results)
    logged = steps[(steps["step"] >= steps["run"].map(warmup)) & (steps["step"] < steps["run"].map(total))]
    log = results.measures[column].transform == "log"

    def rate(series: pd.Series) -> float:
        values = series.to_numpy(np.float64)
        return stats.spikes(np.log(np.where(values > 0, values, np.nan)) if log else values).rate

    return logged.groupby("run", sort=False)[column].agg(rate)


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


def diverged_at(loss: np.ndarray, chance: float, warmup: int) -> int | None:
    """Return the step at which a run diverged, or None.

    A run has diverged if its loss became non-finite for good (at the first such step), or if its smoothed loss
    (trailing mean over a twentieth of the run, at least 10 steps) is at or above chance at the end; it then diverged at
    the first step after warm-up since which it never fell below chance. A spike that recovers is not a divergence, nor
    is a step that was skipped because float16 overflowed: where its loss is not finite, the loss before counts.

    Args:
        loss: the training loss (steps,).
        chance: the loss of uninformative embeddings.
        warmup: the number of warm-up steps.

    >>> healthy = np.linspace(5.0, 1.0, 100)
    >>> diverged_at(healthy, 3.0, 10), diverged_at(healthy[::-1], 3.0, 10), diverged_at(np.full(100, 9.0), 3.0, 10)
    (None, 54, 10)
    >>> diverged_at(np.where(np.arange(100) < 40, 1.0, np.nan), 3.0, 10)
    40
    >>> diverged_at(np.where(np.arange(100) == 40, np.nan, 1.0), 3.0, 10)
    """
    # In float32 one spike would absorb all later terms of the cumulative sum.
    loss = np.asarray(loss, dtype=np.float64)
    finite = np.flatnonzero(np.isfinite(loss))
    lasts = int(finite[-1]) + 1 if len(finite) else 0
    if lasts < len(loss):
        return lasts
    loss = loss[finite[np.maximum(np.searchsorted(finite, np.arange(len(loss)), side="right") - 1, 0)]]
    width = min(len(loss), max(10, len(loss) // 20))
    total = np.cumsum(np.insert(loss, 0, 0.0))
    smooth = (total[width:] - total[:-width]) / width
    below = np.flatnonzero(smooth < chance)
    first = 0 if not len(below) else int(below[-1]) + 1
    if first == len(smooth):
        return None
    return max(first + width - 1 if first else 0, warmup)
