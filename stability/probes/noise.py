"""Gradient noise of a loss that couples the samples of its batch: the independent unit is a whole batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from stability.curvature.products import ParamFilter
from stability.registry import InputError, nearest
from stability.stats import fraction_interval

__all__ = ["GradientNoise", "fraction_interval", "gradient_noise", "gradient_noise_in", "pooled_fraction"]

Objective = Callable[[dict[str, Tensor], Any], Tensor]
Sums = TypeVar("Sums", Tensor, np.ndarray)


@dataclass(frozen=True)
class GradientNoise:
    """Unbiased noise and signal of a batch gradient g (loss units squared per parameter unit squared).

    Attributes:
        trace_cov: estimates tr Cov(g); never negative.
        mean_sq_norm: estimates |E g|^2; may be negative if noise dominates.
        second_moment: their sum, estimates E |g|^2.
        mean_cosine: estimates E cos(g, g') of two independent batches, in [-1, 1]; NaN if a gradient is zero.
        by_block: the same for each named block of parameters.
    """

    trace_cov: Tensor
    mean_sq_norm: Tensor
    second_moment: Tensor
    mean_cosine: Tensor
    by_block: dict[str, GradientNoise] = field(default_factory=dict)

    @property
    def fraction(self) -> Tensor:
        """Return trace_cov / second_moment, independent of the loss's scale; pool events before dividing.

        `stability.stats.fraction_interval` pools events and gives the jackknife interval.
        """
        return self.trace_cov / self.second_moment


pytree.register_dataclass(GradientNoise)  # so that vmap may return it


def gradient_noise(
    objective: Objective,
    params: Mapping[str, Tensor],
    batches: Any,
    *,
    blocks: Mapping[str, ParamFilter] | None = None,
    preconditioner: Mapping[str, Tensor] | None = None,
) -> GradientNoise:
    """Return how much the gradient of ``objective(params, batch) -> scalar`` varies between batches.

    With g_k the gradient on batch k of K,

    tr Cov = sum_k |g_k - mean g|^2 / (K - 1),  |E g|^2 = |mean g|^2 - tr Cov / K,  E |g|^2 = mean_k |g_k|^2,
    E cos(g, g') = mean over j != k of <u_j, u_k> = (|sum_k u_k|^2 - K) / (K (K - 1)),  u_k = g_k / |g_k|,

    each unbiased. A batch is never split, since its pairs are coupled, and two batch sizes are never compared,
    since the mean gradient of a contrastive loss depends on B (McCandlish et al. 2018, arXiv:1812.06162,
    appendix A.1, assume it does not). Memory holds a few vectors of the size of *params*, whatever K. Written for one
    replica, it runs under ``torch.vmap``.

    Args:
        objective: ``objective(params, batch) -> scalar``.
        params: parameters by name.
        batches: a pytree of tensors (K, ...): K >= 2 whole batches of the same size B, drawn independently (with
            replacement from the pool of pairs, not a partition of one larger batch).
        blocks: named parts of the parameters, each a collection of names or a predicate on names.
        preconditioner: the diagonal P > 0, like *params*: inner products become <g, h> = sum_i g_i h_i / P_i.

    Raises:
        InputError: for K < 2, unknown names or a result that is not a scalar.

    >>> batches = torch.tensor([1.0, 2.0, 6.0])
    >>> noise = gradient_noise(lambda p, x: p["w"] * x, {"w": torch.tensor(0.5)}, batches)
    >>> noise.trace_cov, noise.mean_sq_norm  # variance 7 of the gradients; 3^2 - 7/3
    (tensor(7.), tensor(6.6667))
    """
    return gradient_noise_in({"": preconditioner}, objective, params, batches, blocks=blocks)[""]


def gradient_noise_in(
    norms: Mapping[str, Mapping[str, Tensor] | None],
    objective: Objective,
    params: Mapping[str, Tensor],
    batches: Any,
    *,
    blocks: Mapping[str, ParamFilter] | None = None,
) -> dict[str, GradientNoise]:
    """Return `gradient_noise` in several norms (preconditioners by name), from one pass over the batches.

    Args:
        norms: preconditioner of each norm, by name; None: the plain norm.
        objective: ``objective(params, batch)``, a scalar.
        params: the point, by name.
        batches: stacked independent batches.
        blocks: parameters of each further block, by name.
    """
    count = _count(batches)
    params = {name: value.detach() for name, value in params.items()}
    members = _members(params, blocks or {})
    parts: dict[str | None, list[slice]] = {block: _segments(params, names) for block, names in members.items()}
    parts[None] = _segments(params, params)  # the whole
    weights = {norm: _weights(params, preconditioner) for norm, preconditioner in norms.items()}
    roots = {norm: None if weight is None else weight.sqrt() for norm, weight in weights.items()}
    grad_of = torch.func.grad(_scalar(objective))
    mean = spread = torch.zeros_like(_flat(params))
    units: dict[tuple[str, str | None], Tensor] = {}
    for k in range(count):
        gradient = _flat(grad_of(params, pytree.tree_map(lambda leaf, k=k: leaf[k], batches)))
        # Welford's update, element by element: no cancellation of large sums when the noise is small relative to the
        # mean, and any diagonal norm can be applied at the end.
        deviation = gradient - mean
        mean = mean + deviation / (k + 1)
        spread = spread + deviation * (gradient - mean)
        for norm, root in roots.items():
            scaled = gradient if root is None else root * gradient
            for block, segments in parts.items():
                part = _part(scaled, segments)
                unit = part / torch.linalg.vector_norm(part)
                units[norm, block] = units[norm, block] + unit if k else unit

    def estimates(norm: str, block: str | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        weight = weights[norm]
        deviations, squares = (x if weight is None else weight * x for x in (spread, mean.square()))
        trace = _part(deviations, parts[block]).sum() / (count - 1)
        total = _part(squares, parts[block]).sum()
        cosine = (units[norm, block].square().sum() - count) / (count * (count - 1))
        return trace, total - trace / count, total + trace * (1 - 1 / count), cosine

    return {
        norm: GradientNoise(
            *estimates(norm, None), {block: GradientNoise(*estimates(norm, block)) for block in members}
        )
        for norm in norms
    }


def pooled_fraction(traces: Sums, second_moments: Sums) -> Sums:
    """Return the pooled noise fraction of events (last axis): the ratio of sums, of arrays or tensors.

    Fractions of single events are biased and their |E g|^2 may be negative, so sum first and divide afterwards.

    >>> float(pooled_fraction(np.array([1.0, 3.0]), np.array([2.0, 3.0])))
    0.8
    """
    fraction: Sums = traces.sum(-1) / second_moments.sum(-1)
    return fraction


def _count(batches: Any) -> int:
    counts = {leaf.shape[:1] for leaf in pytree.tree_leaves(batches)}
    if len(counts) != 1 or not all(counts):
        raise InputError("batches differ in their first axis; allowed: tensors (K, ...) of K whole batches")
    (count,) = counts.pop()
    if count < 2:
        raise InputError(f"gradient noise was given {count} batch; allowed: at least 2 independent batches")
    return int(count)


def _members(params: Mapping[str, Tensor], blocks: Mapping[str, ParamFilter]) -> dict[str, list[str]]:
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


def _flat(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([value.reshape(-1) for value in tensors.values()])


def _segments(params: Mapping[str, Tensor], names: Collection[str]) -> list[slice]:
    """Return the slices of the flat vector of all parameters that hold *names*; adjacent parameters share a slice."""
    segments: list[slice] = []
    start = 0
    for name, value in params.items():
        stop = start + value.numel()
        if name in names:
            adjacent = bool(segments) and segments[-1].stop == start
            segments.append(slice(segments.pop().start if adjacent else start, stop))
        start = stop
    return segments


def _part(flat: Tensor, segments: list[slice]) -> Tensor:
    return flat[segments[0]] if len(segments) == 1 else torch.cat([flat[segment] for segment in segments])


def _weights(params: Mapping[str, Tensor], preconditioner: Mapping[str, Tensor] | None) -> Tensor | None:
    if preconditioner is None:
        return None
    for name, value in params.items():
        if name not in preconditioner or preconditioner[name].shape != value.shape:
            raise InputError(f"the preconditioner of {name!r} is missing or not of shape {tuple(value.shape)}")
    return _flat({name: preconditioner[name] for name in params}).reciprocal()


def _scalar(objective: Objective) -> Objective:
    def checked(params: dict[str, Tensor], batch: Any) -> Tensor:
        value = objective(params, batch)
        if value.dim():
            raise InputError(f"the objective returned shape {tuple(value.shape)}; allowed: a scalar")
        return value

    return checked
