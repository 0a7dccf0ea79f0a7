"""The training of a population step by step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from stability.datasets import Pairs
from stability.devices import is_accelerator, to_device
from stability.grid import Group
from stability.probes import probe
from stability.study import Start, Study, digest
from stability.train.batches import BatchStream
from stability.train.capture import EAGER_STEPS, CapturedStep, Inputs
from stability.train.checkpoints import Checkpoint, checkpoint_of, read_checkpoint
from stability.train.data import (
    false_negative_fraction,
    text_fingerprints,
    uniform_numbers,
)
from stability.train.forks import CHILDREN, fork_stream, forked
from stability.train.gradient import value_and_grad
from stability.train.optimizer import (
    apply_update_,
    update_norm,
)
from stability.train.population import SCALARS, UNMASKED, Population, population_of
from stability.train.probe_runner import ProbeResult, probed_indices, read
from stability.train.shift import shift_data_
from stability.train.starting import start_parameters_, start_state_


def step_inputs(population: Population, index: Tensor, host_index: Tensor) -> Inputs:
    """Return the inputs of a step that the host provides, as tensors on the device, without synchronization.

    *index* (R, B) is on the device; *host_index* holds the same numbers on the CPU.
    """
    spec, data, device = population.spec, population.data, population.theta.device
    inputs = {"index": index, "rate": population.rates.at(population.step)}
    if data.on_host:
        needed = [name for name in modalities_read(population) if name != "index"]
        batch = data.batch(host_index, population.generators, without=set(spec.towers) - {*needed})
        inputs |= {name: batch[name] for name in needed}
    for name, kept in population.features.items():
        if kept.on_host:
            inputs[f"features {name}"] = to_device(kept.rows(host_index), device)
    if "step" in spec.loss.reserved:
        inputs["step"] = torch.full((len(population.runs),), population.step, device=device)
    if "uniform" in spec.loss.reserved:
        uniform = uniform_numbers(population.runs, population.loss_generators, torch.Size())
        inputs["uniform"] = to_device(uniform, device)
    return inputs


def modalities_read(population: Population) -> list[str]:
    """Return the modalities whose samples a step reads: those without features, and text, for its fingerprints."""
    return [name for name in population.spec.towers if name not in population.features or name == "text"]


def train_step(population: Population, inputs: Inputs) -> Tensor:
    """Run one step on the device and return its measures, one row for each of `Population.measures`, (M, R).

    A replica whose loss or gradient is not finite keeps its parameters from then on and logs NaN. In float16 it skips
    the step, and stops only if it overflows without a scaled loss. Other replicas are unaffected, since nothing in the
    step reduces over replicas. On an accelerator the host reads nothing here, and all persistent state is updated in
    place, so the step can be captured once and replayed.
    """
    spec = population.spec
    with torch.no_grad():
        batch, features = _batch(population, inputs)
        # Copied before the update changes them.
        scalars = [
            spec.layout.view(population.theta, f"loss.{name}").clone()
            for name in SCALARS
            if name in spec.initial_scalars
        ]
        scaling, skipped = population.loss_scale, None
        of_scaling: tuple[Tensor, ...] = ()
        scale = None if scaling is None else scaling.scale.clone()
        losses, state = value_and_grad(spec, population.theta, batch, population.grad, features, scale)
        if scaling is not None and scale is not None:
            of_scaling = (scale, scaling.unscale_(population.grad))
        norm = torch.linalg.vector_norm(population.grad, dim=-1)
        finite = torch.isfinite(losses + norm)
        if scaling is not None:
            skipped = scaling.skipped_(finite)
            of_scaling = (*of_scaling, skipped.float())
            norm = torch.where(skipped, torch.nan, norm)
        population.alive &= finite if skipped is None else finite | skipped
        dead = ~population.alive
        idle = dead if skipped is None else dead | skipped
        # Avoid a device sync: on an accelerator, always run the masked update.
        some_idle = is_accelerator(dead.device) or bool(idle.any())
        if some_idle:
            population.grad.masked_fill_(idle[:, None], 0.0)
        clipped = population.clipper(population.grad, torch.where(idle, 1.0, norm))
        if population.update is not None:
            population.update.copy_(population.theta)
        update = apply_update_(
            population.theta,
            population.grad,
            population.optimizer,
            inputs["rate"],
            population.recipes,
            measure=lambda update: update_norm(update) | {"update_rms": spec.rms_of_matrices(update)},
            dead=idle if some_idle else None,
            skipped=skipped if some_idle else None,
        )
        for name, value in state.items():
            kept = population.state[name]
            if skipped is not None:
                value = torch.where(skipped.view(-1, *(1,) * (value.dim() - 1)), kept, value)
            kept.copy_(value)
        for name in spec.renormalized:
            rows = spec.layout.view(population.theta, name)
            rows.copy_(normalize(rows, dim=-1))
        if population.update is not None:
            torch.sub(population.theta, population.update, out=population.update)
        duplicates = false_negative_fraction(
            text_fingerprints(batch["text"], population.hash_multipliers), population.spec.shards
        )
        measures = torch.stack(
            [losses, norm, clipped, *scalars, *of_scaling, *update.values(), inputs["rate"], duplicates]
        )
        if some_idle:
            measures[: -len(UNMASKED)].masked_fill_(dead, torch.nan)
    return measures


def _batch(population: Population, inputs: Inputs) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the inputs of towers and loss, and the features of frozen towers, on the device."""
    index = inputs["index"]
    features = {
        name: inputs[f"features {name}"] if kept.on_host and f"features {name}" in inputs else kept.rows(index)
        for name, kept in population.features.items()
    }
    batch: dict[str, Any] = {**inputs, "state": population.state}
    if not population.data.on_host:
        without = set(population.spec.towers) - {*modalities_read(population)}
        batch |= population.data.batch(index, (), without=without)
    return batch, features


@dataclass(frozen=True)
class Parents:
    """Where runs that start from others find these before the switch.

    Attributes:
        checkpoints: the folder of checkpoints, which is looked into first; None: the parents are trained up to the
            switch, to the same bits.
        progress: called with each step of such training.
        trained: False, to measure times: the parents are not trained, but taken before their first step.
    """

    checkpoints: Path | None = None
    progress: Callable[[int], None] = lambda step: None
    trained: bool = True


PARENTS = Parents()


def _parents_at(
    study: Study,
    start: Start,
    group: Group,
    pairs: Pairs,
    device: torch.device,
    capture: bool | None,
    parents: Parents,
) -> tuple[Checkpoint, tuple[str, ...]]:
    """Return the parents of a group's runs before the update at which these start, and notes for the user."""
    runs = tuple({run.parent.id: run.parent for run in group.runs if run.parent}.values())
    ids = [run.id for run in runs]
    notes: tuple[str, ...] = ()
    if parents.checkpoints is not None:
        found, notes = read_checkpoint(parents.checkpoints, ids, start.first_step)
        if found is not None:
            return found, notes
    trainer = Trainer(study.untrained, Group(digest(ids), runs), pairs, device, capture, parents)
    for step in range(trainer.population.step, start.first_step if parents.trained else 0):
        trainer.advance()
        parents.progress(step)
    return checkpoint_of(trainer.population, len(runs)), (*notes, *trainer.notes)


class Trainer:
    """Trains one group; holds the population and its stream of batches.

    On a GPU the step is captured as a CUDA graph and replayed, unless *capture* is False. Runs that start from others
    begin at the step of the switch; *parents* says where those are found.
    """

    def __init__(
        self,
        study: Study,
        group: Group,
        pairs: Pairs,
        device: torch.device,
        capture: bool | None = None,
        parents: Parents = PARENTS,
    ) -> None:
        runs = group.runs if len(group.runs) > 1 else group.runs * 2
        self.study, self.device = study.trained_as(group.arm, group.batch_size), device
        self._capture = device.type == "cuda" and capture is not False
        self._shifted = self.study.shifted_pairs(pairs)
        self._notes: tuple[str, ...] = ()
        if (start := self.study.start_of(group.arm, group.batch_size)) is None:
            population = population_of(self.study, runs, pairs, device)
        else:
            origin = None
            if start.arm is not None:
                origin, self._notes = _parents_at(self.study, start, group, pairs, device, capture, parents)
            population = population_of(
                self.study,
                runs,
                pairs,
                device,
                lambda spec, theta: start_parameters_(self.study, spec, runs, theta, origin),
            )
            shift = self.study.data.shift
            if shift and shift.step <= start.first_step:
                shift_data_(population, self._shifted)
            start_state_(population, origin)
        self._start(population, "batches", population.step)

    def _start(self, population: Population, use: str, first: int = 0) -> None:
        self.population = population
        data, seeds = population.data, [run.rng_seed for run in population.runs]
        self._batches = BatchStream(seeds, data.available, data.batch_size, self.device, use, first)
        self._captured = self._capturable()

    def _capturable(self) -> CapturedStep | None:
        population = self.population
        return CapturedStep(lambda inputs: train_step(population, inputs)) if self._capture else None

    @property
    def captured(self) -> bool:
        """Whether steps are replayed from a CUDA graph."""
        return self._captured is not None and self._captured.captured

    @property
    def warmup_steps(self) -> int:
        """Number of first steps that take longer than the others."""
        return EAGER_STEPS + 1 if self._captured is not None else 1

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on a damaged checkpoint, and on why the step could not be captured as a CUDA graph."""
        captured = (self._captured.note,) if self._captured is not None and self._captured.note else ()
        return (*self._notes, *captured)

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of a step's measures, in the order of the rows of `advance`."""
        return self.population.measures

    def inputs(self) -> Inputs:
        """Advance to the next batches and return the host's inputs of a step on them."""
        self._batches.advance()
        return step_inputs(self.population, self._batches.index(), self._batches.host_index())

    def advance(self) -> Tensor:
        """Train one step on the next batches and return its measures, (M, R), on the device."""
        inputs = self.inputs()
        step = self._captured or (lambda inputs: train_step(self.population, inputs))
        taken = self.population.optimizer.steps
        measures = step(inputs)
        # A captured step does not count on the host.
        self.population.optimizer.steps = taken + 1
        self.move_to(self.population.step + 1)
        return measures

    def move_to(self, step: int) -> None:
        """Set the step that is next; from that of the study's shift on, the population has the shifted data."""
        before, self.population.step = self.population.step, step
        shift = self.study.data.shift
        if shift and before < shift.step <= step:
            shift_data_(self.population, self._shifted)
            self._captured = self._capturable()

    def step(self) -> dict[str, Tensor]:
        """Train one step on the next batches and return its measures by name, each (R,)."""
        return dict(zip(self.measures, self.advance(), strict=True))

    def read(self, name: str, children: Sequence[Tensor] | None = None) -> ProbeResult:
        """Run a probe now; *children* are the final parameters of its forks, which are trained here if None."""
        population = self.population
        if not probe[name].traits.forks:
            children = ()
        elif children is None:
            children = self.children(probed_indices(self.study, name, population.runs))
        return read(population, name, children)

    def children(self, replicas: Sequence[int]) -> list[Tensor]:
        """Train two copies of some replicas, by their indices, and return the final parameters (R, P) of each.

        The copies branch at the current step and differ from their replica only in the order of their data; the
        replica itself is unaffected. NaN for other replicas, and for a copy that did not stay finite.
        """
        return [self._final_params(child, replicas) for child in range(CHILDREN)]

    def _final_params(self, child: int, replicas: Sequence[int]) -> Tensor:
        population = self.population
        final_params = torch.full_like(population.theta, torch.nan)
        if not replicas:
            return final_params
        fork = copy.copy(self)
        # A single replica would be computed by other kernels than two.
        fork._start(
            forked(population, replicas if len(replicas) > 1 else [*replicas, *replicas]),
            fork_stream(population.step, child),
        )
        for _ in range(population.step, self.study.train.steps):
            fork.advance()
        final = torch.where(fork.population.alive[:, None], fork.population.evaluated, torch.nan)
        rows = to_device(torch.tensor(replicas), self.device)
        return final_params.index_copy_(0, rows, final[: len(replicas)])
