"""Loss landscapes of runs: a replayed run is evaluated along chosen directions, drawn and written to files."""

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
from stability.landscape.figures import CenterMarker, connectivity_figure, line_figure, plane_figure
from stability.landscape.slices import Span
from stability.probes import STEP_MEASURES, in_towers
from stability.registry import InputError, nearest
from stability.report.style import LIGHT, styled
from stability.store import write_files
from stability.train import Replay

PATH_POINTS = 21
"""Number of points of a run's trajectory that enter its principal component analysis."""

REACH = {"log_scale": 2.0, "bias": 10.0}
"""Range of the slice to either side of a trained scalar of the loss."""

DPI = 300

ARMS: Any = cycler(color=[LIGHT["arm-1"], LIGHT["arm-2"]])
"""Line colors, in order."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class View:
    """One or two directions of a landscape.

    Attributes:
        axes: The directions in parameter space.
        spans: The range of the steps along each direction, 0 being the run.
        labels: The name of each direction.
        origin: The coordinate of the run on each axis of the figure.
        path: The coordinates of the run's trajectory, if drawn.
    """

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
    """Write the figure (png, svg) and the grid (parquet) of a loss landscape to RUN_DIR/landscape; return their paths.

    The run is trained again from its seed. The objective is the mean loss over fixed batches of the (first) run's
    training data.

    Args:
        run_dir: The run directory.
        run: The id of the run; None means the first run of the test.
        to: The id of a second run of the same arm; then loss and recall are computed along the straight line between
            the two runs instead.
        kind: The kind of directions, a key of `VIEWS`.
        points: The number of points per axis.
        span: The range of the steps along each direction; None means that of the kind.
        step: The training step of the landscape; None means the last.
        progress: Called with the finished and the total number of training steps.

    Raises:
        InputError: For an invalid run, kind or number, or if the files cannot be written.
    """
    if kind not in VIEWS:
        raise InputError(f"--kind: unknown kind {kind!r}{nearest(kind, VIEWS)}")
    if points < 2:
        raise InputError(f"--points: got {points}; allowed: a whole number of at least 2")
    keep = _path_steps if kind == "pca" and not to else ()
    first = replay_run(run_dir, run, step=step, keep=keep, progress=progress)
    at = f"-step-{first.step}" if first.step < first.study.train.steps else ""
    with reproducible_arithmetic(), styled(), mpl.rc_context({"axes.prop_cycle": ARMS}):
        if to:
            second = replay_run(run_dir, to, step=step, progress=progress)
            name, (table, figure) = f"{first.run.id}-{second.run.id}-connectivity", _line_between(first, second, points)
        else:
            name, (table, figure) = f"{first.run.id}-{kind}", _slice(first, VIEWS[kind](first), points, span)
    return _write(Path(run_dir) / "landscape", name + at, table, figure)


def _path_steps(first: int, last: int) -> list[int]:
    return sorted({first + round((last - first) * index / (PATH_POINTS - 1)) for index in range(PATH_POINTS)})


def _slice(replay: Replay, view: View, points: int, span: Span | None) -> tuple[pd.DataFrame, Figure]:
    spans = (span,) * len(view.axes) if span else view.spans
    title, value = _title(replay), _value(replay)
    if len(view.axes) == 1:
        line = landscape.slice1d(
            replay.objective, replay.params, view.axes[0], spans[0], points, batches=replay.batches
        )
        table = line.table().assign(first=lambda rows: rows["first"] + view.origin[0])
        center = CenterMarker(view.origin[:1], line.center, (line.curvature,))
        return table, line_figure(table, view.labels[0], value, title, center)
    plane = landscape.slice2d(replay.objective, replay.params, view.axes, spans, points, batches=replay.batches)
    table = plane.table().assign(
        first=lambda rows: rows["first"] + view.origin[0], second=lambda rows: rows["second"] + view.origin[1]
    )
    center = CenterMarker(view.origin, plane.center, tuple(plane.curvature.diagonal().tolist()))
    return table, plane_figure(table, (view.labels[0], view.labels[1]), value, title, center, view.path)


def _line_between(first: Replay, second: Replay, points: int) -> tuple[pd.DataFrame, Figure]:
    """Return loss and recall on the line between two runs of one arm, on the first run's batches."""
    if first.run.arm != second.run.arm:
        raise InputError(
            f"--second-run: run {second.run.id} is of arm {second.run.arm!r}; allowed: {first.run.arm!r}, as --run"
        )
    endpoints = first.params, second.params
    losses = landscape.connectivity(first.objective, *endpoints, points, batches=first.batches)
    errors = landscape.connectivity(first.recall_error, *endpoints, points)
    rule = "stable" if errors.stable else "not stable"
    note = (
        f"barrier of the loss {losses.barrier:.3g}\n"
        f"instability of 1 - recall: {100 * errors.instability:.2g}%, {rule} (rule: below 2%)"
    )
    seeds = f"{_title(first)}\nto {_cell(second)}"
    columns = {"first": losses.table()["first"], "loss": losses.values, "recall_error": errors.values}
    figure = connectivity_figure(losses.table(), errors.table(), _value(first), seeds, note)
    return pd.DataFrame(columns), figure


# --- directions ------------------------------------------------------------------------------------------------------


def _filters(replay: Replay) -> View:
    axes = landscape.directions(replay.params, "filter", block=replay.trained)
    labels = tuple(f"random direction {index} (filter norms)" for index in (1, 2))
    return View(axes, ((-1.0, 1.0),) * 2, labels)


def _eigenvectors(replay: Replay) -> View:
    """Span the steps at which the second-order model doubles the loss, but at most the norm of the parameters."""
    params, towers = replay.params, {name for name in replay.trained if in_towers(name)}
    axes = landscape.directions(
        params, "eigen", objective=replay.objective, batches=replay.batches, block=towers, chunk_size=1
    )
    size = math.sqrt(sum(float(params[name].square().sum()) for name in towers))
    lines = [
        landscape.slice1d(replay.objective, params, axis, points=2, batches=replay.batches, chunk_size=2)
        for axis in axes
    ]
    reach = [min(size, math.sqrt(2 * abs(line.center) / max(abs(line.curvature), 1e-12))) for line in lines]
    labels = tuple(f"eigenvector {index} of the towers (unit steps)" for index in (1, 2))
    return View(axes, tuple((-far, far) if math.isfinite(far) else (-1.0, 1.0) for far in reach), labels)


def _trajectory(replay: Replay) -> View:
    """Span the trajectory and a sixth of its width beyond each end."""
    points = list(replay.path.values())
    axes = landscape.directions(replay.params, "pca", trajectory=points)
    shares = landscape.explained_shares(points, axes).tolist()
    path = landscape.coordinates(replay.params, axes, points)
    low, high = path.amin(0), path.amax(0)
    margin = torch.where(high > low, (high - low) / 6, 1.0)
    spans = tuple(zip((low - margin).tolist(), (high + margin).tolist(), strict=True))
    labels = tuple(
        f"principal direction {index} ({100 * share:.0f}% of the path)" for index, share in enumerate(shares, start=1)
    )
    return View(axes, spans, labels, path=path.numpy())


def _scalars(replay: Replay) -> View:
    names = [name for name, value in replay.params.items() if not in_towers(name) and value.dim() == 0][:2]
    if not names:
        raise InputError(f"--kind scalars: arm {replay.run.arm!r} has no trained scalars; allowed: filter, eigen, pca")
    axes = landscape.directions(replay.params, "scalars", len(names), block=names)
    values = tuple(float(replay.params[name]) for name in names)
    short = [name.removeprefix("loss.") for name in names]
    measure_labels = {measure.name: measure.label for measure in STEP_MEASURES}
    reach = [REACH.get(name, max(1.0, abs(value))) for name, value in zip(short, values, strict=True)]
    labels = tuple(measure_labels.get(name, name) for name in short)
    return View(axes, tuple((-far, far) for far in reach), labels, origin=values)


VIEWS: Mapping[str, Callable[[Replay], View]] = {
    "filter": _filters,
    "eigen": _eigenvectors,
    "pca": _trajectory,
    "scalars": _scalars,
}
"""The views of a run, by kind of direction."""


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
    for kind, settings in options.items():
        file = io.BytesIO()
        with styled():
            figure.savefig(file, format=kind, facecolor=LIGHT["page"], **settings)
        files[kind] = file.getvalue()
    write_files(folder, {f"{name}.{kind}": content for kind, content in files.items()}, "the landscape")
    return {kind: folder / f"{name}.{kind}" for kind in ("png", "svg", "parquet")}
