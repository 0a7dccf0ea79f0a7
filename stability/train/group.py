"""One group trained to its end, its measurements written on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stability.datasets import Pairs
from stability.grid import Group
from stability.store import GroupLog, group_log, write_parameters
from stability.study import Study
from stability.train.probing import ProbeResult
from stability.train.trainer import Trainer

LOG_EVERY = 50
"""Steps between two writes of the log; measures stay on the device until then."""


def train_group(
    study: Study,
    group: Group,
    pairs: Pairs,
    path: Path,
    device: torch.device,
    progress: Callable[[int], None],
    params_path: Path | None = None,
) -> tuple[str, ...]:
    """Train all runs of *group* and write their measurements.

    The row of step s holds what was measured before update s; the row of the last step + 1 holds the probes after
    the end.

    Args:
        study: the study as the group trains it.
        group: runs of one arm and batch size.
        pairs: the study's data.
        path: where the measurements are written.
        device: where the group trains.
        progress: is called with the steps done.
        params_path: where the parameters after the last step are written, if anywhere.

    Returns:
        What the user should know of how it went, a sentence each.
    """
    trainer = Trainer(study, group, pairs, device)
    due = {name: study.due(name) for name in study.probes}
    with group_log(path, [run.id for run in group.runs], study.measures) as log:
        pending: list[Tensor] = []
        for step in range(study.train.steps + 1):
            readings = [trainer.read(name) for name, steps in due.items() if step in steps]
            if readings or len(pending) == LOG_EVERY:
                _write(log, step, trainer.measures, pending, [])
                pending = []
            if step < study.train.steps:
                pending.append(trainer.advance())
            if readings:
                _write(log, step + 1, trainer.measures, pending, readings, rows=1)
                pending = []
            progress(step)
        _write(log, study.train.steps, trainer.measures, pending, [])
        if params_path is not None:
            final = trainer.population.theta[: len(group.runs)]
            write_parameters(params_path, log.runs, trainer.population.plan.layout.unflatten(final))
        log.finish()
    return trainer.notes


def _write(
    log: GroupLog, end: int, names: tuple[str, ...], pending: list[Tensor], readings: list[ProbeResult], rows: int = 0
) -> None:
    """Write the rows of the steps before *end*: the steps' measures, and the readings of the (then single) step.

    Args:
        log: where rows are written.
        end: the step after the last row.
        names: of the measures of a step.
        pending: the measures (M, R) of each step.
        readings: what probes measured at the one step.
        rows: the number of rows; 0: as many as steps are pending.
    """
    rows = rows or len(pending)
    if not rows:
        return
    width = len(log.runs)
    columns: dict[str, object] = {}
    if pending:
        columns |= dict(zip(names, torch.stack(pending, 1)[:, :, :width].cpu().numpy(), strict=True))
    for reading in readings:
        kept = [replica for replica in reading.replicas if replica < width]
        for name, values in reading.values.items():
            if values.dim() > 1:
                lists: list[list[float] | None] = [None] * width
                for replica, row in zip(kept, values.cpu().tolist(), strict=False):
                    lists[replica] = row
                columns[name] = [lists]
            else:
                row = np.full((1, width), np.nan, np.float32)
                row[0, kept] = values[: len(kept)].cpu().numpy()
                columns[name] = row
    log.write(np.arange(end - rows, end), columns)
