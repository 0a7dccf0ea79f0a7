"""Directions in parameter space for slices of a landscape; each kind is one decorated function."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from stability.curvature import eigenvectors
from stability.curvature.products import Objective, ParamFilter, check_params, chosen_names, flatten, unflatten
from stability.landscape.filters import Treatment, filter_directions
from stability.registry import InputError, Registry, Traits

Point = Mapping[str, Tensor]
Direction = dict[str, Tensor]

direction = Registry("direction", Traits)


def directions(params: Point, kind: str = "filter", count: int = 2, **options: Any) -> tuple[Direction, ...]:
    """Return *count* directions of one *kind*, orthogonal to each other, by name and shape like *params*.

    Args:
        params: the point that the directions start from.
        kind: one of the functions of this module: ``filter`` (random, in proportion to each filter), ``eigen``
            (eigenvectors of the Hessian), ``pca`` (of a trajectory), ``scalars`` (a unit step in each 0-d parameter)
            or ``interpolation`` (to another point; a single direction).
        count: number of directions.
        options: keyword arguments of the kind's function.

    Raises:
        InputError: for an unknown kind or option, a missing option, or a count that the kind cannot provide.

    >>> first, second = directions({"w": torch.ones(2, 3), "log_scale": torch.tensor(1.0)}, seed=1)
    >>> first["w"].norm(dim=1), (first["w"] * second["w"]).sum().abs() < 1e-6, first["log_scale"]
    (tensor([1.7321, 1.7321]), tensor(True), tensor(0.))
    """
    check_params(params, batched=False)
    variant = direction.get_or_explain(kind, "directions")
    variant.check_options(options, "directions")
    missing = [key for key, p in variant.options.items() if p.default is inspect.Parameter.empty and key not in options]
    if missing:
        raise InputError(f"directions: kind {kind!r} needs {' and '.join(missing)}")
    if count < 1:
        raise InputError(f"count is {count}; allowed: a whole number of at least 1")
    axes: Sequence[Direction] = variant(params, count, **options)
    return tuple(axes)


@direction
def filter_(
    params: Point,
    count: int,
    *,
    seed: int = 0,
    vectors: Treatment = "filter",
    scalars: Treatment = "fixed",
    block: ParamFilter | None = None,
) -> list[Direction]:
    """Draw random directions in which each filter has the norm of the parameters' filter, so a step at most doubles it.

    See `stability.landscape.filters` for what a filter is and how directions are made orthogonal. A filter that is
    zero, such as a bias that was never trained, stays zero. Li et al. (2018), arXiv:1712.09913.

    Args:
        params: the point that the directions start from.
        count: number of directions.
        seed: of the random numbers.
        vectors: whether each bias and gain is a filter or "fixed" (not moved).
        scalars: the same for 0-d parameters; fixed by default, since a step as long as a temperature dwarfs all
            others, and they have a plane of their own (kind ``scalars``).
        block: the parameters that move (None: all).
    """
    return filter_directions(params, count, seed, vectors, scalars, chosen_names(params, block))


@direction
def eigen(
    params: Point,
    count: int,
    *,
    objective: Objective,
    end: Literal["high", "low"] = "high",
    batches: Any = None,
    steps: int = 40,
    seed: int = 0,
    block: ParamFilter | None = None,
    chunk_size: int | None = None,
) -> list[Direction]:
    """Compute unit eigenvectors of the Hessian of *objective*, the most extreme first.

    Parameters outside *block* are fixed; see `stability.curvature.eigenvectors`.

    Args:
        params: The point, tensors by name.
        count: Number of eigenvectors.
        objective: ``objective(params)`` or ``objective(params, batch)``.
        end: ``high`` for the largest eigenvalues, ``low`` for the smallest.
        batches: Batches whose mean is taken; None for an objective without batches.
        steps: Lanczos steps.
        seed: Seed of the first Lanczos vector.
        block: Returns whether a parameter, by its name, takes part; None for all.
        chunk_size: Number of batches that share one graph; None for as many as memory holds.
    """
    pairs = eigenvectors(
        objective, params, count, end=end, steps=steps, seed=seed, batches=batches, block=block, chunk_size=chunk_size
    )
    zeros = {name: torch.zeros_like(value) for name, value in params.items()}
    return [zeros | {name: tensor[index] for name, tensor in pairs.vectors.items()} for index in range(count)]


@direction
def pca(params: Point, count: int, *, trajectory: Sequence[Point]) -> list[Direction]:
    """Compute the unit principal components of a *trajectory* (the points of a training run), the largest first.

    They are those of the centered matrix with one row theta_i - theta per point, where theta is *params*: Li et al.
    (2018), arXiv:1712.09913, Sec. 7.2. Signs are such that the first point has positive coordinates.
    """
    rows = torch.stack([_offset(params, point, "trajectory") for point in trajectory])
    if not 1 <= count < len(rows):
        raise InputError(f"count is {count}; allowed: 1 to {len(rows) - 1}, one less than the trajectory's points")
    axes = torch.linalg.svd(rows - rows.mean(0), full_matrices=False).Vh[:count]
    axes = axes * torch.where(rows[0] @ axes.T < 0, -1.0, 1.0)[:, None]
    return [_like(params, axis) for axis in axes]


@direction
def interpolation(params: Point, count: int, *, end: Point) -> list[Direction]:
    """Return the difference from *params* (coordinate 0) to *end* (coordinate 1)."""
    if count != 1:
        raise InputError(f"count is {count}; allowed: 1, as only one line leads from one point to another")
    return [_like(params, _offset(params, end, "end"))]


@direction
def scalars(params: Point, count: int, *, block: ParamFilter | None = None) -> list[Direction]:
    """Return a unit step in each 0-d parameter, in the order of *params*; only those in *block*, if given."""
    chosen = [name for name in chosen_names(params, block) if params[name].dim() == 0]
    if count > len(chosen):
        raise InputError(f"count is {count}; allowed: 1 to {len(chosen)}, the 0-d parameters ({', '.join(chosen)})")
    return [
        {other: torch.full_like(value, float(other == name)) for other, value in params.items()}
        for name in chosen[:count]
    ]


def coordinates(params: Point, axes: Sequence[Direction], points: Sequence[Point]) -> Tensor:
    """Return the coordinates (points, axes) of *points* on orthogonal *axes* through *params*, as axis multiples."""
    basis = torch.stack([_flat(axis) for axis in axes])
    rows = torch.stack([_offset(params, point, "points") for point in points])
    return rows @ basis.T / basis.square().sum(1)


def explained_shares(trajectory: Sequence[Point], axes: Sequence[Direction]) -> Tensor:
    """Return the share of a trajectory's variance along each of some orthogonal *axes*, (axes,)."""
    steps = coordinates(trajectory[0], axes, trajectory)
    rows = torch.stack([_offset(trajectory[0], point, "trajectory") for point in trajectory])
    lengths = torch.stack([_flat(axis) for axis in axes]).square().sum(1)
    return steps.var(0, correction=0) * lengths / rows.var(0, correction=0).sum()


def _flat(point: Point) -> Tensor:
    return flatten(point, 0).detach().double().cpu()


def _offset(params: Point, point: Point, where: str) -> Tensor:
    """Return the flat difference (P,) of *point* and *params*, float64."""
    for name in params:
        if name not in point or point[name].shape != params[name].shape:
            shape = f"shape {tuple(point[name].shape)}" if name in point else "nothing"
            raise InputError(f"{where}: has {shape} under {name!r}; allowed: shape {tuple(params[name].shape)}")
    return _flat({name: point[name] for name in params}) - _flat(params)


def _like(params: Point, flat: Tensor) -> Direction:
    named = unflatten(flat, {name: value.shape for name, value in params.items()})
    return {name: part.to(params[name]) for name, part in named.items()}
