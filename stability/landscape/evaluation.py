"""An objective at many points of a plane, in chunks that memory bounds; and its second-order model at the centre."""

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
"""What the points evaluated at once compute on a CPU; more than for curvature: no graph is kept for a way back."""


def evaluate(
    objective: Objective, params: Point, axes: Sequence[Point], places: Tensor, batches: Any, chunk: int | None
) -> Tensor:
    """Return the objective at ``params + sum_k places[:, k] axes[k]``, (N,) float64 on the CPU.

    It is the mean over *batches*; *places* is (N, K). *chunk* points share one vmapped call (None: as many as
    `points_at_once` says). The caller's tensors are read only. The host reads an accelerator once, at the end.
    """
    if chunk is not None and chunk < 1:
        raise InputError(f"chunk is {chunk}; allowed: a whole number of points of at least 1")
    origin = flatten(params, 0).detach()
    basis = torch.stack([flatten({name: axis[name].detach() for name in params}, 0).to(origin) for axis in axes])
    shapes = {name: value.shape for name, value in params.items()}
    places = to_device(places.to(origin.dtype), origin.device)
    split = whole_batches(batches)
    size = chunk or points_at_once(objective, params, split[0])

    def values(part: Tensor, batch: tuple[Any, ...]) -> Tensor:
        flat = origin.expand(len(part), -1)
        for steps, axis in zip(part.T, basis, strict=True):
            flat = torch.addcmul(flat, steps[:, None], axis)
        moved = unflatten(flat, shapes)
        if len(part) == 1:
            return check_scalar(objective({name: value[0] for name, value in moved.items()}, *batch))[None]
        return torch.vmap(lambda point: check_scalar(objective(point, *batch)))(moved)

    total = torch.zeros(len(places), dtype=torch.float64, device=origin.device)
    with torch.no_grad():
        for batch in split:
            total += torch.cat([values(part, batch) for part in places.split(size)]).double()
    return total.cpu() / len(split)


def points_at_once(objective: Objective, params: Point, batch: tuple[Any, ...]) -> int:
    """Return how many points go into one call, at least 1: by what one evaluation computes and the device holds.

    A pure function of the objective, its input and the device's whole memory.
    """
    own = {name: value.detach() for name, value in params.items()}
    work = bytes_of(lambda: check_scalar(objective(own, *batch)), own)
    return max(1, room_on(next(iter(own.values())).device, CPU_BYTES) // work)


def taylor(objective: Objective, params: Point, axes: Sequence[Point], batches: Any) -> tuple[Tensor, Tensor]:
    """Return slope g'd_k (K,) and curvature d_j' H d_k (K, K) of the objective at *params* along *axes*, float64.

    They are the derivatives of the slice itself at its centre. One Hessian-vector product per axis.
    """
    hessian = hessian_of(objective, params, batches=batches, chunk=1, retain=False)
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
            parts = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
            slope += basis.double() @ flatten(dict(zip(leaves, parts, strict=True)), 0).double()
    return slope.cpu() / len(split), ((curvature + curvature.T) / 2).cpu()


def check_axes(params: Point, axes: Sequence[Point]) -> None:
    """Raise `InputError` unless every axis has the names and shapes of *params*."""
    check_params(params, replicas=False)
    for axis in axes:
        for name, value in params.items():
            if name not in axis or axis[name].shape != value.shape:
                given = f"shape {tuple(axis[name].shape)}" if name in axis else "nothing"
                raise InputError(f"direction: has {given} under {name!r}; allowed: shape {tuple(value.shape)}")
