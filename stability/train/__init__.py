"""Training: one group of runs, as one population with a leading replica axis, measured by probes on the way."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from stability.datasets import Pairs
from stability.grid import Group, Run
from stability.probes import HeldOut, probe
from stability.store import GroupLog, group_log, write_parameters
from stability.streams import stream
from stability.study import Study
from stability.train.divergence import diverged_at
from stability.train.features import Features, kept_features
from stability.train.feed import Feed, batch_indices, duplicate_share, feed_of, identity
from stability.train.forking import CHILDREN, forked, order_of
from stability.train.gradient import room_for, slopes
from stability.train.optimizer import Block, Clip, Moments, blocks_of, norms, schedule, take_step
from stability.train.population import Blueprint, blueprint, initial_parameters
from stability.train.probing import Reading, Snapshot, asked_of, held_out, places_of, read

__all__ = [
    "Population",
    "Replay",
    "Timing",
    "Trainer",
    "diverged_at",
    "population_of",
    "replay",
    "time_group",
    "train_group",
    "train_step",
]

BLOCK = 50
"""Steps between two writes of the log; metrics stay on the device until then."""


@dataclass
class Population:
    """The replicas of one group while they train. R is at least 2: a single run is trained twice and read once."""

    study: Study
    runs: Sequence[Run]
    plan: Blueprint
    feed: Feed
    held: HeldOut
    theta: Tensor
    moments: Moments
    blocks: Sequence[Block]
    clip: Clip
    alive: Tensor
    salt: Tensor
    generators: Sequence[torch.Generator]
    draws: Mapping[int | str, torch.Generator]
    features: Mapping[str, Features]
    state: dict[str, Tensor]
    step: int = 0
    scalars: tuple[str, ...] = field(default=())

    def snapshot(self) -> Snapshot:
        """Return the state for the probes."""
        return Snapshot(self.theta, self.moments, self.state, self.step)


def population_of(study: Study, runs: Sequence[Run], pairs: Pairs, device: torch.device) -> Population:
    """Return the replicas of *runs* (of one arm and batch size) before their first step."""
    plan = blueprint(study, runs[0].arm, runs[0].batch_size, pairs, runs[0].options)
    theta = initial_parameters(study, plan, pairs, [run.luck for run in runs]).to(device)
    feed = feed_of(runs, pairs, study.data.corruption, device)
    for tower in plan.towers.values():
        tower.to(device)  # for their buffers
    odd = torch.randint(-(2**62), 2**62, (feed.text.shape[-1],), generator=stream(0, "identity")) * 2 + 1
    return Population(
        study=study,
        runs=runs,
        plan=plan,
        feed=feed,
        held=held_out(pairs, device),
        theta=theta,
        moments=Moments.zeros_like(theta),
        blocks=blocks_of(
            (size, _decay(study, plan, name), _multiplier(study, plan, name))
            for name, size in plan.layout.sizes.items()
        ),
        clip=Clip.of(study.train, len(runs), device),
        alive=torch.ones(len(runs), dtype=torch.bool, device=device),
        salt=odd.to(device),
        generators=feed.generators("train"),
        draws={run.luck: stream(run.luck, "loss") for run in runs},
        features=kept_features(study, plan, theta, feed, pairs),
        state={
            name: value.expand(len(runs), *value.shape).clone().to(device)
            for name, value in plan.loss.initial_state(feed.available).items()
        },
        scalars=tuple(plan.initial_scalars),
    )


def _decay(study: Study, plan: Blueprint, name: str) -> float:
    """Return the weight decay of a parameter: the study's for matrices that are trained."""
    return study.train.weight_decay if len(plan.layout.shapes[name]) > 1 and name not in plan.fixed else 0.0


def _multiplier(study: Study, plan: Blueprint, name: str) -> float:
    """Return the factor on the learning rate of a parameter: the study's and the loss's own for trained scalars."""
    scalar = plan.loss.scalars.get(name.removeprefix("loss."))
    return study.train.scalar_lr * scalar.lr if name.startswith("loss.") and scalar else 1.0


def train_step(population: Population, index: Tensor) -> dict[str, Tensor]:
    """Take one step on the pairs at *index* (R, B) and return the step's measures, each (R,).

    A replica whose loss or gradient is not finite keeps its parameters from then on and logs NaN; no other replica
    notices, since nothing in the step reduces over replicas.
    """
    plan, train = population.plan, population.study.train
    features = {name: kept.rows(index) for name, kept in population.features.items()}
    # Texts are looked at for duplicates as well.
    batch = population.feed.batch(index, population.generators, without=features.keys() - {"text"})
    draws, state = population.draws, population.state
    asked = asked_of(plan, population.runs, draws, state, population.step, index.shape[1:-1], index.device)
    with torch.no_grad():
        gradient = room_for(population.theta)
        params = plan.layout.unflatten(population.theta)
        losses, state = slopes(plan, params, batch | asked, plan.layout.unflatten(gradient), features)
        norm = torch.linalg.vector_norm(gradient, dim=-1)
        population.alive &= torch.isfinite(losses) & torch.isfinite(norm)
        dead = ~population.alive
        # Nobody waits for a GPU to tell whether a replica has died.
        some_dead = dead.is_cuda or bool(dead.any())
        if some_dead:
            gradient.masked_fill_(dead[:, None], 0.0)
        gradient, clipped = population.clip(gradient, torch.where(dead, 1.0, norm))
        measures = {
            "loss": losses,
            "gradient_norm": norm,
            "clipped": clipped,
            **{name: params[f"loss.{name}"].clone() for name in population.scalars if name in ("log_scale", "bias")},
        }
        rates = [run.lr * schedule(train, population.step) for run in population.runs]
        measures |= take_step(
            population.theta,
            gradient,
            population.moments,
            rates,
            population.blocks,
            train,
            sizes=lambda taken: norms(taken) | {"update_rms": plan.rms_of_matrices(taken)},
            frozen=dead if some_dead else None,
        )
        population.state = state
        for name in plan.reprojected:
            rows = plan.layout.unflatten(population.theta)[name]
            rows.copy_(normalize(rows, dim=-1))
        if some_dead:
            measures = {name: torch.where(dead, torch.nan, value) for name, value in measures.items()}
        measures["learning_rate"] = torch.tensor(rates, device=losses.device)
        measures["duplicate_share"] = duplicate_share(identity(batch["text"], population.salt))
    population.step += 1
    return measures


class Trainer:
    """One group on its way: a resource that owns the population and the streams of its batches."""

    def __init__(self, study: Study, group: Group, pairs: Pairs, device: torch.device) -> None:
        runs = group.runs if len(group.runs) > 1 else group.runs * 2
        self.study, self.device = study.trained_as(group.arm, group.batch_size), device
        self.population = population_of(self.study, runs, pairs, device)
        self.streams = self._batches(runs, "batches")

    def _batches(self, runs: Sequence[Run], use: str) -> dict[int | str, Iterator[Tensor]]:
        available = self.population.feed.available
        return {run.luck: batch_indices(run.luck, available, run.batch_size, use) for run in runs}

    def step(self) -> dict[str, Tensor]:
        """Train one step on the next batches and return the step's measures."""
        drawn = {luck: next(indices) for luck, indices in self.streams.items()}
        return train_step(
            self.population, torch.stack([drawn[run.luck] for run in self.population.runs]).to(self.device)
        )

    def read(self, name: str, children: Sequence[Tensor] | None = None) -> Reading:
        """Return what a probe measures now; *children* stand in for those that it asks for, which train here (None)."""
        population = self.population
        if not probe[name].traits.get("forks"):
            children = ()
        elif children is None:
            children = self.children(places_of(self.study, name, population.runs))
        parts = population.plan, population.feed, population.held, population.snapshot()
        return read(name, self.study, *parts, children)

    def children(self, places: Sequence[int]) -> list[Tensor]:
        """Return the parameters (R, P) at the end of training of two copies of the replicas at *places*.

        The copies part here: each reads the data in an order of its own from now on, and all else goes on as in the
        replica itself, which does not notice. NaN for other replicas, and for a copy that did not stay finite.
        """
        return [self._end_of(child, places) for child in range(CHILDREN)]

    def _end_of(self, child: int, places: Sequence[int]) -> Tensor:
        population = self.population
        ends = torch.full_like(population.theta, torch.nan)
        if not places:
            return ends
        twin, use = copy.copy(self), order_of(population.step, child)
        # One replica alone would take other kernels than two.
        twin.population = forked(population, places if len(places) > 1 else [*places, *places])
        twin.streams = self._batches(twin.population.runs, use)
        for _ in range(population.step, self.study.train.steps):
            twin.step()
        grown = torch.where(twin.population.alive[:, None], twin.population.theta, torch.nan)
        ends[torch.tensor(places, device=self.device)] = grown[: len(places)]
        return ends


def train_group(
    study: Study,
    group: Group,
    pairs: Pairs,
    path: Path,
    device: torch.device,
    progress: Callable[[int], None],
    params_path: Path | None = None,
) -> None:
    """Train all runs of *group* and write their measurements to *path*; *progress* is told the steps done.

    Where *params_path* is given, the parameters after the last step are written there.

    The row of step s holds what was measured before update s; the row of the last step + 1 holds the probes after
    the end.
    """
    trainer = Trainer(study, group, pairs, device)
    due = {name: study.due(name) for name in study.probes}
    with group_log(path, [run.id for run in group.runs], study.measures) as log:
        pending: list[dict[str, Tensor]] = []
        for step in range(study.train.steps + 1):
            readings = [trainer.read(name) for name, steps in due.items() if step in steps]
            measures = trainer.step() if step < study.train.steps else {}
            if readings or len(pending) == BLOCK:
                _write(log, step, pending, [])
                pending = []
            if readings:
                _write(log, step + 1, [measures], readings)
            elif measures:
                pending.append(measures)
            progress(step)
        _write(log, study.train.steps, pending, [])
        if params_path is not None:
            final = trainer.population.theta[: len(group.runs)]
            write_parameters(params_path, log.runs, trainer.population.plan.layout.unflatten(final))
        log.finish()


def _write(log: GroupLog, end: int, pending: list[dict[str, Tensor]], readings: list[Reading]) -> None:
    """Write the rows of the steps before *end*: the step measures, and what probes read at the (then single) step."""
    if not pending:
        return
    width = len(log.runs)
    columns: dict[str, object] = {
        name: torch.stack([measures[name][:width] for measures in pending]).cpu().numpy() for name in pending[0]
    }
    for reading in readings:
        kept = [place for place in reading.replicas if place < width]
        for name, values in reading.values.items():
            if values.dim() > 1:
                rows: list[list[float] | None] = [None] * width
                for place, row in zip(kept, values.cpu().tolist(), strict=False):
                    rows[place] = row
                columns[name] = [rows]
            else:
                row = np.full((1, width), np.nan, np.float32)
                row[0, kept] = values[: len(kept)].cpu().numpy()
                columns[name] = row
    log.write(np.arange(end - len(pending), end), columns)


# They train with what is above.
from stability.train.replaying import Replay, replay  # noqa: E402
from stability.train.timing import Timing, time_group  # noqa: E402
