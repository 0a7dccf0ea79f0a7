"""Gradient noise of a loss that couples its batch: the independent unit is a whole batch of fixed size."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.stats import t as student
from torch import Tensor
from torch.utils import _pytree as pytree

from stability.registry import InputError, nearest

Objective = Callable[[dict[str, Tensor], Any], Tensor]
Block = Callable[[str], bool] | Collection[str]
Sums = TypeVar("Sums", Tensor, np.ndarray)


@dataclass(frozen=True)
class GradientNoise:
    """Unbiased noise and signal of a batch gradient g (loss units squared per parameter unit squared).

    `trace_cov` estimates tr Cov(g) and is never negative; `mean_sq_norm` estimates |E g|^2 and may be,
    where noise dominates; `second_moment`, their sum, estimates E |g|^2. `by_block` holds the same for
    named blocks.
    """

    trace_cov: Tensor
    mean_sq_norm: Tensor
    second_moment: Tensor
    by_block: dict[str, GradientNoise] = field(default_factory=dict)

    @property
    def fraction(self) -> Tensor:
        """Return trace_cov / second_moment, free of the loss's scale; pool events before dividing."""
        return self.trace_cov / self.second_moment


pytree.register_dataclass(GradientNoise)  # so that vmap may return it


def gradient_noise(
    objective: Objective,
    params: Mapping[str, Tensor],
    batches: Any,
    *,
    blocks: Mapping[str, Block] | None = None,
    preconditioner: Mapping[str, Tensor] | None = None,
) -> GradientNoise:
    """Return how much the gradient of ``objective(params, batch) -> scalar`` varies from batch to batch.

    *batches* is a pytree of tensors (K, ...): K >= 2 whole batches of the same size B, drawn independently
    (with replacement from the pool of pairs, not a partition of one larger batch). With g_k the gradient on
    batch k,

    tr Cov = sum_k |g_k - mean g|^2 / (K - 1),  |E g|^2 = |mean g|^2 - tr Cov / K,  E |g|^2 = mean_k |g_k|^2.

    A batch is never split, since its pairs are coupled, and two batch sizes are never compared, since the
    mean gradient of a contrastive loss depends on B (McCandlish et al. 2018, arXiv:1812.06162, appendix
    A.1, assume it does not). *blocks* names parts of the parameters, each by a collection of names or a
    predicate; *preconditioner* is the diagonal P > 0, like *params*: norms become |g|^2 = sum_i g_i^2 /
    P_i. Memory holds one gradient and one mean, whatever K; written for one replica, it runs under
    ``torch.vmap``. Raises `InputError` for K < 2, unknown names or a result that is not a scalar.

    >>> batches = torch.tensor([1.0, 2.0, 6.0])
    >>> noise = gradient_noise(lambda p, x: p["w"] * x, {"w": torch.tensor(0.5)}, batches)
    >>> noise.trace_cov, noise.mean_sq_norm  # variance 7 of the slopes; 3^2 - 7/3
    (tensor(7.), tensor(6.6667))
    """
    count = _count(batches)
    params = {name: value.detach() for name, value in params.items()}
    members = _members(params, blocks or {})
    scale = _scale(params, preconditioner)
    mean = {name: torch.zeros_like(value) for name, value in params.items()}
    spread: dict[str, Tensor] = {name: value.new_zeros(()) for name, value in params.items()}
    slope = torch.func.grad(_scalar(objective))
    for k in range(count):
        gradient = slope(params, pytree.tree_map(lambda leaf, k=k: leaf[k], batches))
        for name, g in gradient.items():
            # Welford's update: no difference of large sums when the noise is small beside the mean.
            before = (g - mean[name]) * scale[name]
            mean[name] = mean[name] + (g - mean[name]) / (k + 1)
            spread[name] = spread[name] + (before * (g - mean[name])).sum()
    square = {name: (scale[name] * g**2).sum() for name, g in mean.items()}

    def of(names: Collection[str]) -> tuple[Tensor, Tensor, Tensor]:
        trace = torch.stack([spread[name] for name in names]).sum() / (count - 1)
        total = torch.stack([square[name] for name in names]).sum()
        return trace, total - trace / count, total + trace * (1 - 1 / count)

    return GradientNoise(*of(list(params)), {name: GradientNoise(*of(part)) for name, part in members.items()})


def pooled_fraction(traces: Sums, second_moments: Sums) -> Sums:
    """Return the noise fraction of events (last axis) taken together, the ratio of sums; arrays or tensors.

    Single fractions are biased and their |E g|^2 may be negative; sums are not, so pool first, divide then.

    >>> float(pooled_fraction(np.array([1.0, 3.0]), np.array([2.0, 3.0])))
    0.8
    """
    fraction: Sums = traces.sum(-1) / second_moments.sum(-1)
    return fraction


def fraction_interval(
    traces: ArrayLike, second_moments: ArrayLike, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Return the pooled noise fraction of independent events and its interval (fraction, low, high).

    Delete-one jackknife of the ratio of sums with Student quantiles of n - 1 degrees of freedom (Efron and
    Stein 1981); NaN ends for a single event. The interval is for one run: across runs, the unit is the run.

    >>> fraction_interval([1.0, 1.0, 1.0], [2.0, 2.0, 2.0])
    (0.5, 0.5, 0.5)
    """
    trace, moment = np.asarray(traces, dtype=float), np.asarray(second_moments, dtype=float)
    if trace.shape != moment.shape or trace.ndim != 1 or not len(trace):
        raise InputError(f"got shapes {trace.shape} and {moment.shape}; allowed: two equally long rows of events")
    count, fraction = len(trace), float(pooled_fraction(trace, moment))
    if count == 1:
        return fraction, float("nan"), float("nan")
    left_out = (trace.sum() - trace) / (moment.sum() - moment)
    spread = np.sqrt((count - 1) / count * ((left_out - left_out.mean()) ** 2).sum())
    half = float(student.ppf((1 + confidence) / 2, count - 1) * spread)
    return fraction, fraction - half, fraction + half


def _count(batches: Any) -> int:
    counts = {leaf.shape[:1] for leaf in pytree.tree_leaves(batches)}
    if len(counts) != 1 or not all(counts):
        raise InputError("batches differ in their first axis; allowed: tensors (K, ...) of K whole batches")
    (count,) = counts.pop()
    if count < 2:
        raise InputError(f"gradient noise was given {count} batch; allowed: at least 2 independent batches")
    return int(count)


def _members(params: Mapping[str, Tensor], blocks: Mapping[str, Block]) -> dict[str, list[str]]:
    members: dict[str, list[str]] = {}
    for block, choice in blocks.items():
        if not callable(choice):
            for name in sorted({choice} if isinstance(choice, str) else set(choice)):
                if name not in params:
                    raise InputError(f"blocks.{block}: unknown parameter {name!r}{nearest(name, params)}")
        members[block] = [name for name in params if (choice(name) if callable(choice) else name in choice)]
        if not members[block]:
            raise InputError(f"blocks.{block}: holds no parameter; allowed: some of {', '.join(params)}")
    return members


def _scale(params: Mapping[str, Tensor], preconditioner: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    if preconditioner is None:
        return {name: torch.ones_like(value) for name, value in params.items()}
    for name, value in params.items():
        if name not in preconditioner or preconditioner[name].shape != value.shape:
            raise InputError(f"the preconditioner of {name!r} is missing or not of shape {tuple(value.shape)}")
    return {name: preconditioner[name].reciprocal() for name in params}


def _scalar(objective: Objective) -> Objective:
    def checked(params: dict[str, Tensor], batch: Any) -> Tensor:
        value = objective(params, batch)
        if value.dim():
            raise InputError(f"the objective returned shape {tuple(value.shape)}; allowed: a scalar")
        return value

    return checked
