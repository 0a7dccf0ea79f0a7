"""What a population takes over from the runs or the file that its runs start from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stability.grid import Run
from stability.probes import Batch, Params
from stability.registry import InputError
from stability.study import Start, Study, read_parameters_of, scalar_starts
from stability.train.batches import BatchStream
from stability.train.checkpoints import Checkpoint
from stability.train.model import ModelSpec, subtree
from stability.train.optimizer import GradClipper, OptimizerState
from stability.train.population import Population


def start_parameters_(
    study: Study, spec: ModelSpec, runs: Sequence[Run], theta: Tensor, origin: Checkpoint | None
) -> None:
    """Overwrite the initial parameters (R, P) by those that *runs* start from, except for a bias that is fitted.

    Args:
        study: the study.
        spec: what all replicas share.
        runs: the run of each replica, of one arm with a start.
        theta: initial parameters (R, P), on the CPU.
        origin: the parents before the switch; None: a file.
    """
    start = _start_of(study, runs)
    if origin is None:
        assert start.parameters is not None
        stored = file_parameters(spec, start)
        for name in towers_of(spec):
            spec.layout.view(theta, name).copy_(stored[name])
        kept = {name: value.expand(len(theta)) for name, value in subtree("loss.", stored).items()}
    else:
        rows, width = rows_of(origin, runs), tower_width(spec)
        # Without the optimizer's state, parameters that only make sense with it are nothing to start from.
        averaged = start.optimizer_state == "reset" and origin.averaged.numel() > 0
        params = origin.averaged if averaged else origin.theta
        theta[:, :width] = params[rows, :width]
        kept = {name: params[rows, position] for name, position in origin.scalars.items()}
    for name, value in scalar_starts(study, runs[0].arm, start).items():
        scalar = spec.layout.view(theta, f"loss.{name}")
        if value == "kept":
            scalar.copy_(kept[name])
        elif value == "-log B":
            scalar.fill_(-math.log(runs[0].batch_size // spec.shards))
        elif not isinstance(value, str):
            scalar.fill_(value)


def _start_of(study: Study, runs: Sequence[Run]) -> Start:
    start = study.start_of(runs[0].arm, runs[0].batch_size)
    assert start is not None
    return start


def towers_of(spec: ModelSpec) -> list[str]:
    """Return the names of the parameters of the towers, in memory order."""
    return [name for name in spec.layout.sizes if not name.startswith("loss.")]


def tower_width(spec: ModelSpec) -> int:
    """Return how many numbers the towers have, which come first in memory and are alike under all losses."""
    return sum(spec.layout.sizes[name] for name in towers_of(spec))


def file_parameters(spec: ModelSpec, start: Start) -> Params:
    """Return the parameters of the file that runs start from, by name."""
    assert start.parameters is not None
    shapes = {name: spec.layout.shapes[name] for name in towers_of(spec)}
    return read_parameters_of(start.parameters, start.run, shapes)


def rows_of(origin: Checkpoint, runs: Sequence[Run]) -> list[int]:
    """Return the row of each run's parent in a checkpoint."""
    return [origin.runs.index(run.parent.id) for run in runs if run.parent]


def start_state_(population: Population, origin: Checkpoint | None) -> None:
    """Set the step, and what else than the parameters a population takes over; then fit the bias, if it is fitted.

    A run whose parent's loss or gradient was no longer finite starts as one whose own is not.

    Args:
        population: the population, whose parameters have started.
        origin: the parents before the switch; None: a file.
    """
    study, runs = population.study, population.runs
    start = _start_of(study, runs)
    population.step = start.first_step
    if origin is not None:
        rows, device = rows_of(origin, runs), population.theta.device
        population.alive.copy_(origin.alive[rows].to(device))
        if start.optimizer_state == "kept":
            _keep_optimizer_state_(population.optimizer, population.clipper, population.spec, origin, rows)
            if population.loss_scale is not None and origin.loss_scale.numel():
                scale, since = origin.loss_scale[rows].to(device).unbind(-1)
                population.loss_scale.scale.copy_(scale)
                population.loss_scale.steps.copy_(since)
        for generator, run, row in zip(population.generators, runs, rows, strict=True):
            # A stream of its own goes on by itself.
            if population.data.fresh and run.parent and run.parent.rng_seed == run.rng_seed:
                # A copy: torch reads the state from the first byte of the storage, not of a view.
                generator.set_state(origin.generators[row].clone())
    if scalar_starts(study, runs[0].arm, start).get("bias") == "fitted":
        fit_bias_(population)


def _keep_optimizer_state_(
    optimizer: OptimizerState, clipper: GradClipper, spec: ModelSpec, origin: Checkpoint, rows: list[int]
) -> None:
    """Copy the optimizer's running means of towers and common scalars, its steps, and the norms for clipping."""
    width = tower_width(spec)
    positions = {spec.layout.starts[f"loss.{name}"]: origin.scalars.get(name) for name in spec.loss.scalars}
    for name, buffer in optimizer.buffers.items():
        theirs = origin.buffers[name][rows].to(buffer.device)
        if buffer.shape[1] != spec.layout.width:
            # Not arranged like the parameters: such states are kept only between losses with the same scalars.
            buffer.copy_(theirs)
            continue
        buffer[:, :width] = theirs[:, :width]
        for ours, position in positions.items():
            if position is not None:
                buffer[:, ours] = theirs[:, position]
    optimizer.steps = origin.optimizer_steps
    counts = origin.counts[rows].to(optimizer.count.device)
    optimizer.count.copy_(counts[:, None] if optimizer.count.dim() else counts.amax())
    clipper.recent.copy_(origin.norms[rows].to(clipper.recent.device))
    clipper.seen.fill_(origin.norms_seen)


def fit_bias_(population: Population) -> None:
    """Set the bias of each replica to the value that minimizes its loss on its next batch.

    Towers and other scalars are as they are, so that the problem has one unknown; for a sigmoid loss of linear logits
    it is convex. Each replica is solved by itself, in float64 (see `minimizer`). Random streams do not advance.

    Args:
        population: the population before its first step.

    Raises:
        InputError: if the loss of a replica has no minimum between -1,000 and 1,000.
    """
    spec = population.spec
    batch = _next_batch(population)
    for replica, run in enumerate(population.runs):
        params = {name: value[replica] for name, value in spec.layout.unflatten_contiguous(population.theta).items()}
        inputs = {name: value[replica] for name, value in batch.items()}
        with torch.no_grad():
            rows = [spec.embed(name, params, inputs[name]).double() for name in spec.towers]
        scalars = {name: value.double() for name, value in params.items() if name.startswith("loss.")}
        bias = minimizer(partial(_loss_at, spec, rows, scalars, inputs), rows[0].new_zeros(()))
        if not bool(bias.isfinite()):
            raise InputError(
                f"arms.{run.arm}.start.bias: 'fitted': no bias from -1000 to 1000 minimizes the loss of run {run.id} "
                "at its start; allowed: another value"
            )
        spec.layout.view(population.theta, "loss.bias")[replica] = bias


def _loss_at(spec: ModelSpec, rows: list[Tensor], scalars: Params, inputs: Batch, bias: Tensor) -> Tensor:
    """Return the loss of one replica's unit rows (B, D) of each tower at a bias."""
    return spec.loss_of(rows, {**scalars, "loss.bias": bias}, inputs)[0]


def minimizer(loss: Callable[[Tensor], Tensor], zero: Tensor, bound: float = 1e3, iterations: int = 60) -> Tensor:
    """Return where a convex function of one number has its minimum, by bisection of its derivative; NaN if nowhere.

    The number of iterations is fixed, so that an accelerator is not waited for; 60 exhaust float64.

    Args:
        loss: maps the number to the value, both 0-d.
        zero: zero, for type and device.
        bound: the minimum is looked for from -*bound* to *bound*.
        iterations: number of bisections.

    >>> minimizer(lambda x: (x - 3) ** 2, torch.zeros((), dtype=torch.float64))
    tensor(3., dtype=torch.float64)
    >>> minimizer(torch.exp, torch.zeros((), dtype=torch.float64))
    tensor(nan, dtype=torch.float64)
    """

    def slope(x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            return torch.autograd.grad(loss(leaf), leaf)[0]

    low, high = zero - bound, zero + bound
    inside = (slope(low) < 0) & (slope(high) > 0)
    for _ in range(iterations):
        middle = (low + high) / 2
        falling = slope(middle) < 0
        low, high = torch.where(falling, middle, low), torch.where(falling, high, middle)
    return torch.where(inside, (low + high) / 2, torch.nan)


def _next_batch(population: Population) -> dict[str, Any]:
    """Return the batch of the next step, and the step, without advancing any random stream."""
    data, device = population.data, population.theta.device
    seeds = [run.rng_seed for run in population.runs]
    stream = BatchStream(seeds, data.available, data.batch_size, device, first=population.step)
    stream.advance()
    generators = [generator.clone_state() for generator in population.generators]
    index = stream.host_index() if data.on_host else stream.index()
    step = torch.full((len(seeds),), population.step, device=device)
    return {**data.batch(index, generators), "step": step}
