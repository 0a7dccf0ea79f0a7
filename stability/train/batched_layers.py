"""Forward passes of towers for all replicas at once: one function per supported layer type.

Under vmap every operation has a dispatch overhead, which for a small tower exceeds the arithmetic. Here each operation
is one call for all replicas, and autograd computes the backward pass. A tower with an unsupported layer runs under
vmap.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stability.devices import is_aligned
from stability.encoders.transformers import Attention, Patches, Transformer, TransformerBlock
from stability.probes import Params

Forward = Callable[[Params, Tensor], Tensor]
"""Maps a tower's parameters (R, ...), by name, and samples (R, B, ...) to embeddings (R, B, D)."""

ParamTree = dict[str, Any]
"""A module's parameters (R, ...) by name; a submodule's parameters are a nested tree under its name."""

LayerForward = Callable[[Any, ParamTree, Tensor], Tensor]

LAYERS: dict[type[nn.Module], LayerForward] = {}
"""The forward pass of each supported module type. Subclasses are not supported, since they may compute anything."""


def batched_forward(tower: nn.Module) -> Forward | None:
    """Return the tower's forward pass for all replicas at once, or None if a part of it is not supported.

    A tower that uses a module or a parameter twice is not supported, since its parameters are listed under one name.
    """
    if type(tower) not in LAYERS or not all(_is_supported(module) for module in tower.modules()):
        return None
    if len(list(tower.named_parameters(remove_duplicate=False))) != len(list(tower.parameters())):
        return None
    return lambda params, samples: LAYERS[type(tower)](tower, _tree(params), samples)


def _is_supported(module: nn.Module) -> bool:
    if isinstance(module, nn.Embedding) and (module.max_norm is not None or module.scale_grad_by_freq or module.sparse):
        return False
    return (type(module) in LAYERS or type(module) is nn.ModuleList) and not is_hooked(module)


def is_hooked(module: nn.Module) -> bool:
    """Return whether calling the module runs hooks in addition to its ``forward``."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _tree(params: Params) -> ParamTree:
    tree: ParamTree = {}
    for name, value in params.items():
        *path, last = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


def _submodule(module: nn.Module, name: str, params: ParamTree, x: Tensor) -> Tensor:
    # `getattr` would be slower: torch searches several dictionaries.
    submodule = module._modules[name]
    assert submodule is not None
    return LAYERS[type(submodule)](submodule, params.get(name, {}), x)


def layer(*types: type[nn.Module]) -> Callable[[LayerForward], LayerForward]:
    """Return a decorator that registers the forward pass of modules of these types."""

    def register(forward: LayerForward) -> LayerForward:
        LAYERS.update(dict.fromkeys(types, forward))
        return forward

    return register


def _per_replica(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Apply *function* replica by replica on cache-line-aligned copies; the backward pass also aligns gradients."""
    outputs = []
    for parts in zip(*(x.split(1) for x in inputs), strict=True):
        output = function(*(part.clone() for part in parts))
        if output.requires_grad:
            output.register_hook(torch.clone)
        outputs.append(output)
    return torch.cat(outputs)


def _bmm(left: Tensor, right: Tensor) -> Tensor:
    """Return the matrix products of all replicas, with bits that do not depend on a replica's position."""
    rows, inner, columns = left.shape[1], left.shape[2], right.shape[2]
    if is_aligned(left.device, rows * inner, inner * columns, rows * columns):
        return torch.bmm(left, right)
    return _per_replica(torch.bmm, left, right)


@layer(nn.Sequential)
def _sequential(module: nn.Sequential, params: ParamTree, x: Tensor) -> Tensor:
    # `named_children` would list a layer that is used twice only once.
    for name in module._modules:
        x = _submodule(module, name, params, x)
    return x


@layer(nn.Linear)
def _linear(module: nn.Linear, params: ParamTree, x: Tensor) -> Tensor:
    product = _bmm(x.flatten(1, -2), params["weight"].mT)
    if "bias" in params:
        # `baddbmm` would sum small matrices in a different order than the plain product that vmap uses.
        product.add_(params["bias"][:, None])
    return product.view(*x.shape[:-1], -1)


@layer(nn.LayerNorm)
def _layer_norm(module: nn.LayerNorm, params: ParamTree, x: Tensor) -> Tensor:
    shape = module.normalized_shape
    normalized = F.layer_norm(x, shape, None, None, module.eps)
    if "weight" not in params:
        return normalized
    # Collapse to (R, samples x positions, features) so that each replica's scale broadcasts.
    size = torch.Size(shape).numel()
    rows, weight = normalized.reshape(len(x), -1, size), params["weight"].reshape(len(x), 1, size)
    if "bias" not in params:
        return (rows * weight).view(x.shape)
    return torch.addcmul(params["bias"].reshape(len(x), 1, size), rows, weight).view(x.shape)


@layer(nn.Embedding)
def _embedding(module: nn.Embedding, params: ParamTree, x: Tensor) -> Tensor:
    weight, ids = params["weight"], x.flatten(1).long()
    # `gather` raises for token ids that are negative or beyond the vocabulary.
    rows = weight.gather(1, ids[..., None].expand(-1, -1, weight.shape[-1]))
    if module.padding_idx is not None:
        rows = torch.where((ids == module.padding_idx)[..., None], rows.detach(), rows)
    return rows.view(*x.shape, -1)


@layer(nn.Flatten)
def _flatten(module: nn.Flatten, params: ParamTree, x: Tensor) -> Tensor:
    # Non-negative axes move by one, since the replica axis comes first.
    return x.flatten(*(axis + 1 if axis >= 0 else axis for axis in (module.start_dim, module.end_dim)))


@layer(nn.Identity, nn.ReLU, nn.LeakyReLU, nn.GELU)
def _elementwise(module: nn.Module, params: ParamTree, x: Tensor) -> Tensor:
    # An in-place layer gets a copy, so that it changes neither the batch nor another layer's saved tensors.
    result: Tensor = module(x.clone() if getattr(module, "inplace", False) else x)
    return result


@layer(nn.ELU, nn.SiLU, nn.Softplus, nn.Sigmoid, nn.Tanh)
def _exponential(module: nn.Module, params: ParamTree, x: Tensor) -> Tensor:
    def function(x: Tensor) -> Tensor:
        return _elementwise(module, params, x)

    return function(x) if is_aligned(x.device, x[0].numel()) else _per_replica(function, x)


@layer(Transformer)
def _transformer(module: Transformer, params: ParamTree, x: Tensor) -> Tensor:
    x = _submodule(module, "embed", params, x) + params["position"][:, None]
    for name in module.blocks._modules:
        x = _submodule(module.blocks, name, params.get("blocks", {}), x)
    return _submodule(module, "project", params, _submodule(module, "norm", params, x).mean(-2))


@layer(TransformerBlock)
def _block(module: TransformerBlock, params: ParamTree, x: Tensor) -> Tensor:
    call = partial(_submodule, module, params=params)
    if module.norm == "post":
        x = call("attention_norm", x=x + call("attention", x=x))
        return call("mlp_norm", x=x + call("contract", x=F.gelu(call("expand", x=x))))
    x = x + call("attention", x=call("attention_norm", x=x))
    return x + call("contract", x=F.gelu(call("expand", x=call("mlp_norm", x=x))))


@layer(Attention)
def _attention(module: Attention, params: ParamTree, x: Tensor) -> Tensor:
    def attend(x: Tensor) -> Tensor:
        replicas, batch, length, width = x.shape
        # One matrix for each head of each sample: (3, R B heads, T, width of a head).
        split = x.view(replicas * batch, length, 3, module.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = split.reshape(3, replicas * batch * module.heads, length, -1)
        # With ``beta=0`` only the first argument's shape matters.
        scale = (width // 3 // module.heads) ** -0.5
        logits = torch.baddbmm(x.new_empty(1, 1, 1), query, key.mT, beta=0, alpha=scale)
        mixed = torch.bmm(logits.softmax(-1), value).view(-1, module.heads, length, value.shape[-1])
        return mixed.transpose(1, 2).reshape(replicas, batch, length, -1)

    x = _submodule(module, "query_key_value", params, x)
    if "query_norm" in params:
        query, key, value = x.unflatten(-1, (3, module.heads, -1)).unbind(-3)
        normed = _submodule(module, "query_norm", params, query), _submodule(module, "key_norm", params, key)
        x = torch.stack([*normed, value], -3).view(x.shape)
    batch, length, width = x.shape[1:]
    aligned = is_aligned(x.device, batch * module.heads * length**2, batch * length * width // 3)
    return _submodule(module, "out", params, attend(x) if aligned else _per_replica(attend, x))


@layer(Patches)
def _patches(module: Patches, params: ParamTree, x: Tensor) -> Tensor:
    replicas, batch, channels, height, width = x.shape
    rows, columns = height // module.patch, width // module.patch
    split = x.reshape(replicas, batch, channels, rows, module.patch, columns, module.patch)
    squares = split.permute(0, 1, 3, 5, 2, 4, 6).reshape(replicas, batch, rows * columns, -1)
    return _submodule(module, "linear", params, squares)
