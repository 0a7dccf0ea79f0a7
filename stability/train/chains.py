"""Towers that are chains of torch's own layers, run forward and backward for all replicas at once.

Under vmap and autograd every call passes several layers of torch before it computes, and a gradient is copied to its
place afterwards; for a small perceptron both take longer than the arithmetic. Here a layer is one call for all
replicas, and its derivative, written out, goes straight into the flat gradient: the same arithmetic, to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from stability.probes import Params

Pull = Callable[[Tensor], Tensor | None]
"""From the derivative by an output to that by the input, if that was wanted; those by the parameters it writes down."""

Chain = Callable[[Params, Params, Tensor], tuple[Tensor, Pull]]
"""From parameters (R, ...), the places of their gradients and samples (R, B, ...) to the output, and back."""

Places = Mapping[str, Tensor | None]
"""A module's parameters, or the places of their gradients, by their own names; None for what it lacks."""

Layer = Callable[[nn.Module, Places, Places, Tensor, bool], tuple[Tensor, Pull]]
"""The same for one module, told also whether the derivative by its input is wanted."""

gelu_backward = torch.ops.aten.gelu_backward.default


def chain_of(tower: nn.Module) -> Chain | None:
    """Return the tower for all replicas at once, or None where a layer of it is not known here.

    A parameter without a place for its gradient has none computed. A tower that uses one parameter twice is not known,
    since the two gradients would have to be added.
    """
    steps = [(place, module, tuple(module._parameters)) for place, module in _steps(tower)]
    if not all(type(module) in LAYERS and not is_hooked(module) for _, module, _ in steps):
        return None
    read = [
        f"{place}{name}" for place, module, names in steps for name in names if module._parameters[name] is not None
    ]
    if sorted(read) != sorted(name for name, _ in tower.named_parameters()):
        return None

    def chain(params: Params, places: Params, x: Tensor) -> tuple[Tensor, Pull]:
        pulls, wanted = [], False
        for place, module, names in steps:
            own, into = ({name: given.get(f"{place}{name}") for name in names} for given in (params, places))
            x, pull = LAYERS[type(module)](module, own, into, x, wanted)
            pulls.append(pull)
            wanted = wanted or any(value is not None for value in into.values())
        return x, partial(_back, pulls)

    return chain


def _back(pulls: list[Pull], slope: Tensor | None) -> None:
    # Popped, so that what a layer keeps is freed as soon as it is of no more use.
    while pulls and slope is not None:
        slope = pulls.pop()(slope)


def _steps(module: nn.Module, place: str = "") -> Iterator[tuple[str, nn.Module]]:
    if type(module) is nn.Sequential and not is_hooked(module):
        # Not `named_children`, which tells of a layer that is used twice only once.
        for name, part in module._modules.items():
            assert part is not None
            yield from _steps(part, f"{place}{name}.")
    else:
        yield place, module


def is_hooked(module: nn.Module) -> bool:
    """Return whether something beside the module's own ``forward`` runs when it is called."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _linear(module: nn.Module, params: Places, places: Places, x: Tensor, wanted: bool) -> tuple[Tensor, Pull]:
    rows, weight, bias = x.flatten(1, -2), params["weight"], params["bias"]
    assert weight is not None
    product = torch.bmm(rows, weight.mT)
    # Added afterwards, as under vmap: where matrices are small, `baddbmm` would sum in another order.
    product = product if bias is None else product.add_(bias[:, None])

    def pull(slope: Tensor) -> Tensor | None:
        slope = slope.flatten(1, -2)
        if (place := places["weight"]) is not None:
            # Weights lie turned: this product is written where it belongs, with no copy.
            torch.bmm(rows.mT, slope, out=place.mT)
        if places["bias"] is not None:
            torch.sum(slope, 1, out=places["bias"])
        return torch.bmm(slope, weight).view(x.shape) if wanted else None

    return product.unflatten(1, x.shape[1:-1]), pull


def _flatten(module: nn.Module, params: Places, places: Places, x: Tensor, wanted: bool) -> tuple[Tensor, Pull]:
    assert isinstance(module, nn.Flatten)
    # Counted from the front, axes lie one further on than in one replica.
    start, end = (axis + 1 if axis >= 0 else axis for axis in (module.start_dim, module.end_dim))
    return x.flatten(start, end), lambda slope: slope.view(x.shape) if wanted else None


def _gelu(module: nn.Module, params: Places, places: Places, x: Tensor, wanted: bool) -> tuple[Tensor, Pull]:
    assert isinstance(module, nn.GELU)
    return module(x), lambda slope: gelu_backward(slope, x, approximate=module.approximate) if wanted else None


def _one_by_one(module: nn.Module, params: Places, places: Places, x: Tensor, wanted: bool) -> tuple[Tensor, Pull]:
    with torch.enable_grad():
        x = x.detach().requires_grad_(wanted)
        # A layer told to work in place gets a copy: neither a batch nor what another layer keeps is its own.
        y: Tensor = module(x.clone() if getattr(module, "inplace", False) else x)
    return y.detach(), lambda slope: torch.autograd.grad(y, x, slope)[0] if wanted else None


ACTIVATIONS = (nn.Identity, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.Softplus, nn.Sigmoid, nn.Tanh)
"""Layers without parameters that look at every number on its own."""

LAYERS: Mapping[type[nn.Module], Layer] = {
    nn.Linear: _linear,
    nn.Flatten: _flatten,
    nn.GELU: _gelu,
    **dict.fromkeys(ACTIVATIONS, _one_by_one),
}
"""What each type of module does to all replicas at once; of a subclass nothing is known."""
