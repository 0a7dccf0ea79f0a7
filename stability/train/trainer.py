"""A population: the replicas of one group, trained step by step with a leading replica axis."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from stability.datasets import Pairs
from stability.devices import is_accelerator, to_device
from stability.grid import Group, Run
from stability.probes import HeldOut, probe
from stability.streams import stream
from stability.study import Study
from stability.train.batches import BatchStream
from stability.train.capture import EAGER_STEPS, CapturedStep, Inputs
from stability.train.features import Features, kept_features
from stability.train.feed import PopulationData, false_negative_fraction, identity, population_data, uniform_numbers
from stability.train.forking import CHILDREN, fork_stream, forked
from stability.train.gradient import value_and_grad
from stability.train.optimizer import (
    GradClipper,
    LearningRates,
    OptimizerState,
    ParamGroups,
    apply_update_,
    initial_state,
    update_norm,
)
from stability.train.population import ModelSpec, initial_parameters, model_spec
from stability.train.probing import ProbeResult, Snapshot, held_out, probed_indices, read

SCALARS = ("log_scale", "bias")
"""Scalars of a loss that are measured at every step."""


@dataclass
class Population:
    """The replicas of one group while they train. R is at least 2: a single run is trained twice and read once.

    Attributes:
        study: the study as this arm and batch size train it.
        runs: the run of each replica.
        plan: what all replicas share: towers, loss, layout.
        feed: their training pairs.
        held: the held-out pairs.
        theta: parameters (R, P), padded to whole cache lines.
        grad: where a step writes the gradient, like theta.
        optimizer: the optimizer's state.
        groups: decay and factors on the learning rate, by parameter.
        rates: the learning rate of each replica at each step.
        clipper: gradient clipping.
        alive: replicas whose loss and gradient have been finite, (R,).
        hash_multipliers: of the fingerprints of texts.
        generators: each replica's stream of fresh corruption.
        loss_generators: the streams from which losses draw, by seed.
        features: outputs of frozen parts of towers, by modality.
        state: the loss's state, each tensor (R, ...), updated in place.
        step: steps taken.
    """

    study: Study
    runs: Sequence[Run]
    plan: ModelSpec
    feed: PopulationData
    held: HeldOut
    theta: Tensor
    grad: Tensor
    optimizer: OptimizerState
    groups: ParamGroups
    rates: LearningRates
    clipper: GradClipper
    alive: Tensor
    hash_multipliers: Tensor
    generators: Sequence[torch.Generator]
    loss_generators: Mapping[int | str, torch.Generator]
    features: Mapping[str, Features]
    state: dict[str, Tensor]
    step: int = 0

    def snapshot(self) -> Snapshot:
        """Return the state for the probes."""
        return Snapshot(self.theta, self.optimizer, self.state, self.step)

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of what a step measures, in the order of `train_step`'s rows."""
        scalars = [name for name in SCALARS if name in self.plan.initial_scalars]
        return ("loss", "gradient_norm", "grad_clipped_fraction", *scalars, "update_norm", "update_rms", *UNMASKED)


UNMASKED = ("learning_rate", "false_negative_fraction")
"""Measures that do not depend on whether a replica is alive."""


def population_of(study: Study, runs: Sequence[Run], pairs: Pairs, device: torch.device) -> Population:
    """Return the replicas of *runs* (of one arm and batch size) before their first step."""
    plan = model_spec(study, runs[0].arm, runs[0].batch_size, pairs, runs[0].options)
    theta = initial_parameters(study, plan, pairs, [run.rng_seed for run in runs]).to(device)
    feed = population_data(runs, pairs, study.data.corruption, device)
    for tower in plan.towers.values():
        tower.to(device)  # for their buffers
    odd = torch.randint(-(2**62), 2**62, (feed.text.shape[-1],), generator=stream(0, "identity")) * 2 + 1
    parameters = [
        (size, _decay(study, plan, name), _lr_multiplier(study, plan, name)) for name, size in plan.layout.sizes.items()
    ]
    return Population(
        study=study,
        runs=runs,
        plan=plan,
        feed=feed,
        held=held_out(pairs, device),
        theta=theta,
        grad=torch.zeros_like(theta),
        optimizer=initial_state(study.train, theta),
        groups=ParamGroups.of(parameters, theta),
        rates=LearningRates.of(study.train, [run.lr for run in runs], device),
        clipper=GradClipper.of(study.train, len(runs), device),
        alive=torch.ones(len(runs), dtype=torch.bool, device=device),
        hash_multipliers=odd.to(device),
        generators=feed.generators("train"),
        loss_generators={run.rng_seed: stream(run.rng_seed, "loss") for run in runs},
        features=kept_features(study, plan, theta, feed, pairs),
        state={
            name: value.expand(len(runs), *value.shape).clone().to(device)
            for name, value in plan.loss.initial_state(feed.available).items()
        },
    )


def _decay(study: Study, plan: ModelSpec, name: str) -> float:
    """Return the weight decay of a parameter: the study's for matrices that are trained."""
    return study.train.weight_decay if len(plan.layout.shapes[name]) > 1 and name not in plan.frozen else 0.0


def _lr_multiplier(study: Study, plan: ModelSpec, name: str) -> float:
    """Return the factor on the learning rate of a parameter: the study's and the loss's own for trained scalars."""
    scalar = plan.loss.scalars.get(name.removeprefix("loss."))
    return study.train.scalar_lr_multiplier * scalar.lr if name.startswith("loss.") and scalar else 1.0


def step_inputs(population: Population, index: Tensor, host_index: Tensor) -> Inputs:
    """Return what a step reads that the host provides, as tensors on the device.

    Nothing here waits for the device. *index* (R, B) lies on the device, *host_index* holds the same on the CPU.
    """
    plan, feed, device = population.plan, population.feed, population.theta.device
    inputs = {"index": index, "rate": population.rates.at(population.step)}
    if feed.on_host:
        needed = [name for name in feed_sides(population) if name != "index"]
        batch = feed.batch(host_index, population.generators, without=set(plan.towers) - {*needed})
        inputs |= {name: batch[name] for name in needed}
    for name, kept in population.features.items():
        if kept.on_host:
            inputs[f"features {name}"] = to_device(kept.rows(host_index), device)
    if "step" in plan.loss.reserved:
        inputs["step"] = torch.full((len(population.runs),), population.step, device=device)
    if "uniform" in plan.loss.reserved:
        uniform = uniform_numbers(population.runs, population.loss_generators, torch.Size())
        inputs["uniform"] = to_device(uniform, device)
    return inputs


def feed_sides(population: Population) -> list[str]:
    """Return the modalities whose samples a step reads: those without features, and texts, to compare them."""
    return [name for name in population.plan.towers if name not in population.features or name == "text"]


def train_step(population: Population, inputs: Inputs) -> Tensor:
    """Take one step on the device and return what it measures, a row each of `Population.measures`, (M, R).

    A replica whose loss or gradient is not finite keeps its parameters from then on and logs NaN; no other replica
    notices, since nothing in the step reduces over replicas. Nothing here is read by the host on an accelerator, and
    everything that outlives the step is updated in place, so that it can be recorded once and replayed.
    """
    plan, train = population.plan, population.study.train
    with torch.no_grad():
        batch, features = _batch(population, inputs)
        # Before the update moves them.
        scalars = [
            plan.layout.view(population.theta, f"loss.{name}").clone()
            for name in SCALARS
            if name in plan.initial_scalars
        ]
        losses, state = value_and_grad(plan, population.theta, batch, population.grad, features)
        norm = torch.linalg.vector_norm(population.grad, dim=-1)
        population.alive &= torch.isfinite(losses + norm)
        dead = ~population.alive
        # Whether a replica has died is read on a CPU only: an accelerator would have to be waited for.
        some_dead = is_accelerator(dead.device) or bool(dead.any())
        if some_dead:
            population.grad.masked_fill_(dead[:, None], 0.0)
        clipped = population.clipper(population.grad, torch.where(dead, 1.0, norm))
        update = apply_update_(
            population.theta,
            population.grad,
            population.optimizer,
            inputs["rate"],
            population.groups,
            train,
            measure=lambda update: update_norm(update) | {"update_rms": plan.rms_of_matrices(update)},
            dead=dead if some_dead else None,
        )
        for name, value in state.items():
            population.state[name].copy_(value)
        for name in plan.renormalized:
            rows = plan.layout.view(population.theta, name)
            rows.copy_(normalize(rows, dim=-1))
        duplicates = false_negative_fraction(identity(batch["text"], population.hash_multipliers))
        measures = torch.stack([losses, norm, clipped, *scalars, *update.values(), inputs["rate"], duplicates])
        if some_dead:
            measures[: -len(UNMASKED)].masked_fill_(dead, torch.nan)
    return measures


def _batch(population: Population, inputs: Inputs) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what towers and loss read, and the features of frozen parts; on the device, from the step's inputs."""
    index = inputs["index"]
    features = {
        name: inputs[f"features {name}"] if kept.on_host and f"features {name}" in inputs else kept.rows(index)
        for name, kept in population.features.items()
    }
    batch: dict[str, Any] = {**inputs, "state": population.state}
    if not population.feed.on_host:
        without = set(population.plan.towers) - {*feed_sides(population)}
        batch |= population.feed.batch(index, (), without=without)
    return batch, features


class Trainer:
    """One group in training: it owns the population and the streams of its batches.

    On a GPU the step is recorded as a CUDA graph and replayed, unless *capture* is False.
    """

    def __init__(
        self, study: Study, group: Group, pairs: Pairs, device: torch.device, capture: bool | None = None
    ) -> None:
        runs = group.runs if len(group.runs) > 1 else group.runs * 2
        self.study, self.device = study.trained_as(group.arm, group.batch_size), device
        self._capture = device.type == "cuda" and capture is not False
        self._start(population_of(self.study, runs, pairs, device), "batches")

    def _start(self, population: Population, use: str) -> None:
        self.population = population
        feed, seeds = population.feed, [run.rng_seed for run in population.runs]
        self._batches = BatchStream(seeds, feed.available, feed.batch_size, self.device, use)
        self._captured = CapturedStep(lambda inputs: train_step(population, inputs)) if self._capture else None

    @property
    def captured(self) -> bool:
        """Whether steps are replayed from a CUDA graph."""
        return self._captured is not None and self._captured.captured

    @property
    def warmup_steps(self) -> int:
        """Steps after which all others take the same time."""
        return EAGER_STEPS + 1 if self._captured is not None else 1

    @property
    def notes(self) -> tuple[str, ...]:
        """Why steps are not replayed from a CUDA graph, if they were to be."""
        return (self._captured.note,) if self._captured is not None and self._captured.note else ()

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of what a step measures, in the order of the rows of `advance`."""
        return self.population.measures

    def inputs(self) -> Inputs:
        """Go on to the next batches and return what the host provides for a step on them."""
        self._batches.advance()
        return step_inputs(self.population, self._batches.index(), self._batches.host_index())

    def advance(self) -> Tensor:
        """Train one step on the next batches and return its measures, (M, R), on the device."""
        inputs = self.inputs()
        step = self._captured or (lambda inputs: train_step(self.population, inputs))
        measures = step(inputs)
        self.population.step += 1
        self.population.optimizer.steps = self.population.step
        return measures

    def step(self) -> dict[str, Tensor]:
        """Train one step on the next batches and return its measures by name, each (R,)."""
        return dict(zip(self.measures, self.advance(), strict=True))

    def read(self, name: str, children: Sequence[Tensor] | None = None) -> ProbeResult:
        """Return what a probe measures now; *children* stand in for those that it asks for, which train here (None)."""
        population = self.population
        if not probe[name].traits.get("forks"):
            children = ()
        elif children is None:
            children = self.children(probed_indices(self.study, name, population.runs))
        parts = population.plan, population.feed, population.held, population.snapshot()
        return read(name, self.study, *parts, children)

    def children(self, replicas: Sequence[int]) -> list[Tensor]:
        """Return the parameters (R, P) at the end of training of two copies of some replicas, by their indices.

        The copies part here: each reads the data in an order of its own from now on, and all else goes on as in the
        replica itself, which does not notice. NaN for other replicas, and for a copy that did not stay finite.
        """
        return [self._end_of(child, replicas) for child in range(CHILDREN)]

    def _end_of(self, child: int, replicas: Sequence[int]) -> Tensor:
        population = self.population
        ends = torch.full_like(population.theta, torch.nan)
        if not replicas:
            return ends
        fork = copy.copy(self)
        # One replica alone would take other kernels than two.
        fork._start(
            forked(population, replicas if len(replicas) > 1 else [*replicas, *replicas]),
            fork_stream(population.step, child),
        )
        for _ in range(population.step, self.study.train.steps):
            fork.advance()
        final = torch.where(fork.population.alive[:, None], fork.population.theta, torch.nan)
        rows = to_device(torch.tensor(replicas), self.device)
        return ends.index_copy_(0, rows, final[: len(replicas)])
