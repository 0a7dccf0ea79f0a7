"""Towers that are chains of known layers, run forward and backward for all replicas at once.

Under vmap and autograd every call passes several layers of torch before it computes, and a gradient is copied to its
place afterwards; for a small tower both take longer than the arithmetic. Here a layer is one call for all replicas, and
its derivative, written out, goes straight into the flat gradient: for perceptrons to the same bits, for transformers to
rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from stability.probes import Params
from stability.train import attention  # noqa: F401 - what it says is known
from stability.train.layers import LAYERS, Pull, nested

Chain = Callable[[Params, Params, Tensor], tuple[Tensor, Pull]]
"""From parameters (R, ...), the places of their gradients and samples (R, B, ...) to the output, and back."""


def chain_of(tower: nn.Module) -> Chain | None:
    """Return the tower for all replicas at once, or None where a layer of it is not known.

    A parameter without a place for its gradient has none computed. A tower that uses one parameter twice is not known,
    since the two gradients would have to be added.
    """
    if type(tower) not in LAYERS or not all(_is_known(module) for module in tower.modules()):
        return None
    if len(list(tower.named_parameters(remove_duplicate=False))) != len(list(tower.parameters())):
        return None
    layer = partial(LAYERS[type(tower)], tower)
    return lambda params, places, x: layer(nested(params), nested(places), x, False)


def _is_known(module: nn.Module) -> bool:
    if isinstance(module, nn.Embedding) and (module.max_norm is not None or module.scale_grad_by_freq or module.sparse):
        return False
    return (type(module) in LAYERS or type(module) is nn.ModuleList) and not is_hooked(module)


def is_hooked(module: nn.Module) -> bool:
    """Return whether something beside the module's own ``forward`` runs when it is called."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
