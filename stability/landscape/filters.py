"""Random filter-normalized directions, exactly orthogonal to each other."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import torch
from torch import Tensor

from stability.curvature.products import flatten, unflatten
from stability.registry import InputError, nearest
from stability.streams import stream

Treatment = Literal["filter", "fixed"]


def as_filters(value: Tensor, count: int) -> Tensor:
    """Return a parameter as its filters, one per row.

    The leading axis of a weight counts its outputs, and a filter is one slice along it: a row of a linear layer
    (out, in), a kernel (in, h, w) of a convolution (out, in, h, w), one token's or position's vector of an embedding
    table. A vector (bias, gain of a normalization) is one filter. So is a weight whose rows have fewer entries than
    there are directions (*count*), since directions cannot be orthogonal within such a row.

    >>> [tuple(as_filters(torch.zeros(shape), 2).shape) for shape in [(5, 3), (8, 3, 2, 2), (7,), (6, 1), ()]]
    [(5, 3), (8, 12), (1, 7), (1, 6), (1, 1)]
    """
    rows = value.reshape(len(value), -1) if value.dim() > 1 else value.reshape(1, -1)
    return rows if rows.shape[1] >= count else value.reshape(1, -1)


def filter_directions(
    params: Mapping[str, Tensor],
    count: int,
    seed: int,
    vectors: Treatment,
    scalars: Treatment,
    moved: Collection[str],
) -> list[dict[str, Tensor]]:
    """Return *count* random directions in which each filter has the norm of the parameters' filter.

    Gaussian numbers d, then d_f <- d_f |theta_f| / |d_f| for each filter f: Li et al. (2018), arXiv:1712.09913, Sec. 4.
    Before that, the directions are orthogonalized within each filter (Gram-Schmidt): the first stays as drawn, the
    later ones are adjusted. A parameter with fewer entries than *count* is moved by the first directions only.

    Args:
        params: the parameters whose filters give the norms.
        count: number of directions.
        seed: of the random numbers.
        vectors: whether a 1-d parameter is one filter or fixed.
        scalars: whether a 0-d parameter is one filter or fixed.
        moved: names of the parameters that may move; the others are fixed.
    """
    choices = {"vectors": vectors, "scalars": scalars}
    for key, treatment in choices.items():
        if treatment not in ("filter", "fixed"):
            raise InputError(f"{key}: unknown treatment {treatment!r}{nearest(treatment, ('filter', 'fixed'))}")
    # One copy from and one to the accelerator, not one per parameter.
    flat = flatten(params, 0).detach()
    on_cpu = unflatten(flat.cpu(), {name: value.shape for name, value in params.items()})
    parts = {}
    for name, value in on_cpu.items():
        fixed = name not in moved or (value.dim() <= 1 and choices["vectors" if value.dim() else "scalars"] == "fixed")
        drawn = torch.zeros(count, *value.shape) if fixed else _filter_normalized(name, value, count, seed)
        parts[name] = drawn.to(value)
    shapes = {name: value.shape for name, value in on_cpu.items()}
    return [unflatten(direction, shapes) for direction in flatten(parts, 1).to(flat.device)]


def _filter_normalized(name: str, value: Tensor, count: int, seed: int) -> Tensor:
    """Return (count, *shape) float64 directions for one parameter, each from its own random stream."""
    filters = as_filters(value.double(), count)
    rows, entries = filters.shape
    draws = [stream(seed, f"landscape/{name}/{number}") for number in range(count)]
    drawn = torch.stack([torch.randn(rows, entries, generator=draw, dtype=torch.float64) for draw in draws])
    orthonormal, triangle = torch.linalg.qr(drawn.permute(1, 2, 0))
    # QR may flip the sign of a column; undo it, so that the first direction stays as drawn.
    orthonormal = orthonormal * triangle.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]
    directions = torch.zeros_like(drawn)
    directions[: orthonormal.shape[2]] = orthonormal.permute(2, 0, 1) * filters.norm(dim=1)[:, None]
    return directions.reshape(count, *value.shape)
