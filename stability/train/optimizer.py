"""Optimizer steps, learning rates and gradient clipping for a whole population, in flat buffers (R, P)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stability.devices import is_accelerator
from stability.optimizers import Layout, buffer_widths, inputs_of
from stability.precision import Precision
from stability.study import Start, Train, optimizer_of


@dataclass
class OptimizerState:
    """The running state of an optimizer.

    Attributes:
        buffers: by name, each (R, width), most of the width P.
        count: steps taken, float32 on the device, where the step's kernels read it: 0-d, or (R, 1) if replicas may skip
            steps, which do not count.
        steps: the same number on the host.
    """

    buffers: dict[str, Tensor]
    count: Tensor
    steps: int = 0

    @classmethod
    def zeros(cls, theta: Tensor, widths: Mapping[str, int], may_skip: bool = False) -> OptimizerState:
        """Return the state before the first step of parameters (R, P), from the *widths* of the buffers by name.

        *may_skip* says whether a replica may skip a step that others take.
        """
        buffers = {name: theta.new_zeros(len(theta), width) for name, width in widths.items()}
        shape = (len(theta), 1) if may_skip else ()
        return cls(buffers, torch.zeros(shape, dtype=torch.float32, device=theta.device))

    def select(self, rows: Tensor) -> OptimizerState:
        """Return a copy of the state of some replicas, by their indices."""
        count = self.count[rows] if self.count.dim() else self.count.clone()
        return OptimizerState({name: value[rows] for name, value in self.buffers.items()}, count, self.steps)


def initial_state(train: Train, theta: Tensor, layout: Layout = ()) -> OptimizerState:
    """Return the state of the study's optimizer before the first step of parameters (R, P)."""
    variant, _ = optimizer_of(train)
    may_skip = Precision.of(train.precision, train.logits).scales_loss
    return OptimizerState.zeros(theta, buffer_widths(variant, layout, theta.shape[-1]), may_skip)


def preconditioner(state: OptimizerState, train: Train) -> Tensor | None:
    """Return the positive diagonal (R, P) by which the optimizer divides a step: Adam's sqrt(v_hat) + eps, SGD's 1.

    None if it divides by no diagonal.
    """
    variant, options = optimizer_of(train)
    diagonal_of = variant.traits.preconditioner
    if diagonal_of is None or not state.count.dim():
        return None if diagonal_of is None else diagonal_of(state.buffers, state.steps, **options)
    rows = [
        diagonal_of({name: value[[row]] for name, value in state.buffers.items()}, int(count), **options)
        for row, count in enumerate(state.count[:, 0].tolist())
    ]
    return torch.cat(rows)


def evaluation_point(theta: Tensor, state: OptimizerState, train: Train) -> Tensor:
    """Return the parameters (R, P) that probes measure and that are kept: *theta*, or an average that it stands for."""
    variant, options = optimizer_of(train)
    evaluated = variant.traits.evaluated
    return theta if evaluated is None else evaluated(theta, state.buffers, **options)


def lr_schedule_factor(train: Train, step: int, start: Start | None = None) -> float:
    """Return the factor on the learning rate at *step*: linear warm-up, then constant, or cosine to zero.

    All of it is multiplied by ``train.lr_multiplier``. For runs with a *start* it is also multiplied by a warm-up that
    begins there and by their own multiplier.

    >>> short = Train(steps=8, warmup=4, lr_schedule="cosine")
    >>> [round(lr_schedule_factor(short, step), 3) for step in range(8)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if start is not None:
        since = step - start.first_step
        warm = min(1.0, (since + 1) / start.warmup) if start.warmup else 1.0
        return warm * start.lr_multiplier * lr_schedule_factor(train, step)
    if step < train.warmup:
        return train.lr_multiplier * ((step + 1) / train.warmup)
    if train.lr_schedule == "constant":
        return train.lr_multiplier
    return train.lr_multiplier * 0.5 * (1 + math.cos(math.pi * (step - train.warmup) / (train.steps - train.warmup)))


@dataclass(frozen=True)
class LearningRates:
    """The learning rate of every replica at every step, precomputed on the device.

    Attributes:
        table: rates (steps, distinct rates).
        column: the column of each replica, (R,).
    """

    table: Tensor
    column: Tensor

    @classmethod
    def of(
        cls, trains: Sequence[Train], lrs: Sequence[float], device: torch.device, start: Start | None = None
    ) -> LearningRates:
        """Return the rates of replicas of one arm and batch size; rows before their start are not read.

        Args:
            trains: their training settings.
            lrs: their base rates.
            device: where training takes place.
            start: what they start from; None: fresh weights.
        """
        keys = [
            (lr, train.warmup, train.lr_schedule, train.lr_multiplier) for train, lr in zip(trains, lrs, strict=True)
        ]
        distinct = dict(zip(keys, trains, strict=True))
        # Products in float64, rounded once.
        rates = [
            [lr * lr_schedule_factor(train, step, start) for step in range(train.steps)]
            for (lr, *_), train in distinct.items()
        ]
        column = torch.tensor([list(distinct).index(key) for key in keys])
        return cls(torch.tensor(rates, dtype=torch.float64).T.float().contiguous().to(device), column.to(device))

    def at(self, step: int) -> Tensor:
        """Return the rates (R,) at *step*; those of the last step from then on."""
        return self.table[min(step, len(self.table) - 1)].index_select(0, self.column)

    def select(self, rows: Tensor) -> LearningRates:
        """Return the rates of some replicas, by their indices."""
        return LearningRates(self.table, self.column[rows])


@dataclass(frozen=True)
class ParamGroups:
    """Per-parameter settings that all replicas share, as rows over P.

    Attributes:
        decay: weight decay of the first D parameters, (D,), or (r, D) if it differs between the r replicas; the others
            have none.
        lr_multiplier: factors on the learning rate, (P,); None if all are 1.
    """

    decay: Tensor
    lr_multiplier: Tensor | None

    @classmethod
    def of(cls, parameters: Sequence[tuple[int, float, float]], theta: Tensor) -> ParamGroups:
        """Return the rows for *theta* from the (size, decay, lr multiplier) of each parameter, in memory order."""

        def row(values: Iterable[tuple[int, float]], padding: float) -> Tensor:
            parts = torch.cat([theta.new_full((size,), value) for size, value in values])
            return torch.nn.functional.pad(parts, (0, theta.shape[-1] - len(parts)), value=padding)

        decay = row(((size, decay) for size, decay, _ in parameters), 0.0)
        multiplier = row(((size, multiplier) for size, _, multiplier in parameters), 1.0)
        decaying = int(decay.nonzero().max()) + 1 if bool(decay.any()) else 0
        return cls(decay[:decaying], None if bool((multiplier == 1).all()) else multiplier)

    @property
    def uniform(self) -> bool:
        """Whether all D parameters of a replica have the same weight decay."""
        return not self.decay.numel() or bool((self.decay == self.decay[..., :1]).all())

    def of_rows(self, rows: slice) -> Tensor:
        """Return the weight decay of some replicas, (D,) or (r, D), by their positions among those of the recipe."""
        return self.decay[rows] if self.decay.dim() > 1 else self.decay


@dataclass(frozen=True)
class Recipe:
    """The training settings of consecutive replicas, which are updated together.

    Attributes:
        rows: which replicas.
        train: their settings; the weight decay is that of *groups*.
        groups: their weight decay and learning rate factors, by parameter.
        layout: their parameters, for an optimizer that treats each by itself.
    """

    rows: slice
    train: Train
    groups: ParamGroups
    layout: Layout = ()

    @classmethod
    def of_all(
        cls, train: Train, parameters: Sequence[tuple[int, float, float]], theta: Tensor, layout: Layout = ()
    ) -> Recipe:
        """Return one recipe for all replicas.

        Args:
            train: their training settings.
            parameters: see `ParamGroups.of`.
            theta: parameters (R, P).
            layout: the parameters, for an optimizer that treats each by itself.
        """
        return cls(slice(0, len(theta)), train, ParamGroups.of(parameters, theta), layout)


def update_norm(update: Tensor) -> dict[str, Tensor]:
    """Return the Euclidean norm (R,) of each replica's update (R, P)."""
    return {"update_norm": torch.linalg.vector_norm(update, dim=-1)}


CHUNK_FLOATS = 2**20
"""Parameters updated per call on a CPU: they fit its cache and still amortize the call overhead."""


def apply_update_(
    theta: Tensor,
    grad: Tensor,
    state: OptimizerState,
    rates: Tensor,
    recipes: Sequence[Recipe],
    *,
    measure: Callable[[Tensor], dict[str, Tensor]] = update_norm,
    dead: Tensor | None = None,
    skipped: Tensor | None = None,
) -> dict[str, Tensor]:
    """Apply one step of the study's optimizer in place, with about ten operations for all replicas.

    No operation reduces over replicas, so a replica's bits do not depend on the others. Replicas of one recipe are
    updated together; on a CPU, chunks of them that fit its cache are updated and measured one after another.

    Args:
        theta: parameters (R, P), updated.
        grad: gradients (R, P); overwritten if the optimizer adds the weight decay to them.
        state: the optimizer's state, updated.
        rates: learning rates (R,).
        recipes: the training settings of all replicas, in their order.
        measure: maps the update (r, P) of r replicas to measures by name, each (r,).
        dead: mask (R,) of replicas that keep their parameters.
        skipped: mask (R,) of those among them that keep the optimizer's state too, as if there were no step.

    Returns:
        The measures, each (R,).
    """
    state.count += 1 if skipped is None else ~skipped[:, None]
    state.steps += 1
    before = {} if skipped is None else {name: buffer.clone() for name, buffer in state.buffers.items()}
    chunk = len(theta) if is_accelerator(theta.device) else max(1, CHUNK_FLOATS // theta.shape[-1])
    measures: list[Mapping[str, Tensor]] = []
    for recipe in recipes:
        variant, options = optimizer_of(recipe.train)
        groups, decaying, start = recipe.groups, recipe.groups.decay.shape[-1], recipe.rows.start
        for rows in _chunks(recipe.rows, chunk):
            params, grads = theta[rows], grad[rows]
            decay = groups.of_rows(slice(rows.start - start, rows.stop - start))
            if decaying and variant.traits.decay == "in_grad":
                grads[:, :decaying].addcmul_(params[:, :decaying], decay)
            buffers = {name: buffer[rows] for name, buffer in state.buffers.items()}
            reserved = inputs_of(variant, {"params": params, "layout": recipe.layout, "rates": rates[rows]})
            count = state.count[rows] if state.count.dim() else state.count
            update: Tensor = variant(grads, buffers, count, **reserved, **options)
            if decaying and variant.traits.decay == "decoupled":
                update[:, :decaying].addcmul_(params[:, :decaying], decay, value=-1)
            update.mul_(rates[rows, None])
            if groups.lr_multiplier is not None:
                update.mul_(groups.lr_multiplier)
            if dead is not None:
                update.masked_fill_(dead[rows, None], 0.0)
            params += update
            measures.append(measure(update))
    if skipped is not None:
        for name, buffer in before.items():
            state.buffers[name].copy_(torch.where(skipped[:, None], buffer, state.buffers[name]))
    if len(measures) == 1:
        return dict(measures[0])
    return {name: torch.cat([part[name] for part in measures]) for name in measures[0]}


def _chunks(rows: slice, most: int) -> list[slice]:
    """Split replicas into even parts of at most *most*.

    >>> _chunks(slice(2, 7), 3)
    [slice(2, 4, None), slice(4, 7, None)]
    """
    count = rows.stop - rows.start
    parts = -(-count // most)
    return [
        slice(rows.start + part * count // parts, rows.start + (part + 1) * count // parts) for part in range(parts)
    ]


@dataclass
class GradClipper:
    """Clips each replica's gradient norm: not at all, at a quantile of its recent norms, or at an absolute norm.

    Attributes:
        quantile: quantile of the norms of the last *window* steps, or None.
        norm: absolute bounds (R,), infinite for a replica without one; None if no replica has one.
        recent: recent norms (R, window), indexed by step modulo the window.
        seen: number of steps recorded, 0-d int64 on the device.
    """

    quantile: float | None
    norm: Tensor | None
    recent: Tensor
    seen: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))

    @classmethod
    def of(cls, trains: Sequence[Train], device: torch.device, window: int = 100) -> GradClipper:
        """Return the clipper of replicas with these training settings.

        Args:
            trains: the training settings of each replica.
            device: where training takes place.
            window: number of past steps whose norms a quantile is taken over.
        """
        seen = torch.zeros((), dtype=torch.int64, device=device)
        norms = [math.inf if train.clip_norm is None else train.clip_norm for train in trains]
        bound = torch.tensor(norms, device=device) if min(norms) < math.inf else None
        return cls(trains[0].clip_quantile, bound, torch.zeros(len(trains), window, device=device), seen)

    def select(self, rows: Tensor) -> GradClipper:
        """Return a copy of the clipper for some replicas, by their indices."""
        norm = None if self.norm is None else self.norm[rows]
        return GradClipper(self.quantile, norm, self.recent[rows], self.seen.clone())

    def __call__(self, grad: Tensor, norm: Tensor) -> Tensor:
        """Clip the gradient (R, P) with norms *norm* (R,) in place; return 1 for clipped replicas, else 0, (R,).

        A quantile is taken over the norms of the window before this step, so nothing is clipped until it is full.
        """
        if self.quantile is None and self.norm is None:
            return torch.zeros_like(norm)
        if self.norm is not None:
            bound = self.norm
        else:
            assert self.quantile is not None
            window = self.recent.shape[1]
            bound = self.recent.quantile(self.quantile, dim=1)
            bound = torch.where(self.seen >= window, bound, math.inf)
            self.recent.index_copy_(1, (self.seen % window)[None], norm[:, None])
            self.seen += 1
        grad.mul_((bound / norm).clamp(max=1.0)[:, None])
        return (norm > bound).to(norm.dtype)
