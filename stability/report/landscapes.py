"""Landscapes of the runs of a run directory: replayed, looked at along chosen directions, drawn and written."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from cycler import cycler
from matplotlib.figure import Figure

from stability import landscape
from stability.execute import replay_run
from stability.execute.machine import reproducible_arithmetic
from stability.landscape.figures import Place, connectivity_figure, line_figure, plane_figure
from stability.landscape.slices import Span
from stability.probes import STEP_MEASURES, in_towers
from stability.registry import InputError, nearest
from stability.report.style import LIGHT, styled
from stability.store import write_atomically
from stability.train import Replay

PATH_POINTS = 21
"""Points of a run's trajectory whose principal directions are taken."""

SCOPE = {"log_scale": 2.0, "bias": 10.0}
"""How far to look to either side of a trained scalar of the loss."""

DPI = 300

ARMS: Any = cycler(color=[LIGHT["arm-1"], LIGHT["arm-2"]])
"""Colours of lines, in order."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class View:
    """The directions to look along, one or two: how far, what they are called, and where on them the run lies."""

    axes: tuple[landscape.Direction, ...]
    spans: tuple[Span, ...]
    labels: tuple[str, ...]
    origin: tuple[float, ...] = (0.0, 0.0)
    path: np.ndarray | None = None


def write_landscape(
    run_dir: str | Path,
    run: str | None,
    *,
    to: str = "",
    kind: str = "filter",
    points: int = 21,
    span: Span | None = None,
    step: int | None = None,
    progress: Progress = lambda done, steps: None,
) -> dict[str, Path]:
    """Return the paths of the picture (png, svg) and the grid (parquet) written to RUN_DIR/landscape.

    The run (None: the first of the test), trained again by its seed up to *step* (None: the end), is looked at along
    directions of a *kind* of `VIEWS`, *points* to an axis, over *span* (None: by kind). With *to*, a second run of the
    same arm, it is loss and recall on the straight way between both. The objective is the mean loss over fixed batches
    of the (first) run's training data. Raises `InputError` for runs, kinds or numbers that do not fit, and where
    nothing can be written.
    """
    if kind not in VIEWS:
        raise InputError(f"--kind: unknown kind {kind!r}{nearest(kind, VIEWS)}")
    if points < 2:
        raise InputError(f"--points: got {points}; allowed: a whole number of at least 2")
    keep = _along if kind == "pca" and not to else ()
    first = replay_run(run_dir, run, step=step, keep=keep, progress=progress)
    at = f"-step-{first.step}" if first.step < first.study.train.steps else ""
    with reproducible_arithmetic(), styled(), mpl.rc_context({"axes.prop_cycle": ARMS}):
        if to:
            second = replay_run(run_dir, to, step=step, progress=progress)
            name, (table, figure) = f"{first.run.id}-{second.run.id}-connectivity", _way(first, second, points)
        else:
            name, (table, figure) = f"{first.run.id}-{kind}", _slice(first, VIEWS[kind](first), points, span)
    return _write(Path(run_dir) / "landscape", name + at, table, figure)


def _along(last: int) -> list[int]:
    return sorted({round(last * place / (PATH_POINTS - 1)) for place in range(PATH_POINTS)})


def _slice(replay: Replay, view: View, points: int, span: Span | None) -> tuple[pd.DataFrame, Figure]:
    spans = (span,) * len(view.axes) if span else view.spans
    title, value = _title(replay), _value(replay)
    if len(view.axes) == 1:
        line = landscape.slice1d(
            replay.objective, replay.params, view.axes[0], spans[0], points, batches=replay.batches
        )
        table = line.table().assign(first=lambda rows: rows["first"] + view.origin[0])
        centre = Place(view.origin[:1], line.center, (line.curvature,))
        return table, line_figure(table, view.labels[0], value, title, centre)
    plane = landscape.slice2d(replay.objective, replay.params, view.axes, spans, points, batches=replay.batches)
    table = plane.table().assign(
        first=lambda rows: rows["first"] + view.origin[0], second=lambda rows: rows["second"] + view.origin[1]
    )
    centre = Place(view.origin, plane.center, tuple(plane.curvature.diagonal().tolist()))
    return table, plane_figure(table, (view.labels[0], view.labels[1]), value, title, centre, view.path)


def _way(first: Replay, second: Replay, points: int) -> tuple[pd.DataFrame, Figure]:
    """Return loss and recall between two runs of one arm, on the first run's batches."""
    if first.run.arm != second.run.arm:
        raise InputError(
            f"--second-run: run {second.run.id} is of arm {second.run.arm!r}; allowed: {first.run.arm!r}, as --run"
        )
    ends = first.params, second.params
    losses = landscape.connectivity(first.objective, *ends, points, batches=first.batches)
    errors = landscape.connectivity(first.recall_error, *ends, points)
    rule = "stable" if errors.stable else "not stable"
    note = (
        f"barrier of the loss {losses.barrier:.3g}\n"
        f"instability of 1 - recall: {100 * errors.instability:.2g}%, {rule} (rule: below 2%)"
    )
    seeds = f"{_title(first)}\nto {_cell(second)}"
    columns = {"first": losses.table()["first"], "loss": losses.values, "recall_error": errors.values}
    figure = connectivity_figure(losses.table(), errors.table(), _value(first), seeds, note)
    return pd.DataFrame(columns), figure


# --- what to look along ----------------------------------------------------------------------------------------------


def _filters(replay: Replay) -> View:
    axes = landscape.directions(replay.params, "filter", block=replay.trained)
    labels = tuple(f"random direction {place} (filter norms)" for place in (1, 2))
    return View(axes, ((-1.0, 1.0),) * 2, labels)


def _eigenvectors(replay: Replay) -> View:
    """Look as far as the second-order model takes to double the loss, but at most the parameters' own norm."""
    params, towers = replay.params, {name for name in replay.trained if in_towers(name)}
    found = landscape.directions(
        params, "eigen", objective=replay.objective, batches=replay.batches, block=towers, chunk_size=1
    )
    size = math.sqrt(sum(float(params[name].square().sum()) for name in towers))
    lines = [
        landscape.slice1d(replay.objective, params, axis, points=2, batches=replay.batches, chunk_size=2)
        for axis in found
    ]
    reach = [min(size, math.sqrt(2 * abs(line.center) / max(abs(line.curvature), 1e-12))) for line in lines]
    labels = tuple(f"eigenvector {place} of the towers (unit steps)" for place in (1, 2))
    return View(found, tuple((-far, far) if math.isfinite(far) else (-1.0, 1.0) for far in reach), labels)


def _trajectory(replay: Replay) -> View:
    """Look as far as the trajectory reaches, and a sixth of its width beyond."""
    points = list(replay.path.values())
    axes = landscape.directions(replay.params, "pca", trajectory=points)
    shares = landscape.explained_shares(points, axes).tolist()
    path = landscape.coordinates(replay.params, axes, points)
    low, high = path.amin(0), path.amax(0)
    margin = torch.where(high > low, (high - low) / 6, 1.0)
    spans = tuple(zip((low - margin).tolist(), (high + margin).tolist(), strict=True))
    labels = tuple(
        f"principal direction {place} ({100 * share:.0f}% of the path)" for place, share in enumerate(shares, start=1)
    )
    return View(axes, spans, labels, path=path.numpy())


def _scalars(replay: Replay) -> View:
    names = [name for name, value in replay.params.items() if not in_towers(name) and value.dim() == 0][:2]
    if not names:
        raise InputError(f"--kind scalars: arm {replay.run.arm!r} has no trained scalars; allowed: filter, eigen, pca")
    axes = landscape.directions(replay.params, "scalars", len(names), block=names)
    values = tuple(float(replay.params[name]) for name in names)
    short = [name.removeprefix("loss.") for name in names]
    known = {measure.name: measure.label for measure in STEP_MEASURES}
    reach = [SCOPE.get(name, max(1.0, abs(value))) for name, value in zip(short, values, strict=True)]
    labels = tuple(known.get(name, name) for name in short)
    return View(axes, tuple((-far, far) for far in reach), labels, origin=values)


VIEWS: Mapping[str, Callable[[Replay], View]] = {
    "filter": _filters,
    "eigen": _eigenvectors,
    "pca": _trajectory,
    "scalars": _scalars,
}
"""The kinds of directions along which a run can be looked at."""


# --- words and files -------------------------------------------------------------------------------------------------


def _cell(replay: Replay) -> str:
    run = replay.run
    return f"B = {run.batch_size}, noise {run.noise:g}, lr {run.lr:g}, seed {run.seed}"


def _title(replay: Replay) -> str:
    return f"{replay.run.arm}, {_cell(replay)}, step {replay.step}"


def _value(replay: Replay) -> str:
    return f"mean loss, {len(replay.batches['index'])} batches (nats)"


def _write(folder: Path, name: str, table: pd.DataFrame, figure: Figure) -> dict[str, Path]:
    options: dict[str, dict[str, Any]] = {"png": {"dpi": DPI}, "svg": {"metadata": {"Date": None}}}
    files = {"parquet": table.to_parquet(index=False)}
    for kind, how in options.items():
        file = io.BytesIO()
        with styled():
            figure.savefig(file, format=kind, facecolor=LIGHT["page"], **how)
        files[kind] = file.getvalue()
    paths = {kind: folder / f"{name}.{kind}" for kind in ("png", "svg", "parquet")}
    try:
        folder.mkdir(exist_ok=True)
        for kind, path in paths.items():
            write_atomically(path, files[kind])
    except OSError as error:
        raise InputError(f"{folder}: the landscape cannot be written ({error.strerror or error})") from error
    return paths
