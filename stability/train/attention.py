"""The transformer towers, run forward and backward for all replicas at once."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from stability.encoders.transformers import Attention, Block, Patches, Transformer
from stability.train.layers import LAYERS, Own, Pull, Step, apart, chained, fills_lines, known, part

softmax_backward = torch.ops.aten._softmax_backward_data.default

BEND: Step = partial(LAYERS[nn.GELU], nn.GELU(), {}, {}), False


@known(Transformer)
def _transformer(module: Transformer, params: Own, places: Own, x: Tensor, wanted: bool) -> tuple[Tensor, Pull]:
    own = partial(part, module, params, places)
    place = partial(_positions, params["position"], places.get("position")), "position" in places
    each = partial(part, module.blocks, params.get("blocks", {}), places.get("blocks", {}))
    blocks = [each(name) for name in module.blocks._modules]
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
    shape, length = x.shape, x.shape[-2]
    return x.mean(-2), lambda slope: (slope / length).unsqueeze(-2).expand(shape) if wanted else None


@known(Block)
def _block(module: Block, params: Own, places: Own, x: Tensor, wanted: bool) -> tuple[Tensor, Pull]:
    own = partial(part, module, params, places)
    attend = _beside(own("attention_norm"), own("attention"))
    think = _beside(own("mlp_norm"), own("expand"), BEND, own("contract"))
    return chained([attend, think], x, wanted)


def _beside(*steps: Step) -> Step:
    """Return the step that adds to its input what *steps* make of it."""

    def layer(x: Tensor, wanted: bool) -> tuple[Tensor, Pull]:
        made, pull = chained(steps, x, wanted)

        def back(slope: Tensor) -> Tensor | None:
            found = pull(slope)
            return None if found is None else slope + found

        return x + made, back

    return layer, any(trained for _, trained in steps)


@known(Attention)
def _attention(module: Attention, params: Own, places: Own, x: Tensor, wanted: bool) -> tuple[Tensor, Pull]:
    own = partial(part, module, params, places)
    return chained([own("query_key_value"), (partial(_attend, module.heads), False), own("out")], x, wanted)


def _attend(heads: int, x: Tensor, wanted: bool) -> tuple[Tensor, Pull]:
    """Mix values by how well queries and keys fit: (R, B, T, 3 width) to (R, B, T, width)."""
    batch, length, width = x.shape[1:]
    layer = partial(_attend_aligned, heads)
    filled = fills_lines(batch * heads * length**2, batch * length * width // 3)
    return layer(x, wanted) if filled else apart(layer, x, wanted)


def _attend_aligned(heads: int, x: Tensor, wanted: bool) -> tuple[Tensor, Pull]:
    replicas, batch, length, width = x.shape
    scale = (width // 3 // heads) ** -0.5
    # Written out as matrices of one head of one sample: (3, R B heads, T, width of a head).
    split = x.view(replicas * batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    query, key, value = split_up = split.reshape(3, replicas * batch * heads, length, -1)
    # With ``beta=0`` it is the shape of the first that counts.
    logits = torch.baddbmm(x.new_empty(1, 1, 1), query, key.mT, beta=0, alpha=scale)
    weights = logits.softmax(-1)
    mixed = torch.bmm(weights, value).view(-1, heads, length, split_up.shape[-1])

    def pull(slope: Tensor) -> Tensor | None:
        if not wanted:
            return None
        slope = slope.reshape(-1, length, heads, split_up.shape[-1]).transpose(1, 2).reshape(value.shape)
        by_weights = torch.bmm(slope, value.mT)
        by_logits = softmax_backward(by_weights, weights, -1, weights.dtype)
        # Of one head, what was split up may lie between the others; into such places products go one by one.
        by_query, by_key, by_value = found = torch.empty_like(split_up, memory_format=torch.contiguous_format)
        by_query.baddbmm_(by_logits, key, beta=0, alpha=scale)
        by_key.baddbmm_(by_logits.mT, query, beta=0, alpha=scale)
        torch.bmm(weights.mT, slope, out=by_value)
        return (
            found.view(3, -1, heads, length, split_up.shape[-1])
            .permute(1, 3, 0, 2, 4)
            .reshape(replicas, batch, length, width)
        )

    return mixed.transpose(1, 2).reshape(replicas, batch, length, -1), pull


@known(Patches)
def _patches(module: Patches, params: Own, places: Own, x: Tensor, wanted: bool) -> tuple[Tensor, Pull]:
    replicas, batch, channels, height, width = shape = x.shape
    patch, rows, columns = module.patch, height // module.patch, width // module.patch
    split = x.reshape(replicas, batch, channels, rows, patch, columns, patch).permute(0, 1, 3, 5, 2, 4, 6)
    layer, _ = part(module, params, places, "linear")
    y, pull = layer(split.reshape(replicas, batch, rows * columns, -1), wanted)

    def back(slope: Tensor) -> Tensor | None:
        found = pull(slope)
        return None if found is None else found.view(split.shape).permute(0, 1, 4, 2, 5, 3, 6).reshape(shape)

    return y, back
