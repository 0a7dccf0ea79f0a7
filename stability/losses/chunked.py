"""The two principal losses row block by row block: for batches whose B x B logits do not fit into memory.

Equal to `clip` and `siglip` in value, gradient and Hessian-vector product. Each block of logits is computed, summed,
dropped, and computed again when its derivative is asked for, so the peak memory is O(B x chunk), at every order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vjp

from stability.losses import Scalar, loss
from stability.losses.sigmoid import siglip_chance, sum_over_pairs
from stability.losses.softmax import clip_chance
from stability.registry import InputError


class _Recomputed(torch.autograd.Function):
    """``function(*inputs)``, of which only the inputs are kept; derivatives call it again, and are such calls too."""

    generate_vmap_rule = True

    @staticmethod
    def forward(function: Callable[..., Any], *inputs: Tensor) -> Any:
        return function(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.function = inputs[0]
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        function, inputs = ctx.function, ctx.saved_tensors

        def pull_back(*tensors: Tensor) -> Any:
            arguments, cotangents = tensors[: len(inputs)], tensors[len(inputs) :]
            output, pull, *_ = vjp(function, *arguments)
            return pull(cotangents[0] if isinstance(output, Tensor) else cotangents)

        return None, *_Recomputed.apply(pull_back, *inputs, *upstream)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> Any:
        inputs = ctx.saved_tensors
        moved = [torch.zeros_like(x) if v is None else v for x, v in zip(inputs, tangents, strict=True)]
        return jvp(ctx.function, tuple(inputs), tuple(moved))[1]


Block = Callable[..., Tensor]
"""From rows, all columns and scalars to a sum over the rows; *offset* says at which column their diagonal starts."""


def _sum_over_blocks(block: Block, rows: Tensor, chunk: int, *inputs: Tensor) -> Tensor:
    if chunk < 1:
        raise InputError(f"chunk: got {chunk!r}; allowed: at least 1 row")
    starts = range(0, len(rows), chunk)
    parts = zip(starts, rows.split(chunk), strict=True)
    return torch.stack([_Recomputed.apply(partial(block, offset=start), part, *inputs) for start, part in parts]).sum()


@loss(log_scale=Scalar(math.log(10.0)), bias=Scalar(-10.0), chance=siglip_chance)
def siglip_chunked(image: Tensor, text: Tensor, *, log_scale: Tensor, bias: Tensor, chunk: int = 1024) -> Tensor:
    """Judge each of the B x B pairs as match or mismatch, *chunk* rows at a time; nats per image.

    The value and all derivatives of `siglip`, with O(B x chunk) memory: logits are computed again for the gradient.
    Zhai et al. (2023), arXiv:2303.15343, Sec. 3.3, chunks over devices; this is one device.
    """
    return _sum_over_blocks(_judged, image, chunk, text, log_scale, bias) / len(image)


def _judged(rows: Tensor, columns: Tensor, log_scale: Tensor, bias: Tensor, *, offset: int) -> Tensor:
    return sum_over_pairs(log_scale.exp() * rows @ columns.T + bias, offset)


@loss(log_scale=Scalar(math.log(10.0)), chance=clip_chance)
def clip_chunked(image: Tensor, text: Tensor, *, log_scale: Tensor, chunk: int = 1024) -> Tensor:
    """Tell each row's match from the other B - 1 rows, both ways, *chunk* rows at a time; nats per pair.

    The value and all derivatives of `clip`, with O(B x chunk) memory: once over blocks of images against all texts,
    once over blocks of texts against all images. Radford et al. (2021), arXiv:2103.00020, Fig. 3.
    """
    images = _sum_over_blocks(_told_apart, image, chunk, text, log_scale)
    texts = _sum_over_blocks(_told_apart, text, chunk, image, log_scale)
    return (images + texts) / 2 / len(image)


def _told_apart(rows: Tensor, columns: Tensor, log_scale: Tensor, *, offset: int) -> Tensor:
    logits = log_scale.exp() * rows @ columns.T
    return (torch.logsumexp(logits, -1) - torch.diagonal(logits, offset)).sum()
