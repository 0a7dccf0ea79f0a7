"""The transformer towers, run forward and backward for all replicas at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from stability.encoders.transformers import Attention, Block, Patches, Transformer
from stability.probes import Params
from stability.train.layers import LAYERS, Pull, Step, chained, fills_lines, known, part

softmax_backward = torch.ops.aten._softmax_backward_data.default

BEND: Step = partial(LAYERS[nn.GELU], nn.GELU(), {}, {}), False


@known(Transformer)
def _transformer(module: Transformer, params: Params, places: Params, x: Tensor, wanted: bool) -> tuple[Tensor, Pull]:
    own = partial(part, module, params, places)
    place = partial(_positions, params["position"], places.get("position")), "position" in places
    blocks = [own(f"blocks.{i}") for i in range(len(module.blocks))]
    return chained([own("embed"), place, *blocks, own("norm"), (_mean, False), own("project")], x, wanted)


def _positions(position: Tensor, place: Tensor | None, x: Tensor, wanted: bool) -> tuple[Tensor, Pull]:
    """Add to samples (R, B, T, width) what each position has of its own."""

    def pull(slope: Tensor) -> Tensor | None:
        if place is not None:
            torch.sum(slope, 1, out=place)
        return slope if wanted else None

    return x + position[:, None], pull


def _mean(x: Tensor, wanted: bool) -> tuple[Tensor, Pull]:
    """Average (R, B, T, width) over positions."""
    return x.mean(-2), lambda slope: (slope / x.shape[-2]).unsqueeze(-2).expand(x.shape) if wanted else None


@known(Block)
def _block(module: Block, params: Params, places: Params, x: Tensor, wanted: bool) -> tuple[Tensor, Pull]:
    own = partial(part, module, params, places)
    attend = _beside(own("attention_norm"), own("attention"))
    think = _beside(own("mlp_norm"), own("expand"), BEND, own("contract"))
    return chained([attend, think], x, wanted)


def _beside(*steps: Step) -> Step:
    """Return the step that adds to its input what *steps* make of it."""

    def layer(x: Tensor, wanted: bool) -> tuple[Tensor, Pull]:
        made, pull = chained(steps, x, wanted)

        def back(slope: Tensor) -> Tensor | None:
            inner = pull(slope)
            return None if inner is None else inner.add_(slope)

        return made.add_(x), back

    return layer, any(trained for _, trained in steps)


@known(Attention)
def _attention(module: Attention, params: Params, places: Params, x: Tensor, wanted: bool) -> tuple[Tensor, Pull]:
    own = partial(part, module, params, places)
    return chained([own("query_key_value"), (partial(_attend, module.heads), False), own("out")], x, wanted)


def _attend(heads: int, x: Tensor, wanted: bool) -> tuple[Tensor, Pull]:
    """Mix values by how well queries and keys fit: (R, B, T, 3 width) to (R, B, T, width)."""
    batch, length, width = x.shape[1:]
    if not fills_lines(batch * length**2, batch * length * (width // 3 // heads)):
        alone = [_attend_aligned(heads, own.clone()) for own in x.split(1)]

        def back(slope: Tensor) -> Tensor:
            return torch.cat([pull(own.clone()) for (_, pull), own in zip(alone, slope.split(1), strict=True)])

        return torch.cat([y for y, _ in alone]), lambda slope: back(slope) if wanted else None
    y, pull = _attend_aligned(heads, x)
    return y, lambda slope: pull(slope) if wanted else None


def _attend_aligned(heads: int, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    replicas, batch, length, width = x.shape
    every, width, share = replicas * batch, width // 3, width // 3 // heads
    scale = share**-0.5
    # Matrices of one head are read where they lie, and written head after head: (heads, R B, T, T or share).
    split = x.view(every, length, 3, heads, share)
    query, key, value = (split[:, :, i].unbind(2) for i in range(3))
    weights = x.new_empty(heads, every, length, length)
    for into, left, right in zip(weights, query, key, strict=True):
        into.baddbmm_(left, right.mT, beta=0, alpha=scale)
    weights = weights.softmax(-1)
    mixed = x.new_empty(heads, every, length, share)
    for into, left, right in zip(mixed, weights, value, strict=True):
        torch.bmm(left, right, out=into)

    def pull(slope: Tensor) -> Tensor:
        slopes = slope.reshape(every, length, heads, share).unbind(2)
        by_weights = torch.empty_like(weights)
        for into, left, right in zip(by_weights, slopes, value, strict=True):
            torch.bmm(left, right.mT, out=into)
        by_logits = softmax_backward(by_weights, weights, -1, x.dtype)
        found = x.new_empty(3, heads, every, length, share)
        for head in range(heads):
            found[0, head].baddbmm_(by_logits[head], key[head], beta=0, alpha=scale)
            found[1, head].baddbmm_(by_logits[head].mT, query[head], beta=0, alpha=scale)
            torch.bmm(weights[head].mT, slopes[head], out=found[2, head])
        return found.permute(2, 3, 0, 1, 4).reshape(x.shape)

    return mixed.permute(1, 2, 0, 3).reshape(replicas, batch, length, width), pull


@known(Patches)
def _patches(module: Patches, params: Params, places: Params, x: Tensor, wanted: bool) -> tuple[Tensor, Pull]:
    replicas, batch, channels, height, width = x.shape
    rows, columns = height // module.patch, width // module.patch
    split = x.reshape(replicas, batch, channels, rows, module.patch, columns, module.patch)
    order = (0, 1, 3, 5, 2, 4, 6)
    patches = split.permute(order).reshape(replicas, batch, rows * columns, -1)
    layer, _ = part(module, params, places, "linear")
    y, pull = layer(patches, wanted)

    def back(slope: Tensor) -> Tensor | None:
        inner = pull(slope)
        if inner is None:
            return None
        turned = split.permute(order)
        return inner.view(turned.shape).permute(0, 1, 4, 2, 5, 3, 6).reshape(x.shape)

    return y, back
