"""A population: the replicas of one group, with a leading replica axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stability.datasets import Pairs, rows
from stability.datasets.frequencies import halves_by_frequency
from stability.grid import Run, train_of
from stability.probes import HeldOut, probe
from stability.streams import stream
from stability.study import Start, Study
from stability.train.data import PopulationData, population_data
from stability.train.features import Features, kept_features
from stability.train.loss_scale import LossScale
from stability.train.model import ModelSpec, initial_parameters, model_spec
from stability.train.optimizer import (
    GradClipper,
    LearningRates,
    OptimizerState,
    Recipe,
    evaluation_point,
    initial_state,
)
from stability.train.recipes import recipes_of

SCALARS = ("log_scale", "bias")
"""Scalars of a loss that are measured at every step."""

LOSS_SCALE = ("loss_scale", "overflow", "skipped_step_fraction")
"""Measures of a step in float16."""

UNMASKED = ("learning_rate", "false_negative_fraction")
"""Measures that do not depend on whether a replica is alive."""


@dataclass
class Population:
    """The replicas of one group during training. R is at least 2: a single run is trained twice and measured once.

    Attributes:
        study: the study as this arm and batch size train it.
        runs: the run of each replica.
        spec: what all replicas share: towers, loss, layout.
        data: their training pairs.
        held_out: the held-out pairs.
        theta: parameters (R, P) at which gradients are taken, padded to whole cache lines.
        grad: output for the gradient, like theta.
        optimizer: the optimizer's state.
        recipes: the training settings of the replicas.
        rates: the learning rate of each replica at each step.
        clipper: gradient clipping.
        loss_scale: factors on the losses in float16; None in other formats.
        alive: mask of the replicas whose loss and gradient have been finite, (R,).
        hash_multipliers: multipliers of the text hash.
        generators: each replica's random stream of fresh corruption.
        loss_generators: the random streams of losses, by seed.
        features: outputs of frozen parts of towers, by modality.
        state: the loss's state, each tensor (R, ...), updated in place.
        update: the last step's change of theta, (R, P), updated in place; None if no probe reads it.
        step: steps taken, those of the runs that these started from included.
        start: what they started from; None: fresh weights.
    """

    study: Study
    runs: Sequence[Run]
    spec: ModelSpec
    data: PopulationData
    held_out: HeldOut
    theta: Tensor
    grad: Tensor
    optimizer: OptimizerState
    recipes: Sequence[Recipe]
    rates: LearningRates
    clipper: GradClipper
    alive: Tensor
    hash_multipliers: Tensor
    generators: Sequence[torch.Generator]
    loss_generators: Mapping[int | str, torch.Generator]
    features: Mapping[str, Features]
    state: dict[str, Tensor]
    loss_scale: LossScale | None = None
    update: Tensor | None = None
    step: int = 0
    start: Start | None = None

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of a step's measures, in the order of the rows of `train_step`."""
        scalars = [name for name in SCALARS if name in self.spec.initial_scalars]
        scaled = LOSS_SCALE if self.loss_scale else ()
        updates = ("update_norm", "update_rms")
        return ("loss", "gradient_norm", "grad_clipped_fraction", *scalars, *scaled, *updates, *UNMASKED)

    @property
    def evaluated(self) -> Tensor:
        """The parameters (R, P) that probes measure and that are kept: theta, unless the optimizer averages."""
        points = [
            evaluation_point(
                self.theta[recipe.rows],
                OptimizerState(
                    {name: buffer[recipe.rows] for name, buffer in self.optimizer.buffers.items()},
                    self.optimizer.count,
                    self.optimizer.steps,
                ),
                recipe.train,
            )
            for recipe in self.recipes
        ]
        return torch.cat(points)


def population_of(
    study: Study,
    runs: Sequence[Run],
    pairs: Pairs,
    device: torch.device,
    start_: Callable[[ModelSpec, Tensor], None] | None = None,
) -> Population:
    """Return the population of *runs* (of one arm and batch size) before the first step.

    Args:
        study: the study as this arm and batch size train it.
        runs: the run of each replica.
        pairs: the study's data.
        device: where training takes place.
        start_: overwrites the fresh parameters (R, P) by others, given what all replicas share; None: nothing does.
    """
    spec = model_spec(study, runs[0].arm, runs[0].batch_size, pairs, runs[0].options)
    theta = initial_parameters(study, spec, pairs, [run.rng_seed for run in runs])
    for replica, run in enumerate(runs):
        for name, value in run.scalars:
            spec.layout.view(theta, f"loss.{name}")[replica] = value
    if start_ is not None:
        start_(spec, theta)
    start = study.start_of(runs[0].arm, runs[0].batch_size)
    theta = theta.to(device)
    trains = [train_of(study, run) for run in runs]
    data = population_data(runs, pairs, study.data.corruption, device)
    for tower in spec.towers.values():
        tower.to(device)  # moves its buffers
    recipes = recipes_of(study, spec, runs, theta)
    hash_multipliers = torch.randint(-(2**62), 2**62, (data.text.shape[-1],), generator=stream(0, "identity")) * 2 + 1
    return Population(
        study=study,
        runs=runs,
        spec=spec,
        data=data,
        held_out=held_out(pairs, device, "frequencies" in study.offers),
        theta=theta,
        grad=torch.zeros_like(theta),
        optimizer=initial_state(study.train, theta, recipes[0].layout),
        recipes=recipes,
        rates=LearningRates.of(trains, [run.lr for run in runs], device, start),
        clipper=GradClipper.of(trains, device),
        alive=torch.ones(len(runs), dtype=torch.bool, device=device),
        loss_scale=LossScale.of(study.train, len(runs), device) if spec.precision.scales_loss else None,
        hash_multipliers=hash_multipliers.to(device),
        generators=data.generators("train"),
        loss_generators={run.rng_seed: stream(run.rng_seed, "loss") for run in runs},
        features=kept_features(study, spec, theta, data, pairs),
        state={
            name: value.expand(len(runs), *value.shape).clone().to(device)
            for name, value in spec.loss.initial_state(data.available).items()
        },
        update=torch.zeros_like(theta) if any(probe[name].traits.update for name in study.probes) else None,
        start=start,
    )


def held_out(pairs: Pairs, device: torch.device, frequencies: bool = False) -> HeldOut:
    """Return the held-out part of the data, on *device*.

    Args:
        pairs: the data.
        device: where it is evaluated.
        frequencies: whether head and tail are distinguished, as in a study that sets frequencies of classes.
    """
    image, text, caption, label = (
        rows(part, pairs.held_out).to(device) for part in (pairs.image, pairs.text, pairs.caption, pairs.label)
    )
    hard = None if pairs.hard_negatives is None else pairs.hard_negatives.to(device)
    extra_modalities = tuple(samples[pairs.held_out].to(device) for samples in pairs.extra_modalities)
    head = tail = None
    if frequencies and pairs.frequency_rank is not None:
        head, tail = halves_by_frequency(pairs.frequency_rank[pairs.held_out], int(pairs.frequency_rank.max()) + 1)
        head, tail = head.to(device), tail.to(device)
    return HeldOut(image, text, caption, label, pairs.prompts.to(device), hard, extra_modalities, head, tail)
