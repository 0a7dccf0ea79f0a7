"""The tables of a report as JSON data: each cell has a text, shown by both renderings, and its value."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stability.analysis import Results, summarize
from stability.analysis.pairing import reading_of
from stability.probes import probe
from stability.stats.wording import between, number, percent
from stability.study import Claim, settings_of
from stability.tuning import edges
from stability.vocabulary import AXES, axes_in, axis_of

Json = dict[str, Any]

CELL_MEASURES = (
    ("loss", "tail_mean"),
    ("recall_at_1", "final"),
    ("zero_shot_accuracy", "final"),
    ("gradient_noise_fraction", "tail_mean"),
    ("sharpness_ratio", "final"),
    ("margin_trimmed", "final"),
    ("modality_gap", "final"),
)

HEADS = {
    "arm": "Arm",
    "seed": "Seed",
    "runs": "Runs",
    "diverged": "Diverged",
    "collapsed": "Collapsed",
}


def _label(column: str) -> str:
    """Return the head of a column of runs: that of an axis, or one of `HEADS`."""
    return HEADS.get(column) or axis_of(column).head


def plain_table(frame: pd.DataFrame) -> Json:
    """Return a table as JSON data: column names and rows, floats to six digits, null for missing values."""
    columns = [[plain(value) for value in frame[name]] for name in frame.columns]
    rows = [list(row) for row in zip(*columns, strict=True)]
    return {"columns": [str(name) for name in frame.columns], "rows": rows}


def plain(value: Any) -> Any:
    """Return a value of a table as a JSON value: floats to six significant digits, null for NaN and infinity.

    >>> plain(np.float32(0.1)), plain(float("nan")), plain(np.array([1.0, 1 / 3])), plain("clip")
    (0.1, None, [1.0, 0.333333], 'clip')
    """
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(f"{float(value):.6g}") if math.isfinite(value) else None
    return None if value is None or value is pd.NA else str(value)


def cell_table(results: Results) -> Json:
    """Return one row per cell of the grid: mean and standard deviation over seeds of the main measures."""
    runs = results.runs
    axes = ["arm", *(axis for axis in axes_in(runs.columns) if runs[axis].nunique() > 1)]
    reductions = dict(CELL_MEASURES)
    for claim in results.study.claims:
        reduction = _table_reduction(results, claim)
        reductions |= {name: reduction for name in claim.measures if name not in reductions}
    summaries = {name: _run_values(results, name, reduction) for name, reduction in reductions.items()}
    numbers = {name: values for name, values in summaries.items() if values is not None}
    happened = {"diverged": runs["status"] == "diverged", "collapsed": runs["collapsed"] == 1}
    columns = [*axes, "runs", *(word for word, runs_with in happened.items() if runs_with.any())]
    rows = []
    for key, cell in runs.groupby(axes, sort=False):
        counted = {
            "runs": len(cell),
            **{word: int(runs_with[cell.index].sum()) for word, runs_with in happened.items()},
        }
        entries = {**dict(zip(axes, key, strict=True)), **counted}
        row = [_cell(entries[name]) for name in columns]
        rows.append(row + [_mean_and_spread(values.reindex(cell["run"]).to_numpy()) for values in numbers.values()])
    heads = [_head(_label(name), "", name != "arm") for name in columns]
    for name in numbers:
        measure = results.measures[name]
        notes = (measure.unit, reductions[name] if reductions[name] != "final" else "")
        heads.append(_head(measure.label, ", ".join(filter(None, notes)), True))
    shared = {axis: _text(runs[axis].iloc[0]) for axis in AXES if axis not in axes and AXES[axis].default is None}
    if results.tuning:
        shared["lr"] = "as tuned"
    fixed = [f"{_label(axis).lower()} {value}" for axis, value in shared.items()]
    return {"columns": heads, "rows": rows, "fixed": ", ".join(fixed) or None}


def _table_reduction(results: Results, claim: Claim) -> str:
    """Return the reduction for a claim's measure in the table: tail_mean, unless the claim uses first or final.

    A probe that forks a run measures at no step of the tail, so its measures use the claim's own reduction.
    """
    forking_measures = {
        measure.name
        for name in results.study.probes
        if probe[name].traits.forks
        for measure in probe[name].traits.measures
    }
    if forking_measures & {*claim.measures}:
        return reading_of(claim, results.measures[claim.measure])[0]
    return claim.reduction if claim.reduction in ("first", "final") else "tail_mean"


def missing_table(runs: pd.DataFrame) -> Json:
    """Return one row per cell of the grid with missing runs: its numbers of finished, failed and missing runs."""
    axes = ["arm", *(axis for axis in axes_in(runs.columns) if runs[axis].nunique() > 1)]
    heads = [_head(_label(name), "", name != "arm") for name in axes]
    heads += [_head(word, "", True) for word in ("Finished", "Failed", "Missing", "Planned")]
    rows = []
    for key, cell in runs.groupby(axes, sort=False):
        missing, failed = (int((cell["status"] == status).sum()) for status in ("planned", "failed"))
        if missing:
            counts = (len(cell) - missing - failed, failed, missing, len(cell))
            rows.append([_cell(value) for value in (*key, *counts)])
    return {"columns": heads, "rows": rows}


def _run_values(results: Results, name: str, reduction: str) -> pd.Series | None:
    """Return one number per run of a measure, or None if the study did not measure it or it holds lists."""
    if name not in results.measures or results.measures[name].listed:
        return None
    values = summarize(results, name, reduction)
    return values if np.isfinite(values.to_numpy(dtype=float)).any() else None


def tuning_table(results: Results) -> Json | None:
    """Return the chosen setting per arm and batch size and the number of settings tried; None without a search."""
    if results.tuning is None:
        return None
    tuning, rows = results.tuning, []
    at_edge = edges(results.study, tuning)
    searched = any(setting.options for setting in tuning.chosen.values())
    for (arm, size), setting in tuning.chosen.items():
        settings = settings_of(results.study, arm)
        runs = tuning.tried[(tuning.tried["arm"] == arm) & (tuning.tried["batch_size"] == size)]
        picked = runs[runs["setting"] == settings.index(setting)]
        choice = [arm, size, setting.lr, *([setting.words or None] if searched else [])]
        edge_words = [words for name, batch, words in at_edge if (name, batch) == (arm, size)]
        counts = [len(settings), int(runs["diverged"].sum()), "; ".join(edge_words) or None]
        rows.append([*map(_cell, choice), _mean_and_spread(picked["value"]), *map(_cell, counts)])
    heads = [_head("Arm", "", False), _head("Batch", "", True), _head("Rate", "chosen", True)]
    heads += [_head("Other settings", "chosen", False)] if searched else []
    heads += [_head(tuning.measure.label, "tail_mean, tuning seeds", True), _head("Settings", "tried", True)]
    heads += [_head("Diverged", "tuning runs", True), _head("At an end of the search", "", False)]
    return {"columns": heads, "rows": rows}


def crosscheck_table(results: Results) -> Json | None:
    """Return our top eigenvalue and trace next to PyHessian's and the exact ones, one row per run; None without any."""
    if "crosscheck_high" not in results.steps:
        return None
    rows = results.steps[results.steps["crosscheck_high"].notna()]
    last = rows.groupby("run", sort=False).tail(1).merge(results.runs, on="run")
    if not len(last):
        return None
    exact = [name for name in ("dense_high", "dense_trace") if last[name].notna().any()]
    heads = [_head(_label(name), "", name != "arm") for name in ("arm", "batch_size", "seed")]
    names = ["crosscheck_high", "pyhessian_high", *exact[:1], "crosscheck_trace", "pyhessian_trace", *exact[1:]]
    heads += [_head(results.measures[name].label, "", True) for name in names]
    error_columns = {name: f"{name}_stderr" for name in ("crosscheck_trace", "pyhessian_trace")}
    error_columns["crosscheck_high"] = "crosscheck_residual"
    body = []
    for _, row in last.iterrows():
        cells = [_cell(row[name]) for name in ("arm", "batch_size", "seed")]
        body.append(cells + [_with_error(row[name], row.get(error_columns.get(name, ""))) for name in names])
    gap = float((last["crosscheck_high"] / last["pyhessian_high"] - 1).abs().max())
    sentence = f"The two largest eigenvalues differ by at most {percent(gap)}." if math.isfinite(gap) else None
    return {"columns": heads, "rows": body, "agreement": sentence}


def _head(label: str, note: str, numeric: bool) -> Json:
    return {"label": label, "note": note or None, "numeric": numeric}


def _cell(value: Any) -> Json:
    return {"text": _text(value), "value": plain(value)}


def _text(value: Any) -> str:
    as_json = plain(value)
    if as_json is None:
        return "–"
    return minus(number(as_json)) if isinstance(as_json, float) else str(as_json)


def number_cell(value: float) -> Json:
    """Return a number as a cell; one that is not finite is "–" and null."""
    return {"text": minus(number(value)) if math.isfinite(value) else "–", "value": plain(value)}


def _with_error(value: float, error: float | None) -> Json:
    cell = _cell(value)
    if error is not None and math.isfinite(error):
        cell["text"] += f"\u00a0±\u00a0{number(float(f'{error:.2g}'))}"
    return cell


def _mean_and_spread(values: Iterable[float]) -> Json:
    """Return the mean over seeds as a cell whose text adds the standard deviation if it is not 0."""
    finite = np.asarray(list(values), dtype=float)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return _cell(None)
    mean, spread = float(finite.mean()), float(finite.std(ddof=1)) if len(finite) > 1 else 0.0
    return {"text": with_spread(mean, spread) if spread else _text(mean), "value": plain(mean)}


def effect_in_words(effect: float, ratio: bool) -> str:
    """Return a ratio as a factor and a difference with its sign.

    >>> effect_in_words(0.8812, True), effect_in_words(-0.12, False), effect_in_words(3.0, False)
    ('0.881×', '−0.12', '+3')
    """
    return f"{number(effect)}×" if ratio else f"{'+' if effect > 0 else ''}{minus(number(effect))}"


def interval_in_words(interval: Sequence[float | None], ratio: bool) -> str:
    """Return an interval in words; None is an unbounded end."""
    lowest = 0.0 if ratio else -math.inf
    lo, hi = (limit if end is None else end for end, limit in zip(interval, (lowest, math.inf), strict=True))
    return minus(between((lo, hi), ratio))


def with_spread(mean: float, spread: float) -> str:
    r"""Return a mean and its standard deviation, rounded to two digits of the latter, with non-breaking spaces.

    >>> with_spread(-0.006123, 0.0058), with_spread(1.0974, 0.0251), with_spread(1234.0, 560.0), with_spread(1e-6, 2e-7)
    ('−0.0061\xa0±\xa00.0058', '1.097\xa0±\xa00.025', '1,234\xa0±\xa0560', '1e-06\xa0±\xa02e-07')
    >>> with_spread(3.4e-4, 3e-5)
    '0.00034\xa0±\xa00.00003'
    """
    decimals = 1 - math.floor(math.log10(spread))
    if decimals == 6 and abs(mean) >= 1e-4:
        return minus(f"{mean:.5f}\u00a0±\u00a0{spread:.5f}")
    if decimals > 5:
        return minus(f"{mean:.2g}\u00a0±\u00a0{spread:.1g}")
    decimals = max(0, decimals)
    return minus(f"{mean:,.{decimals}f}\u00a0±\u00a0{spread:,.{decimals}f}")


def minus(text: str) -> str:
    """Replace the hyphen before numbers by a minus sign, except in exponents.

    >>> minus("-0.2 to -2e-07")
    '−0.2 to −2e-07'
    """
    return re.sub(r"(?<![\w.])-(?=[\di])", "−", text)


def signs(text: str) -> str:
    """Replace the hyphen before the numbers of a sentence by a minus sign, as in tables; keep hyphens in names.

    >>> signs("b-minus-10's is -0.5 lower (-0.7 to -.3) than siglip-log-b's")
    "b-minus-10's is −0.5 lower (−0.7 to −.3) than siglip-log-b's"
    """
    return re.sub(r"(?<![\w-])-(?=\.?\d)", "−", text)
