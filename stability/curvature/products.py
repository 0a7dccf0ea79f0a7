"""Hessian-vector products of any scalar objective, for many replicas and many vectors at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from stability.registry import InputError, nearest

Objective = Callable[..., Tensor]
Shapes = Mapping[str, torch.Size]
Block = Callable[[str], bool] | Collection[str]

# Replicas x batches x vectors that one backward pass takes at once. On a CPU more of them leave the cache:
# 64 replica-batches ran 1.8 times slower with 8 vectors at once than one by one, 8 ran 1.4 times faster.
LANES_AT_ONCE = {"cpu": 64, "cuda": 1024}


@dataclass(frozen=True)
class Hessian:
    """The Hessian of an objective at *point* (R, P), as an operator on flat vectors.

    `product` maps vectors (V, R, P) to the same shape. A replica whose objective is not finite maps to NaN.
    """

    point: Tensor
    shapes: Shapes
    product: Callable[[Tensor], Tensor]


def hvp(objective: Objective, params: Mapping[str, Tensor], vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the Hessian of ``objective(params) -> scalar`` times each of *vectors*.

    *vectors* is like *params*, each tensor with the same leading axes (none, one or several): all of them
    are multiplied on one graph. H v = d/dp <dL/dp, v> (Pearlmutter 1994, "Fast exact multiplication by the
    Hessian"). Raises `InputError` for names or shapes that do not fit.

    >>> p = {"w": torch.tensor([1.0, 2.0])}
    >>> hvp(lambda p: (p["w"] ** 3).sum(), p, {"w": torch.eye(2)})
    {'w': tensor([[ 6.,  0.],
            [ 0., 12.]])}
    """
    hessian = hessian_of(objective, params)
    lead = leading_shape(params, vectors)
    flat = flatten({name: vectors[name] for name in params}, len(lead))
    product = hessian.product(flat.detach().to(hessian.point).reshape(-1, 1, flat.shape[-1]))
    return unflatten(product.reshape(*lead, -1), hessian.shapes)


def hessian_of(
    objective: Objective,
    params: Mapping[str, Tensor],
    *,
    replicas: bool = False,
    batches: Any = None,
    preconditioner: Mapping[str, Tensor] | None = None,
    block: Block | None = None,
    chunk: int | None = None,
    retain: bool = True,
) -> Hessian:
    """Return the (block of the, preconditioned) Hessian of an objective, averaged over *batches*.

    The gradient of the sum over replicas is built once and differentiated again for every product; the
    arguments are those of `stability.curvature.spectrum`.
    """
    check_params(params, replicas)
    free = {name: params[name] for name in chosen_names(params, block)}
    fixed = {name: value.detach() for name, value in params.items() if name not in free}
    shapes = {name: value.shape[int(replicas) :] for name, value in free.items()}
    point = flatten(free, int(replicas)).detach()
    point = point if replicas else point[None]

    def value(flat: Tensor, held: dict[str, Tensor], *batch: Any) -> Tensor:
        merged = unflatten(flat, shapes) | held
        return check_scalar(objective({name: merged[name] for name in params}, *batch))

    def graph(part: Any) -> Callable[[Tensor], Tensor]:
        return _product(lambda leaf: _values(value, leaf, fixed, part, replicas), point, _lanes(part, replicas))

    parts, total = _parts(batches, replicas, chunk)
    kept = [graph(part) for part in parts] if retain else None

    def product(vectors: Tensor) -> Tensor:
        graphs: Iterator[Callable] = iter(kept) if kept is not None else map(graph, parts)
        result = torch.zeros_like(vectors)
        for multiply in graphs:
            result += multiply(vectors)
        return result / total

    if preconditioner is None:
        return Hessian(point, shapes, product)
    scale = _inverse_root(preconditioner, free, int(replicas)).to(point)
    return Hessian(point, shapes, lambda vectors: scale * product(scale * vectors))


def _product(values_at: Callable[[Tensor], Tensor], point: Tensor, lanes: int) -> Callable[[Tensor], Tensor]:
    """Differentiate ``values_at`` (R,) once; the result multiplies vectors (V, R, P) by the Hessian."""
    width = max(1, LANES_AT_ONCE.get(point.device.type, 1) // max(1, lanes))
    gradient: Tensor | None = None
    # The fused attention kernels have no second derivative.
    with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        leaf = point.clone().requires_grad_()
        values = values_at(leaf)
        if values.requires_grad:
            (gradient,) = torch.autograd.grad(values.sum(), leaf, create_graph=True, allow_unused=True)
    # Zero, or NaN where the objective is not finite: such a point has no curvature.
    nothing = (0 * values.detach())[:, None]

    def multiply(vectors: Tensor) -> Tensor:
        if gradient is None or not gradient.requires_grad:
            return torch.zeros_like(vectors) + nothing
        return torch.cat([_backward(gradient, leaf, group) for group in vectors.split(width)]) + nothing

    return multiply


def _backward(gradient: Tensor, leaf: Tensor, vectors: Tensor) -> Tensor:
    many = len(vectors) > 1
    # None if the gradient depends on closed-over tensors only.
    product: Tensor | None = torch.autograd.grad(
        gradient,
        leaf,
        vectors if many else vectors[0],
        retain_graph=True,
        allow_unused=True,
        is_grads_batched=many,
    )[0]
    if product is None:
        return torch.zeros_like(vectors)
    return product if many else product[None]


def _values(value: Objective, flat: Tensor, fixed: dict[str, Tensor], part: Any, replicas: bool) -> Tensor:
    """Return the sum of the objective over the batches of one *part*, (R,)."""

    def summed(flat: Tensor, held: dict[str, Tensor], *batches: Any) -> Tensor:
        if not batches:
            return value(flat, held)
        if pytree.tree_leaves(batches)[0].shape[0] == 1:
            return value(flat, held, *pytree.tree_map(lambda leaf: leaf[0], batches))
        return torch.vmap(value, in_dims=(None, None, 0))(flat, held, *batches).sum()

    arguments = () if part is None else (part,)
    if replicas:
        return torch.vmap(summed)(flat, fixed, *arguments)
    return summed(flat[0], fixed, *arguments)[None]


def _parts(batches: Any, replicas: bool, chunk: int | None) -> tuple[list[Any], int]:
    """Return *batches* cut into parts of at most *chunk* whole batches, and their total number."""
    if chunk is not None and chunk < 1:
        raise InputError(f"chunk is {chunk}; allowed: a whole number of batches of at least 1")
    if batches is None:
        return [None], 1
    axis = int(replicas)
    sizes = {leaf.shape[axis : axis + 1] for leaf in pytree.tree_leaves(batches)}
    total = next(iter(sizes))[0] if len(sizes) == 1 and all(sizes) else 0
    if not total:
        where = "second axis, after the replicas'" if replicas else "first axis"
        given = sorted(tuple(leaf.shape) for leaf in pytree.tree_leaves(batches))
        raise InputError(
            f"batches have shapes {given}; allowed: tensors that share the number of batches as their {where}"
        )
    size = min(chunk or total, total)

    def cut(start: int) -> Any:
        return pytree.tree_map(lambda leaf: leaf.narrow(axis, start, min(size, total - start)), batches)

    return [cut(start) for start in range(0, total, size)], total


def whole_batches(batches: Any) -> list[Any]:
    """Return the batches of a pytree (M, ...) one by one, or ``[None]`` where there are none."""
    if batches is None:
        return [None]
    return [pytree.tree_map(lambda leaf: leaf[0], part) for part in _parts(batches, False, 1)[0]]


def _lanes(part: Any, replicas: bool) -> int:
    leaves = pytree.tree_leaves(part)
    return math.prod(leaves[0].shape[: 1 + int(replicas)]) if leaves and part is not None else 1


def _inverse_root(preconditioner: Mapping[str, Tensor], free: Mapping[str, Tensor], axes: int) -> Tensor:
    for name, value in free.items():
        if name not in preconditioner:
            raise InputError(f"the preconditioner lacks {name!r}{nearest(name, preconditioner)}")
        if preconditioner[name].shape != value.shape:
            given, allowed = tuple(preconditioner[name].shape), tuple(value.shape)
            raise InputError(f"the preconditioner of {name!r} has shape {given}; allowed: {allowed}")
        if bool((preconditioner[name] <= 0).any()):
            raise InputError(f"the preconditioner of {name!r} has entries that are not positive; allowed: P > 0")
    return flatten({name: preconditioner[name] for name in free}, axes).detach().rsqrt()


def flatten(tensors: Mapping[str, Tensor], axes: int) -> Tensor:
    """Return *tensors* as one (..., P), keeping the first *axes* axes.

    >>> flatten({"w": torch.ones(2, 3), "b": torch.tensor(5.0)}, 0).shape
    torch.Size([7])
    """
    return torch.cat([t.reshape(*t.shape[:axes], math.prod(t.shape[axes:])) for t in tensors.values()], dim=-1)


def unflatten(flat: Tensor, shapes: Shapes) -> dict[str, Tensor]:
    """Return the named tensors of a *flat* (..., P), the inverse of `flatten`."""
    parts = flat.split([shape.numel() for shape in shapes.values()], dim=-1)
    return {
        name: part.reshape(flat.shape[:-1] + shape) for part, (name, shape) in zip(parts, shapes.items(), strict=True)
    }


def chosen_names(params: Mapping[str, Tensor], block: Block | None) -> list[str]:
    """Return the names in *block* (a predicate or a collection; None: all), in the order of *params*."""
    if block is None:
        return list(params)
    if not callable(block):
        names = {block} if isinstance(block, str) else set(block)
        for name in sorted(names - set(params)):
            raise InputError(f"block: unknown parameter {name!r}{nearest(name, params)}")
        return [name for name in params if name in names] or _no_block(params)
    return [name for name in params if block(name)] or _no_block(params)


def _no_block(params: Mapping[str, Tensor]) -> list[str]:
    raise InputError(f"the block holds no parameter; allowed: some of {', '.join(params)}")


def check_params(params: Mapping[str, Tensor], replicas: bool) -> None:
    """Raise `InputError` unless *params* share float32 or float64, a device and, if asked, replicas."""
    dtypes = sorted({str(value.dtype).removeprefix("torch.") for value in params.values()})
    if dtypes not in (["float32"], ["float64"]):
        given = ", ".join(dtypes) or "no parameter"
        raise InputError(f"curvature was given {given}; allowed: parameters all of float32 or all of float64")
    if len(devices := {str(value.device) for value in params.values()}) > 1:
        raise InputError(f"parameters are on {', '.join(sorted(devices))}; allowed: one device")
    if replicas and len(sizes := {tuple(value.shape[:1]) for value in params.values()}) > 1:
        raise InputError(f"parameters start with axes {sorted(sizes)}; allowed: the same replica axis for all")
    if replicas and sizes <= {(), (0,)}:
        raise InputError("parameters have no replica axis; allowed: a leading axis of at least 1, the same for all")


def check_scalar(value: Tensor) -> Tensor:
    """Return the objective's *value*, or raise `InputError` if it is not a scalar."""
    if value.dim():
        raise InputError(f"the objective returned shape {tuple(value.shape)}; allowed: a scalar")
    return value


def leading_shape(params: Mapping[str, Tensor], vectors: Mapping[str, Tensor]) -> torch.Size:
    """Return the leading axes that *vectors* have beyond *params*, or raise `InputError`."""
    if set(params) != set(vectors):
        odd = ", ".join(sorted(set(params) ^ set(vectors)))
        raise InputError(f"params and vectors differ in {odd}; allowed: the same names in both")
    first = next(iter(params))
    lead = vectors[first].shape[: max(0, vectors[first].dim() - params[first].dim())]
    for name, value in params.items():
        if vectors[name].shape != lead + value.shape:
            given, allowed = tuple(vectors[name].shape), tuple(lead + value.shape)
            raise InputError(f"vectors[{name!r}] has shape {given}; allowed: {allowed}")
    return lead
