"""Torch's own layers, run forward and backward for all replicas at once: what each known type of module does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stability.probes import Params

Pull = Callable[[Tensor], Tensor | None]
"""From the derivative by an output to that by the input, if that was wanted; those by the parameters it writes down."""

Layer = Callable[[Tensor, bool], tuple[Tensor, Pull]]
"""From samples (R, B, ...) and whether the derivative by them is wanted, to the output and the way back."""

Step = tuple[Layer, bool]
"""A layer with its parameters, and whether any of these are trained."""

Own = dict[str, Any]
"""A module's parameters (R, ...), or the places of their gradients, by name; those of a part are one more of these."""

Known = Callable[[Any, Own, Own, Tensor, bool], tuple[Tensor, Pull]]
"""The layer that a module is, given its parameters and the places of their gradients. What it lacks is missing among
the former, what is not trained among the latter."""

LAYERS: dict[type[nn.Module], Known] = {}
"""What is known of each type of module; of a subclass nothing is."""

LINE = 16
"""Numbers of a line of cache, in float32."""

gelu_backward = torch.ops.aten.gelu_backward.default
norm_backward = torch.ops.aten.native_layer_norm_backward.default


def known(*types: type[nn.Module]) -> Callable[[Known], Known]:
    """Return a decorator that says what modules of these types do."""

    def register(layer: Known) -> Known:
        LAYERS.update(dict.fromkeys(types, layer))
        return layer

    return register


def nested(params: Params) -> Own:
    """Return each module's parameters, by name, beside those of its parts: {"0": {"weight": ..., "bias": ...}}."""
    tree: Own = {}
    for name, value in params.items():
        *places, last = name.split(".")
        node = tree
        for place in places:
            node = node.setdefault(place, {})
        node[last] = value
    return tree


def part(module: nn.Module, params: Own, places: Own, name: str) -> Step:
    """Return the part of *module* that is called *name*, with what is its own of parameters and places."""
    own, into = getattr(module, name), places.get(name, {})
    return partial(LAYERS[type(own)], own, params.get(name, {}), into), bool(into)


def chained(steps: Sequence[Step], x: Tensor, wanted: bool) -> tuple[Tensor, Pull]:
    """Return what layers make of samples one after the other, and the way back."""
    pulls: list[Pull] = []
    for layer, trained in steps:
        x, pull = layer(x, wanted)
        pulls.append(pull)
        wanted = wanted or trained
    return x, partial(_back, pulls)


def _back(pulls: list[Pull], slope: Tensor | None) -> Tensor | None:
    # Popped, so that what a layer keeps is freed as soon as it is of no more use.
    while pulls and slope is not None:
        slope = pulls.pop()(slope)
    return slope


@known(nn.Sequential)
def _sequential(module: nn.Sequential, params: Own, places: Own, x: Tensor, wanted: bool) -> tuple[Tensor, Pull]:
    # Not `named_children`, which tells of a layer that is used twice only once.
    return chained([part(module, params, places, name) for name in module._modules], x, wanted)


def fills_lines(*sizes: int) -> bool:
    """Return whether replicas that have so many numbers each all begin a line of the cache.

    Where they do not, a replica's bits would depend on its place: ``torch.bmm`` may sum in another order, and functions
    such as ``exp`` treat what is left at the end of all numbers by other instructions than the rest.
    """
    return not any(size % LINE for size in sizes)


def apart(layer: Layer, x: Tensor, wanted: bool) -> tuple[Tensor, Pull]:
    """Return what *layer* does, of replicas that each begin a line of the cache."""
    alone = [layer(own.clone(), wanted) for own in x.split(1)]

    def back(slope: Tensor) -> Tensor | None:
        found = [pull(own.clone()) for (_, pull), own in zip(alone, slope.split(1), strict=True)]
        return torch.cat([own for own in found if own is not None]) if wanted else None

    return torch.cat([y for y, _ in alone]), back


def bmm_apart(left: Tensor, right: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return what ``torch.bmm`` does, of matrices that each begin a line of the cache."""
    pairs = zip(left.split(1), right.split(1), strict=True)
    return torch.cat([torch.bmm(one.clone(), other.clone()) for one, other in pairs], out=out)


@known(nn.Linear)
def _linear(module: nn.Linear, params: Own, places: Own, x: Tensor, wanted: bool) -> tuple[Tensor, Pull]:
    rows, weight = x.flatten(1, -2), params["weight"]
    bmm = torch.bmm if fills_lines(rows.shape[1] * rows.shape[2], rows.shape[1] * weight.shape[1]) else bmm_apart
    product = bmm(rows, weight.mT)
    if "bias" in params:
        # Added afterwards, as under vmap: where matrices are small, `baddbmm` would sum in another order.
        product.add_(params["bias"][:, None])

    def pull(slope: Tensor) -> Tensor | None:
        slope = slope.flatten(1, -2)
        if "weight" in places:
            # Weights lie turned: this product is written where it belongs, with no copy.
            bmm(rows.mT, slope, out=places["weight"].mT)
        if "bias" in places:
            torch.sum(slope, 1, out=places["bias"])
        return bmm(slope, weight).view(x.shape) if wanted else None

    return product.unflatten(1, x.shape[1:-1]), pull


@known(nn.LayerNorm)
def _layer_norm(module: nn.LayerNorm, params: Own, places: Own, x: Tensor, wanted: bool) -> tuple[Tensor, Pull]:
    shape = module.normalized_shape
    size = torch.Size(shape).numel()
    unit, mean, rate = torch.native_layer_norm(x, shape, None, None, module.eps)
    # Samples and positions in one axis, what is normalized in another; so the replicas' own scales fit.
    rows = unit.view(len(x), -1, size)
    own = {name: value.view(len(x), 1, size) for name, value in params.items()}
    y = rows
    if "weight" in own:
        y = torch.addcmul(own["bias"], rows, own["weight"]) if "bias" in own else rows * own["weight"]

    def pull(slope: Tensor) -> Tensor | None:
        slope = slope.reshape(rows.shape)
        if "bias" in places:
            torch.sum(slope, 1, out=places["bias"].view(len(x), size))
        if "weight" in places:
            torch.sum(slope * rows, 1, out=places["weight"].view(len(x), size))
        if not wanted:
            return None
        if "weight" in own:
            slope = slope * own["weight"]
        found: Tensor = norm_backward(slope.view(x.shape), x, shape, mean, rate, None, None, [True, False, False])[0]
        return found

    return y.view(x.shape), pull


@known(nn.Embedding)
def _embedding(module: nn.Embedding, params: Own, places: Own, x: Tensor, wanted: bool) -> tuple[Tensor, Pull]:
    weight, ids = params["weight"], x.flatten(1).long()
    # `gather` refuses a token beyond the vocabulary, and a negative one.
    rows = weight.gather(1, ids[..., None].expand(-1, -1, weight.shape[-1]))

    def pull(slope: Tensor) -> None:
        if "weight" in places:
            replica = torch.arange(len(x), device=x.device)[:, None]
            place = places["weight"].zero_()
            place.index_put_((replica, ids), slope.reshape(rows.shape), accumulate=True)
            if module.padding_idx is not None:
                place[:, module.padding_idx] = 0.0

    return rows.view(*x.shape, -1), pull


@known(nn.Flatten)
def _flatten(module: nn.Flatten, params: Own, places: Own, x: Tensor, wanted: bool) -> tuple[Tensor, Pull]:
    # Counted from the front, axes lie one further on than in one replica.
    start, end = (axis + 1 if axis >= 0 else axis for axis in (module.start_dim, module.end_dim))
    return x.flatten(start, end), lambda slope: slope.view(x.shape) if wanted else None


@known(nn.GELU)
def _gelu(module: nn.GELU, params: Own, places: Own, x: Tensor, wanted: bool) -> tuple[Tensor, Pull]:
    return module(x), lambda slope: gelu_backward(slope, x, approximate=module.approximate) if wanted else None


@known(nn.ELU, nn.SiLU, nn.Softplus, nn.Sigmoid, nn.Tanh)
def _curve(module: nn.Module, params: Own, places: Own, x: Tensor, wanted: bool) -> tuple[Tensor, Pull]:
    """Exponentials of every number on its own."""
    layer = partial(_one_by_one, module, params, places)
    return layer(x, wanted) if fills_lines(x.shape[1:].numel()) else apart(layer, x, wanted)


@known(nn.Identity, nn.ReLU, nn.LeakyReLU)
def _one_by_one(module: nn.Module, params: Own, places: Own, x: Tensor, wanted: bool) -> tuple[Tensor, Pull]:
    """Look at every number on its own, without parameters."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(wanted)
        # A layer told to work in place gets a copy: neither a batch nor what another layer keeps is its own.
        y: Tensor = module(x.clone() if getattr(module, "inplace", False) else x)
    return y.detach(), lambda slope: torch.autograd.grad(y, x, slope)[0] if wanted else None
