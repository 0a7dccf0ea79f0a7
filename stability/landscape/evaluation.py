"""Evaluation of an objective at many points of a plane, in chunks that fit memory, and its second-order model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stability.curvature.graphs import bytes_of
from stability.curvature.products import (
    Objective,
    check_params,
    check_scalar,
    flatten,
    hessian_of,
    unflatten,
    whole_batches,
)
from stability.devices import room_on, to_device
from stability.registry import InputError

Point = Mapping[str, Tensor]

CPU_BYTES = 2**24
"""Bytes that one vmapped call may compute on a CPU; more than for curvature, since no graph is kept for a backward."""


def evaluate(
    objective: Objective, params: Point, axes: Sequence[Point], steps: Tensor, batches: Any, chunk_size: int | None
) -> Tensor:
    """Return the objective at ``params + sum_k steps[:, k] axes[k]``, (N,) float64 on the CPU.

    The caller's tensors are not modified. There is one device sync, at the end.

    Args:
        objective: averaged over *batches*.
        params: the origin.
        axes: K directions like *params*.
        steps: (N, K) multiples of each axis.
        batches: a pytree of whole batches (M, ...), or None.
        chunk_size: points per vmapped call (None: `points_at_once`).
    """
    if chunk_size is not None and chunk_size < 1:
        raise InputError(f"chunk_size is {chunk_size}; allowed: a whole number of points of at least 1")
    origin = flatten(params, 0).detach()
    basis = torch.stack([flatten({name: axis[name].detach() for name in params}, 0).to(origin) for axis in axes])
    shapes = {name: value.shape for name, value in params.items()}
    steps = to_device(steps.to(origin.dtype), origin.device)
    split = whole_batches(batches)
    size = chunk_size or points_at_once(objective, params, split[0])

    def values(chunk: Tensor, batch: tuple[Any, ...]) -> Tensor:
        flat = origin.expand(len(chunk), -1)
        for multiples, axis in zip(chunk.T, basis, strict=True):
            flat = torch.addcmul(flat, multiples[:, None], axis)
        points = unflatten(flat, shapes)
        if len(chunk) == 1:
            return check_scalar(objective({name: value[0] for name, value in points.items()}, *batch))[None]
        return torch.vmap(lambda point: check_scalar(objective(point, *batch)))(points)

    total = torch.zeros(len(steps), dtype=torch.float64, device=origin.device)
    with torch.no_grad():
        for batch in split:
            total += torch.cat([values(chunk, batch) for chunk in steps.split(size)]).double()
    return total.cpu() / len(split)


def points_at_once(objective: Objective, params: Point, batch: tuple[Any, ...]) -> int:
    """Return how many points go into one call, at least 1: the device's memory over the bytes of one evaluation.

    It depends only on the objective, its input and the device's total memory.
    """
    detached = {name: value.detach() for name, value in params.items()}
    work = bytes_of(lambda: check_scalar(objective(detached, *batch)), detached)
    return max(1, room_on(next(iter(detached.values())).device, CPU_BYTES) // work)


def taylor(objective: Objective, params: Point, axes: Sequence[Point], batches: Any) -> tuple[Tensor, Tensor]:
    """Return slope g'd_k (K,) and curvature d_j' H d_k (K, K) of the objective at *params* along *axes*, float64.

    These are the derivatives of the slice at its center. They take one Hessian-vector product per axis.

    Args:
        objective: ``objective(params)`` or ``objective(params, batch)``.
        params: The point, tensors by name.
        axes: K directions, each with tensors of the same shapes.
        batches: Batches whose mean is taken.
    """
    hessian = hessian_of(objective, params, batches=batches, chunk_size=1, retain_graph=False)
    basis = torch.stack([flatten({name: axis[name].detach() for name in params}, 0) for axis in axes])
    basis = basis.to(hessian.point.device)
    products = hessian.product(basis[:, None].to(hessian.point))[:, 0]
    curvature = basis.double() @ products.double().T
    leaves = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
    split, slope = whole_batches(batches), torch.zeros(len(axes), dtype=torch.float64, device=basis.device)
    for batch in split:
        with torch.enable_grad():
            value = objective(leaves, *batch)
        if value.requires_grad:
            grads = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
            slope += basis.double() @ flatten(dict(zip(leaves, grads, strict=True)), 0).double()
    return slope.cpu() / len(split), ((curvature + curvature.T) / 2).cpu()


def check_axes(params: Point, axes: Sequence[Point]) -> None:
    """Raise `InputError` unless every axis has the names and shapes of *params*."""
    check_params(params, batched=False)
    for axis in axes:
        for name, value in params.items():
            if name not in axis or axis[name].shape != value.shape:
                shape = f"shape {tuple(axis[name].shape)}" if name in axis else "nothing"
                raise InputError(f"direction: has {shape} under {name!r}; allowed: shape {tuple(value.shape)}")
