"""Replay of a run from its seed: its parameters at any step without a checkpoint, checked against stored measures."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from stability.datasets import Pairs
from stability.grid import Group, Run
from stability.losses import loss, reserved_of
from stability.probes import Batch, HeldOut, Params, probe
from stability.probes.downstream import recall_error
from stability.registry import InputError, nearest
from stability.study import Study
from stability.train.model import ModelSpec
from stability.train.population import Population
from stability.train.probe_runner import probe_batches
from stability.train.trainer import Parents, Trainer

CUDA_TOLERANCE = 1e-3
"""Largest relative difference between a stored loss and a replayed one on a GPU, whose sums have no fixed order."""


@dataclass(frozen=True, eq=False)
class Replay:
    """A run at one step, before the update, with everything that a landscape or a spectrum needs.

    Attributes:
        study: the study.
        run: the run.
        step: the step.
        params: parameters of towers and loss (``image.*``, ``text.*``, ``loss.*``).
        path: the parameters at the earlier steps to keep.
        spec: what all replicas of the group share.
        batches: M fixed batches of the run's training data (M, B, ...), those of the probe ``curvature``.
        held_out: the held-out pairs.
    """

    study: Study
    run: Run
    step: int
    params: Params
    path: Mapping[int, Params]
    spec: ModelSpec
    batches: Batch
    held_out: HeldOut

    @property
    def trained(self) -> frozenset[str]:
        """The names of the trained parameters."""
        return frozenset(self.params) - self.spec.frozen

    def objective(self, params: Params, batch: Batch) -> Tensor:
        """Return the training loss of *params* on one batch."""
        return self.spec.objective(params, batch)

    def recall_error(self, params: Params) -> Tensor:
        """Return 1 - recall@1 among held-out pairs, the mean of both directions: an error rate in [0, 1]."""
        image = self.spec.embed_image(params, self.held_out.image)
        text = self.spec.embed_text(params, self.held_out.text)
        return recall_error(image, text, self.held_out.caption)


def replay(
    study: Study,
    group: Group,
    run: Run,
    *,
    pairs: Pairs | None = None,
    step: int | None = None,
    keep: Collection[int] = (),
    stored: pd.DataFrame | None = None,
    saved: Params | None = None,
    device: torch.device | None = None,
    progress: Callable[[int], None] = lambda step: None,
) -> Replay:
    """Train *group* again up to a step and return one of its runs at that step.

    The whole group is trained, so that every sum has its original order.

    Args:
        study: the study.
        group: the group of the run.
        run: the run.
        pairs: the study's data; None: load them.
        step: the step to stop at, before its update; None: the end of training.
        keep: earlier steps at which parameters are kept as well.
        stored: the rows of the run's group file. Every measure of every step is compared with them: bit for bit on a
            CPU, only the loss and to `CUDA_TOLERANCE` on a GPU.
        saved: the run's final parameters, if available. Then nothing is trained, unless *keep* or a loss with a state
            requires it.
        device: the device; None: the CPU.
        progress: called with each step.

    Raises:
        InputError: if a measure differs, the group does not hold the run, or the study does not reach the step.
    """
    last = study.train.steps if step is None else step
    first = study.first_step(run.arm, run.batch_size)
    for requested in (last, *keep):
        if not first <= requested <= last <= study.train.steps:
            of = "the run" if first else "the study"
            raise InputError(f"step is {requested}; allowed: {first} to {study.train.steps}, the steps of {of}")
    ids = [member.id for member in group.runs]
    if run.id not in ids:
        raise InputError(f"group {group.id}: holds no run {run.id!r}{nearest(run.id, ids)}")
    index = ids.index(run.id)
    device = device or torch.device("cpu")
    stateful = "state" in reserved_of(loss[study.arm(run.arm, run.options).loss])
    untrained = saved is not None and not keep and not stateful
    parents = Parents(progress=progress, trained=not untrained)
    trainer = Trainer(study, group, pairs or study.pairs(), device, parents=parents)
    population = trainer.population
    if untrained and saved is not None:
        with torch.no_grad():
            population.theta[index] = population.spec.layout.flatten(saved).to(device)
        trainer.move_to(last)
    path: dict[int, Params] = {}
    logged: list[dict[str, Tensor]] = []
    for now in range(population.step, last + 1):
        if now in keep:
            path[now] = _params(population, index)
        if now < last:
            logged.append({name: values[index] for name, values in trainer.step().items()})
        progress(now)
    if stored is not None:
        _compare(run, logged, stored, device, first)
    return Replay(
        study=study,
        run=run,
        step=last,
        params=_params(population, index),
        path=path,
        spec=population.spec,
        batches=_fixed_batches(study, population, index),
        held_out=population.held_out,
    )


def _params(population: Population, index: int) -> Params:
    return population.spec.layout.unflatten_contiguous(population.evaluated[index].detach().clone())


def _fixed_batches(study: Study, population: Population, index: int) -> Batch:
    """Return the batches (M, B, ...) of the probe ``curvature``, in the number that the study sets."""
    schedule, variant = study.probes.get("curvature"), probe["curvature"]
    count = (schedule.options if schedule else {}).get("batches", variant.options["batches"].default)
    return pytree.tree_map(lambda value: value[0], probe_batches(population, "curvature", count, [index]))


def _compare(
    run: Run, logged: list[dict[str, Tensor]], stored: pd.DataFrame, device: torch.device, first_step: int
) -> None:
    """Raise `InputError` at the first step at which a measure of training differs from the stored one."""
    rows = stored[stored["run"] == run.id].set_index("step")
    for name in logged[0] if logged else ():
        ours = torch.stack([measures[name] for measures in logged]).cpu().float()
        theirs = torch.tensor(
            rows[name].reindex(range(first_step, first_step + len(logged))).to_numpy("float32", copy=True)
        )
        both_nan = ours.isnan() & theirs.isnan()
        if device.type == "cpu":
            same = (ours == theirs) | both_nan
        elif name == "loss":
            same = torch.isclose(ours, theirs, rtol=CUDA_TOLERANCE, atol=0) | both_nan
        else:
            continue
        if not same.all():
            first = int((~same).int().argmax())
            raise InputError(
                f"run {run.id}: the replay differs from what is stored: {name} at step {first_step + first} is "
                f"{ours[first]:.9g}, stored is {theirs[first]:.9g}; was the run directory edited, or written by "
                "other code?"
            )
