"""Hessian-vector products of any scalar objective, for many replicas and many vectors at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from stability.curvature.graphs import CPU_BYTES, SECOND_ORDER, Graph, bytes_of, graph_of, products
from stability.devices import room_on
from stability.registry import InputError, nearest

Objective = Callable[..., Tensor]
Named = Mapping[str, Tensor]
Shapes = Mapping[str, torch.Size]
Block = Callable[[str], bool] | Collection[str]


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
    arguments are those of `stability.curvature.spectrum`. Replicas, batches and vectors share one backward pass as far
    as a processor's cache or an accelerator's memory holds them.
    """
    value, free, fixed = _task(objective, params, replicas, block, chunk)
    shapes = {name: value.shape[int(replicas) :] for name, value in free.items()}
    point = flatten(free, int(replicas))
    point = point if replicas else point[None]

    total = _number_of_batches(batches, replicas)
    lanes = _lanes_at_once(value, free, fixed, batches, replicas)
    size = min(chunk or max(1, lanes // len(point)), total)
    parts = _parts(batches, replicas, size)
    groups = groups_of(len(point), lanes // size)

    def graph(group: slice, part: tuple[Any, ...]) -> Graph:
        at, held, some = at_index((free, fixed, part), group) if replicas else (free, fixed, part)
        return graph_of(lambda leaves: _values(value, replicas, leaves, held, *some), at)

    kept = [[graph(group, part) for part in parts] for group in groups] if retain else None

    def product(vectors: Tensor) -> Tensor:
        columns = []
        for place, group in enumerate(groups):
            graphs = kept[place] if kept is not None else (graph(group, part) for part in parts)
            width = max(1, lanes // (size * (group.stop - group.start)))
            some = vectors[:, group].split(width)
            columns.append(_added(_joined([_product(one, few, shapes, replicas) for few in some], 0) for one in graphs))
        result = _joined(columns, 1)
        return result.div_(total) if total > 1 else result

    if preconditioner is None:
        return Hessian(point, shapes, product)
    scale = _inverse_root(preconditioner, free, int(replicas)).to(point)
    return Hessian(point, shapes, lambda vectors: scale * product(scale * vectors))


def replicas_at_once(
    objective: Objective,
    params: Mapping[str, Tensor],
    *,
    batches: Any = None,
    block: Block | None = None,
    chunk: int | None = None,
    retain: bool = True,
    vectors: int = 0,
) -> list[slice]:
    """Return the groups of replicas that share a backward pass in `hessian_of`.

    On an accelerator memory bounds them: the graphs of all batches, if they are kept (*retain*), and the so many
    *vectors* of each replica that the caller holds. A function of the objective, of shapes and of the device's whole
    memory alone. Raises `InputError` as `hessian_of` does.
    """
    value, free, fixed = _task(objective, params, True, block, chunk)
    total = _number_of_batches(batches, True)
    size = min(chunk or 1, total)
    first = next(iter(free.values()))
    if first.device.type == "cpu":
        return groups_of(len(first), _lanes_at_once(value, free, fixed, batches, True) // size)
    lane = _bytes_of_lane(value, free, fixed, batches, True)
    held = vectors * sum(tensor[0].numel() * tensor.element_size() for tensor in free.values())
    return groups_of(len(first), room_on(first.device, 0) // ((total if retain else size) * lane + held))


def _task(
    objective: Objective, params: Mapping[str, Tensor], replicas: bool, block: Block | None, chunk: int | None
) -> tuple[Objective, dict[str, Tensor], dict[str, Tensor]]:
    """Return the objective of the free and the fixed parameters, and both of these; or raise `InputError`."""
    check_params(params, replicas)
    if chunk is not None and chunk < 1:
        raise InputError(f"chunk is {chunk}; allowed: a whole number of batches of at least 1")
    free = {name: params[name].detach() for name in chosen_names(params, block)}
    fixed = {name: value.detach() for name, value in params.items() if name not in free}

    def value(moved: Named, held: Named, *batch: Any) -> Tensor:
        return check_scalar(objective({name: (moved if name in moved else held)[name] for name in params}, *batch))

    return value, free, fixed


def _product(graph: Graph, vectors: Tensor, shapes: Shapes, replicas: bool) -> Tensor:
    """Return the product of one *graph* with *vectors* (V, R, P), of the same shape."""
    named = unflatten(vectors if replicas else vectors[:, 0], shapes)
    parts = zip(named.items(), products(graph, list(named.values())), strict=True)
    found = {name: torch.zeros_like(vector) if part is None else part for (name, vector), part in parts}
    result = flatten(found, 1 + int(replicas)).view(vectors.shape)
    return result + graph.nothing[:, None] if graph.may_be_nan else result


def _joined(tensors: list[Tensor], dim: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def _added(tensors: Iterator[Tensor]) -> Tensor:
    total = next(tensors)
    for tensor in tensors:
        total += tensor
    return total


def _lanes_at_once(value: Objective, free: Named, fixed: Named, batches: Any, replicas: bool) -> int:
    """Return how many evaluations of one replica on one batch go into one backward pass, at least 1.

    A function of the objective, of shapes and of the device's whole memory alone, so that numbers never depend on the
    machine's state.
    """
    device = next(iter(free.values())).device
    return max(1, room_on(device, CPU_BYTES) // _bytes_of_lane(value, free, fixed, batches, replicas))


def _bytes_of_lane(value: Objective, free: Named, fixed: Named, batches: Any, replicas: bool) -> int:
    """Return what one replica on one batch computes in one evaluation; on an accelerator, what it keeps in memory."""
    (part, *_) = _parts(batches, replicas, 1)
    one, held, some = at_index((free, fixed, part), 0) if replicas else (free, fixed, part)
    work = bytes_of(lambda: value(one, held, *at_index(some, 0)), one)
    return work if next(iter(free.values())).device.type == "cpu" else SECOND_ORDER * work


def groups_of(replicas: int, most: int) -> list[slice]:
    """Return replicas in even groups of at most *most*, one by one below 3.

    One replica takes other kernels than several do: no group but one of all is left with one beside larger ones.
    """
    count = math.ceil(replicas / most) if most > 2 else replicas
    ends = [replicas * place // count for place in range(count + 1)]
    return [slice(start, end) for start, end in itertools.pairwise(ends)]


def at_index(tree: Any, index: slice | int) -> Any:
    """Return the entries at *index* of each tensor's leading axis; None stays None."""
    return pytree.tree_map(lambda leaf: None if leaf is None else leaf[index], tree)


def _values(value: Objective, replicas: bool, moved: Named, fixed: Named, *batches: Any) -> Tensor:
    """Return the sum of the objective over some *batches*, if there are any, (R,)."""

    def summed(moved: Named, held: Named, *batches: Any) -> Tensor:
        if not batches:
            return value(moved, held)
        if pytree.tree_leaves(batches)[0].shape[0] == 1:
            return value(moved, held, *at_index(batches, 0))
        return torch.vmap(value, in_dims=(None, None, 0))(moved, held, *batches).sum()

    if not replicas:
        return summed(moved, fixed, *batches)[None]
    if len(next(iter(moved.values()))) == 1:
        return summed(*at_index((moved, fixed, *batches), 0))[None]
    return torch.vmap(summed)(moved, fixed, *batches)


def _number_of_batches(batches: Any, replicas: bool) -> int:
    """Return how many whole *batches* there are, or raise `InputError` where their tensors disagree."""
    if batches is None:
        return 1
    axis = int(replicas)
    sizes = {leaf.shape[axis : axis + 1] for leaf in pytree.tree_leaves(batches)}
    total = next(iter(sizes))[0] if len(sizes) == 1 and all(sizes) else 0
    if not total:
        where = "second axis, after the replicas'" if replicas else "first axis"
        given = sorted(tuple(leaf.shape) for leaf in pytree.tree_leaves(batches))
        raise InputError(
            f"batches have shapes {given}; allowed: tensors that share the number of batches as their {where}"
        )
    return total


def _parts(batches: Any, replicas: bool, size: int) -> list[tuple[Any, ...]]:
    """Return *batches* cut into parts of at most *size* whole batches, each the objective's further arguments."""
    if batches is None:
        return [()]
    axis, total = int(replicas), _number_of_batches(batches, replicas)

    def cut(start: int) -> tuple[Any, ...]:
        return (pytree.tree_map(lambda leaf: leaf.narrow(axis, start, min(size, total - start)), batches),)

    return [cut(start) for start in range(0, total, size)]


def whole_batches(batches: Any) -> list[tuple[Any, ...]]:
    """Return the objective's further arguments for each batch of a pytree (M, ...): none where there are none."""
    return [at_index(part, 0) for part in _parts(batches, False, 1)]


def _inverse_root(preconditioner: Mapping[str, Tensor], free: Mapping[str, Tensor], axes: int) -> Tensor:
    for name, value in free.items():
        if name not in preconditioner:
            raise InputError(f"the preconditioner lacks {name!r}{nearest(name, preconditioner)}")
        if preconditioner[name].shape != value.shape:
            given, allowed = tuple(preconditioner[name].shape), tuple(value.shape)
            raise InputError(f"the preconditioner of {name!r} has shape {given}; allowed: {allowed}")
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
