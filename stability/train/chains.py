"""Towers that are chains of torch's own layers, run on the samples of all replicas at once without vmap.

Under vmap every call passes several layers of torch before it computes, which for a small perceptron takes longer than
the arithmetic. Here a layer is one call for all replicas: the same arithmetic, to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

Chain = Callable[[Mapping[str, Tensor], Tensor], Tensor]
"""From parameters by name, (R, ...), and samples (R, B, ...) to the output (R, B, ...)."""

Layer = Callable[[nn.Module, Mapping[str, Tensor], Tensor], Tensor]
"""From a module, its parameters by their own names, (R, ...), and its input (R, B, ...) to its output."""


def chain_of(tower: nn.Module) -> Chain | None:
    """Return the tower for all replicas at once, or None where a layer of it is not known here."""
    steps = list(_steps(tower))
    named = {name for name, _ in tower.named_parameters()}
    read = {f"{place}{name}" for place, module in steps for name, _ in module.named_parameters()}
    if not all(type(module) in LAYERS and not is_hooked(module) for _, module in steps) or read != named:
        return None

    def chain(params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        for place, module in steps:
            own = {name: params[f"{place}{name}"] for name, _ in module.named_parameters()}
            x = LAYERS[type(module)](module, own, x)
        return x

    return chain


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


def _linear(module: nn.Module, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    rows, weight = x.flatten(1, -2), params["weight"].mT
    product = torch.bmm(rows, weight)
    # Added afterwards, as under vmap: where matrices are small, `baddbmm` would sum in another order.
    product = product.add_(params["bias"][:, None]) if "bias" in params else product
    return product.unflatten(1, x.shape[1:-1])


def _flatten(module: nn.Module, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    assert isinstance(module, nn.Flatten)
    # Counted from the front, axes lie one further on than in one replica.
    start, end = (axis + 1 if axis >= 0 else axis for axis in (module.start_dim, module.end_dim))
    return x.flatten(start, end)


def _one_by_one(module: nn.Module, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    result: Tensor = module(x)
    return result


ACTIVATIONS = (nn.Identity, nn.GELU, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.Softplus, nn.Sigmoid, nn.Tanh)
"""Layers without parameters that look at every number on its own."""

LAYERS: Mapping[type[nn.Module], Layer] = {
    nn.Linear: _linear,
    nn.Flatten: _flatten,
    **dict.fromkeys(ACTIVATIONS, _one_by_one),
}
"""What each type of module does to all replicas at once; of a subclass nothing is known."""
