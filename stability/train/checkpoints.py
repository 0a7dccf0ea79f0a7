"""Checkpoints: runs in mid-training, in memory and as safetensors files, from which other runs start."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from stability.store import write_atomically
from stability.study import optimizer_of
from stability.train.population import Population

BUFFER = "buffer."

BY_ROW = ("theta", "averaged", "counts", "loss_scale", "alive", "norms", "generators")
"""The attributes of a checkpoint with one row per run, besides the buffers."""


@dataclass(frozen=True)
class Checkpoint:
    """Runs of one arm and batch size before the update of one step: all that other runs may take over. On the CPU.

    Attributes:
        runs: their ids.
        step: the step.
        theta: parameters (R, P).
        averaged: the parameters that probes measure, if the optimizer has others than those it trains, (R, P); else
            (R, 0).
        scalars: position of each scalar of the loss among the P numbers, by name; those before the first of them, or
            before the padding, are the towers.
        buffers: the optimizer's buffers by name, each (R, width).
        optimizer_steps: steps that these include.
        counts: the same for each run, without the steps that it skipped, (R,).
        loss_scale: in float16 each run's loss scale and the steps since it changed, (R, 2); else (R, 0).
        alive: whether loss and gradient have been finite, (R,).
        norms: recent norms of the gradient (R, window), for clipping at a quantile.
        norms_seen: number of steps recorded there.
        generators: states of the random streams of fresh corruption, uint8 (R, bytes); (R, 0) without it.
    """

    runs: tuple[str, ...]
    step: int
    theta: Tensor
    averaged: Tensor
    scalars: Mapping[str, int]
    buffers: Mapping[str, Tensor]
    optimizer_steps: int
    counts: Tensor
    loss_scale: Tensor
    alive: Tensor
    norms: Tensor
    norms_seen: int
    generators: Tensor

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name, each with one row per run."""
        buffers = {f"{BUFFER}{name}": value for name, value in self.buffers.items()}
        return {**{name: getattr(self, name) for name in BY_ROW}, **buffers}

    def with_rows(self, runs: Sequence[str], tensors: Mapping[str, Tensor]) -> Checkpoint:
        """Return the checkpoint with other runs and their rows of `tensors`."""
        buffers = {name.removeprefix(BUFFER): value for name, value in tensors.items() if name.startswith(BUFFER)}
        by_row: dict[str, Any] = {name: tensors[name] for name in BY_ROW}
        return replace(self, runs=tuple(runs), buffers=buffers, **by_row)


def checkpoint_of(population: Population, runs: int) -> Checkpoint:
    """Return a checkpoint of the first *runs* replicas of a population."""
    layout, clipper = population.spec.layout, population.clipper
    states = [generator.get_state() for generator in population.generators[:runs]] if population.data.fresh else []

    def copied(value: Tensor) -> Tensor:
        return value[:runs].detach().cpu().clone()

    state, scaling = population.optimizer, population.loss_scale
    averages = optimizer_of(population.study.train)[0].traits.evaluated is not None
    none = torch.empty(runs, 0)
    return Checkpoint(
        runs=tuple(run.id for run in population.runs[:runs]),
        step=population.step,
        theta=copied(population.theta),
        averaged=copied(population.evaluated) if averages else none,
        counts=copied(state.count.flatten().expand(len(population.runs))),
        loss_scale=none if scaling is None else copied(torch.stack([scaling.scale, scaling.steps], -1)),
        scalars={name: layout.starts[f"loss.{name}"] for name in population.spec.loss.scalars},
        buffers={name: copied(value) for name, value in population.optimizer.buffers.items()},
        optimizer_steps=population.optimizer.steps,
        alive=copied(population.alive),
        norms=copied(clipper.recent),
        norms_seen=int(clipper.seen),
        generators=torch.stack(states) if states else torch.empty(runs, 0, dtype=torch.uint8),
    )


def checkpoints_folder(run_dir: Path) -> Path:
    """Return the folder of the checkpoints of a run directory."""
    return run_dir / "checkpoints"


def remove_checkpoints(run_dir: Path) -> None:
    """Remove all checkpoints: a run that needs one that is gone trains its parent up to there again."""
    shutil.rmtree(checkpoints_folder(run_dir), ignore_errors=True)


def checkpoint_path(folder: Path, group_id: str, step: int) -> Path:
    """Return the path of the checkpoint of a group at a step."""
    return folder / f"{group_id}-{step}.safetensors"


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; equal checkpoints give equal bytes.

    The file's metadata is one entry, because the order of several entries is not fixed.
    """
    facts = {
        "runs": list(checkpoint.runs),
        "step": checkpoint.step,
        "scalars": dict(checkpoint.scalars),
        "optimizer_steps": checkpoint.optimizer_steps,
        "norms_seen": checkpoint.norms_seen,
    }
    tensors = {name: value.contiguous() for name, value in checkpoint.tensors.items()}
    facts["sha256"] = _digest(facts, tensors)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, save(tensors, {"checkpoint": json.dumps(facts)}))


def read_checkpoint(folder: Path, runs: Sequence[str], step: int) -> tuple[Checkpoint | None, tuple[str, ...]]:
    """Return a checkpoint of *runs* at a step from the files of a folder that have them.

    Args:
        folder: the folder, which need not exist.
        runs: the ids of the runs, in the order of the result.
        step: the step.

    Returns:
        The checkpoint, None unless every run is there; and a sentence on each damaged file, which counts as missing.
    """
    rows: dict[str, tuple[Checkpoint, int]] = {}
    notes = []
    for path in sorted(folder.glob(f"*-{step}.safetensors")):
        try:
            part = _read(path)
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            notes.append(f"{path}: damaged ({error}); the steps before the switch are trained again")
            continue
        rows |= {run: (part, index) for index, run in enumerate(part.runs)}
    if not set(runs) <= rows.keys():
        return None, tuple(notes)
    parts = [rows[run] for run in runs]
    first = parts[0][0]
    tensors = {name: torch.stack([part.tensors[name][index] for part, index in parts]) for name in first.tensors}
    return first.with_rows(runs, tensors), tuple(notes)


def _read(path: Path) -> Checkpoint:
    with safe_open(path, framework="pt") as file:
        facts = json.loads((file.metadata() or {})["checkpoint"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    if _digest({key: value for key, value in facts.items() if key != "sha256"}, tensors) != facts["sha256"]:
        raise ValueError("its content does not have the checksum written with it")
    return Checkpoint(
        runs=tuple(facts["runs"]),
        step=facts["step"],
        scalars=facts["scalars"],
        buffers={name.removeprefix(BUFFER): value for name, value in tensors.items() if name.startswith(BUFFER)},
        optimizer_steps=facts["optimizer_steps"],
        norms_seen=facts["norms_seen"],
        **{name: tensors[name] for name in BY_ROW},
    )


def _digest(facts: Mapping[str, object], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
