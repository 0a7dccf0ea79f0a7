"""Training of one group to the end, with measurements written as it proceeds."""

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
from stability.train.checkpoints import checkpoint_of, checkpoint_path, write_checkpoint
from stability.train.probe_runner import ProbeResult
from stability.train.trainer import Parents, Trainer

LOG_EVERY = 50
"""Number of steps between two writes of the log; until then measures stay on the device."""


def train_group(
    study: Study,
    group: Group,
    pairs: Pairs,
    path: Path,
    device: torch.device,
    progress: Callable[[int], None],
    params_path: Path | None = None,
    checkpoints: Path | None = None,
) -> tuple[str, ...]:
    """Train all runs of *group* and write their measurements.

    The row of step s holds the measurements before update s; the row after the last step holds the probes at the end
    of training. Runs that start from others have rows from the step of the switch on.

    Args:
        study: the study with the settings of this group's arm and batch size.
        group: runs of one arm and batch size.
        pairs: the study's data.
        path: file for the measurements.
        device: the device to train on.
        progress: called with each step.
        params_path: file for the parameters after the last step, or None.
        checkpoints: folder of the checkpoints from which runs start: those of the parents are read, and those of this
            group's runs written at the steps at which others start from them; None: neither.

    Returns:
        Notes for the user on how the group was trained, one sentence each.
    """
    trainer = Trainer(study, group, pairs, device, parents=Parents(checkpoints, progress))
    start = study.start_of(group.arm, group.batch_size)
    due = {name: study.due(name, start) for name in study.probes}
    switches = study.switches_from(group.arm, group.batch_size) if checkpoints is not None else ()
    with group_log(path, [run.id for run in group.runs], study.measures) as log:
        pending: list[Tensor] = []
        for step in range(trainer.population.step, study.train.steps + 1):
            if checkpoints is not None and step in switches:
                path_of_step = checkpoint_path(checkpoints, group.id, step)
                write_checkpoint(path_of_step, checkpoint_of(trainer.population, len(group.runs)))
            results = [trainer.read(name) for name, steps in due.items() if step in steps]
            if results or len(pending) == LOG_EVERY:
                _write(log, step, trainer.measures, pending, [])
                pending = []
            if step < study.train.steps:
                pending.append(trainer.advance())
            if results:
                _write(log, step + 1, trainer.measures, pending, results, rows=1)
                pending = []
            progress(step)
        _write(log, study.train.steps, trainer.measures, pending, [])
        if params_path is not None:
            final = trainer.population.evaluated[: len(group.runs)]
            write_parameters(params_path, log.runs, trainer.population.spec.layout.unflatten(final))
        log.finish()
    return trainer.notes


def _write(
    log: GroupLog, end: int, names: tuple[str, ...], pending: list[Tensor], results: list[ProbeResult], rows: int = 0
) -> None:
    """Write the rows of the steps before *end*.

    Args:
        log: the log.
        end: the step after the last row.
        names: names of the measures of a step.
        pending: the measures (M, R) of each step.
        results: probe results; then there is a single row.
        rows: number of rows; 0: one for each pending step.
    """
    rows = rows or len(pending)
    if not rows:
        return
    width = len(log.runs)
    columns: dict[str, object] = {}
    if pending:
        columns |= dict(zip(names, torch.stack(pending, 1)[:, :, :width].cpu().numpy(), strict=True))
    for result in results:
        kept = [replica for replica in result.replicas if replica < width]
        for name, values in result.values.items():
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
