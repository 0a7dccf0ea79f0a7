"""Hessian-vector products of any scalar objective, batched over replicas and vectors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from stability.curvature.graphs import CPU_BYTES, SECOND_ORDER, Graph, bytes_of, graph_hvp, graph_of
from stability.devices import room_on
from stability.registry import InputError, nearest

Objective = Callable[..., Tensor]
Named = Mapping[str, Tensor]
Shapes = Mapping[str, torch.Size]
ParamFilter = Callable[[str], bool] | Collection[str]
"""Selects parameters: a predicate on their names, or a collection of names."""


@dataclass(frozen=True)
class Hessian:
    """The Hessian of an objective, as an operator on flat vectors.

    Attributes:
        point: the parameters (R, P) at which it is taken.
        shapes: shape of each parameter of one replica.
        product: maps vectors (V, R, P) to the same shape; NaN for a replica whose objective is not finite.
    """

    point: Tensor
    shapes: Shapes
    product: Callable[[Tensor], Tensor]


def hvp(objective: Objective, params: Mapping[str, Tensor], vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the Hessian of ``objective(params) -> scalar`` times each of *vectors*.

    H v = d/dp <dL/dp, v> (Pearlmutter 1994, "Fast exact multiplication by the Hessian"). *vectors* is like *params*,
    each tensor with the same leading axes (none, one or several); all vectors share one graph. Raises `InputError` if
    names or shapes differ.

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
    batched: bool = False,
    batches: Any = None,
    preconditioner: Mapping[str, Tensor] | None = None,
    block: ParamFilter | None = None,
    chunk_size: int | None = None,
    retain_graph: bool = True,
) -> Hessian:
    """Return the (block of the, preconditioned) Hessian of an objective, averaged over *batches*.

    The gradient of the sum over replicas is differentiated again for every product. Replicas, batches and vectors share
    one backward pass as far as they fit in a processor's cache or an accelerator's memory.

    Args:
        objective: ``objective(params, batch)``, or ``objective(params)`` without batches: a scalar.
        params: the point, by name.
        batched: whether all parameters have a leading replica axis.
        batches: stacked batches, over which the objective is averaged.
        preconditioner: positive diagonal like *params*.
        block: the parameters of the block; None: all.
        chunk_size: lanes of one backward pass; None: as many as fit.
        retain_graph: keep the graph of the gradient for all products.
    """
    value, free, fixed = _partial_objective(objective, params, batched, block, chunk_size)
    shapes = {name: value.shape[int(batched) :] for name, value in free.items()}
    point = flatten(free, int(batched))
    point = point if batched else point[None]

    total = _number_of_batches(batches, batched)
    lanes = _lanes_at_once(value, free, fixed, batches, batched)
    size = min(chunk_size or max(1, lanes // len(point)), total)
    parts = _parts(batches, batched, size)
    groups = replica_slices(len(point), lanes // size)

    def build_graph(group: slice, part: tuple[Any, ...]) -> Graph:
        point, constants, batch = at_index((free, fixed, part), group) if batched else (free, fixed, part)
        return graph_of(lambda leaves: _values(value, batched, leaves, constants, *batch), point)

    kept = [[build_graph(group, part) for part in parts] for group in groups] if retain_graph else None

    def product(vectors: Tensor) -> Tensor:
        columns = []
        for index, group in enumerate(groups):
            graphs = kept[index] if kept is not None else (build_graph(group, part) for part in parts)
            width = max(1, lanes // (size * (group.stop - group.start)))
            split = vectors[:, group].split(width)
            columns.append(_sum(_cat([_product(graph, v, shapes, batched) for v in split], 0) for graph in graphs))
        result = _cat(columns, 1)
        return result.div_(total) if total > 1 else result

    if preconditioner is None:
        return Hessian(point, shapes, product)
    scale = _inverse_root(preconditioner, free, int(batched)).to(point)
    return Hessian(point, shapes, lambda vectors: scale * product(scale * vectors))


def replicas_at_once(
    objective: Objective,
    params: Mapping[str, Tensor],
    *,
    batches: Any = None,
    block: ParamFilter | None = None,
    chunk_size: int | None = None,
    retain_graph: bool = True,
    vectors: int = 0,
) -> list[slice]:
    """Return the groups of replicas that share a backward pass in `hessian_of`.

    On an accelerator they are bounded by memory: that of the graphs of all batches, if they are kept (*retain_graph*),
    and of the vectors. The groups depend only on the objective, the shapes and the device's total memory. Raises
    `InputError` as `hessian_of` does.

    Args:
        objective: as for `hessian_of`.
        params: the point, each with a leading replica axis.
        batches: stacked batches with a leading replica axis.
        block: the parameters of the block; None: all.
        chunk_size: number of replicas in a group; None: as many as fit.
        retain_graph: whether the graphs are kept.
        vectors: number of flat vectors that the caller holds for each replica.
    """
    value, free, fixed = _partial_objective(objective, params, True, block, chunk_size)
    total = _number_of_batches(batches, True)
    size = min(chunk_size or 1, total)
    first = next(iter(free.values()))
    if first.device.type == "cpu":
        return replica_slices(len(first), _lanes_at_once(value, free, fixed, batches, True) // size)
    lane = _bytes_of_lane(value, free, fixed, batches, True)
    vector_bytes = vectors * sum(tensor[0].numel() * tensor.element_size() for tensor in free.values())
    per_replica = (total if retain_graph else size) * lane + vector_bytes
    return replica_slices(len(first), room_on(first.device, 0) // per_replica)


def _partial_objective(
    objective: Objective, params: Mapping[str, Tensor], batched: bool, block: ParamFilter | None, chunk_size: int | None
) -> tuple[Objective, dict[str, Tensor], dict[str, Tensor]]:
    """Return ``value(free, fixed, *batch)`` and the free and fixed parameters; or raise `InputError`."""
    check_params(params, batched)
    if chunk_size is not None and chunk_size < 1:
        raise InputError(f"chunk_size is {chunk_size}; allowed: a whole number of batches of at least 1")
    free = {name: params[name].detach() for name in chosen_names(params, block)}
    fixed = {name: value.detach() for name, value in params.items() if name not in free}

    def value(free: Named, fixed: Named, *batch: Any) -> Tensor:
        return check_scalar(objective({name: (free if name in free else fixed)[name] for name in params}, *batch))

    return value, free, fixed


def _product(graph: Graph, vectors: Tensor, shapes: Shapes, batched: bool) -> Tensor:
    """Return the product of one *graph* with *vectors* (V, R, P), of the same shape."""
    named = unflatten(vectors if batched else vectors[:, 0], shapes)
    pairs = zip(named.items(), graph_hvp(graph, list(named.values())), strict=True)
    products = {name: torch.zeros_like(vector) if product is None else product for (name, vector), product in pairs}
    result = flatten(products, 1 + int(batched)).view(vectors.shape)
    return result + graph.zero_or_nan[:, None] if graph.may_be_nan else result


def _cat(tensors: list[Tensor], dim: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def _sum(tensors: Iterator[Tensor]) -> Tensor:
    total = next(tensors)
    for tensor in tensors:
        total += tensor
    return total


def _lanes_at_once(value: Objective, free: Named, fixed: Named, batches: Any, batched: bool) -> int:
    """Return how many lanes (one replica on one batch) go into one backward pass, at least 1.

    It depends only on the objective, the shapes and the device's total memory, so that results never depend on the
    machine's current state.
    """
    device = next(iter(free.values())).device
    return max(1, room_on(device, CPU_BYTES) // _bytes_of_lane(value, free, fixed, batches, batched))


def _bytes_of_lane(value: Objective, free: Named, fixed: Named, batches: Any, batched: bool) -> int:
    """Return the bytes that one lane computes in one evaluation; on an accelerator, those that it keeps in memory."""
    (part, *_) = _parts(batches, batched, 1)
    point, constants, batch = at_index((free, fixed, part), 0) if batched else (free, fixed, part)
    work = bytes_of(lambda: value(point, constants, *at_index(batch, 0)), point)
    return work if next(iter(free.values())).device.type == "cpu" else SECOND_ORDER * work


def replica_slices(replicas: int, most: int) -> list[slice]:
    """Return even groups of at most *most* replicas; if *most* is below 3, each replica is a group.

    A single replica uses other kernels than several do, so no group of one is left next to larger groups.
    """
    count = math.ceil(replicas / most) if most > 2 else replicas
    bounds = [replicas * index // count for index in range(count + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]


def at_index(tree: Any, index: slice | int) -> Any:
    """Return the entries at *index* of each tensor's leading axis; None stays None."""
    return pytree.tree_map(lambda leaf: None if leaf is None else leaf[index], tree)


def _values(value: Objective, batched: bool, free: Named, fixed: Named, *batches: Any) -> Tensor:
    """Return the sum of the objective over *batches*, or its value if there are none, (R,)."""

    def sum_over_batches(free: Named, fixed: Named, *batches: Any) -> Tensor:
        if not batches:
            return value(free, fixed)
        if pytree.tree_leaves(batches)[0].shape[0] == 1:
            return value(free, fixed, *at_index(batches, 0))
        return torch.vmap(value, in_dims=(None, None, 0))(free, fixed, *batches).sum()

    if not batched:
        return sum_over_batches(free, fixed, *batches)[None]
    if len(next(iter(free.values()))) == 1:
        return sum_over_batches(*at_index((free, fixed, *batches), 0))[None]
    return torch.vmap(sum_over_batches)(free, fixed, *batches)


def _number_of_batches(batches: Any, batched: bool) -> int:
    """Return the number of whole *batches*; raise `InputError` if their tensors disagree."""
    if batches is None:
        return 1
    axis = int(batched)
    sizes = {leaf.shape[axis : axis + 1] for leaf in pytree.tree_leaves(batches)}
    total = next(iter(sizes))[0] if len(sizes) == 1 and all(sizes) else 0
    if not total:
        where = "second axis, after the replicas'" if batched else "first axis"
        shapes = sorted(tuple(leaf.shape) for leaf in pytree.tree_leaves(batches))
        raise InputError(
            f"batches have shapes {shapes}; allowed: tensors that share the number of batches as their {where}"
        )
    return total


def _parts(batches: Any, batched: bool, size: int) -> list[tuple[Any, ...]]:
    """Split *batches* into parts of at most *size*; each part holds the objective's further arguments."""
    if batches is None:
        return [()]
    axis, total = int(batched), _number_of_batches(batches, batched)

    def part(start: int) -> tuple[Any, ...]:
        return (pytree.tree_map(lambda leaf: leaf.narrow(axis, start, min(size, total - start)), batches),)

    return [part(start) for start in range(0, total, size)]


def whole_batches(batches: Any) -> list[tuple[Any, ...]]:
    """Return the objective's further arguments for each batch of a pytree (M, ...); one empty tuple for None."""
    return [at_index(part, 0) for part in _parts(batches, False, 1)]


def _inverse_root(preconditioner: Mapping[str, Tensor], free: Mapping[str, Tensor], axes: int) -> Tensor:
    for name, value in free.items():
        if name not in preconditioner:
            raise InputError(f"the preconditioner lacks {name!r}{nearest(name, preconditioner)}")
        if preconditioner[name].shape != value.shape:
            shape, allowed = tuple(preconditioner[name].shape), tuple(value.shape)
            raise InputError(f"the preconditioner of {name!r} has shape {shape}; allowed: {allowed}")
    flat = flatten({name: preconditioner[name] for name in free}, axes).detach()
    if bool((flat <= 0).any()):
        name = next(name for name in free if bool((preconditioner[name] <= 0).any()))
        raise InputError(f"the preconditioner of {name!r} has entries that are not positive; allowed: P > 0")
    return flat.rsqrt()


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


def chosen_names(params: Mapping[str, Tensor], block: ParamFilter | None) -> list[str]:
    """Return the names that *block* selects (None: all), in the order of *params*."""
    if block is None:
        return list(params)
    selected = {block} if isinstance(block, str) else set(filter(block, params) if callable(block) else block)
    for name in sorted(selected - set(params)):
        raise InputError(f"block: unknown parameter {name!r}{nearest(name, params)}")
    if not selected:
        raise InputError(f"the block holds no parameter; allowed: some of {', '.join(params)}")
    return [name for name in params if name in selected]


def check_params(params: Mapping[str, Tensor], batched: bool) -> None:
    """Raise `InputError` unless *params* share float32 or float64, a device and, if *batched*, a replica axis."""
    dtypes = sorted({str(value.dtype).removeprefix("torch.") for value in params.values()})
    if dtypes not in (["float32"], ["float64"]):
        listed = ", ".join(dtypes) or "no parameter"
        raise InputError(f"curvature was given {listed}; allowed: parameters all of float32 or all of float64")
    if len(devices := {str(value.device) for value in params.values()}) > 1:
        raise InputError(f"parameters are on {', '.join(sorted(devices))}; allowed: one device")
    if batched and len(sizes := {tuple(value.shape[:1]) for value in params.values()}) > 1:
        raise InputError(f"parameters start with axes {sorted(sizes)}; allowed: the same replica axis for all")
    if batched and sizes <= {(), (0,)}:
        raise InputError("parameters have no replica axis; allowed: a leading axis of at least 1, the same for all")


def check_scalar(value: Tensor) -> Tensor:
    """Return the objective's *value*, or raise `InputError` if it is not a scalar."""
    if value.dim():
        raise InputError(f"the objective returned shape {tuple(value.shape)}; allowed: a scalar")
    return value


def leading_shape(params: Mapping[str, Tensor], vectors: Mapping[str, Tensor]) -> torch.Size:
    """Return the leading axes that *vectors* have beyond *params*, or raise `InputError`."""
    if set(params) != set(vectors):
        differing = ", ".join(sorted(set(params) ^ set(vectors)))
        raise InputError(f"params and vectors differ in {differing}; allowed: the same names in both")
    first = next(iter(params))
    lead = vectors[first].shape[: max(0, vectors[first].dim() - params[first].dim())]
    for name, value in params.items():
        if vectors[name].shape != lead + value.shape:
            shape, allowed = tuple(vectors[name].shape), tuple(lead + value.shape)
            raise InputError(f"vectors[{name!r}] has shape {shape}; allowed: {allowed}")
    return lead
