"""Losses whose derivative is written out, for all replicas at once: value and slopes without a graph.

Under vmap and autograd every operation of a loss passes over the logits of all replicas, twice; here the same
quantities take about a third of the passes and calls. What is not known here goes through autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stability.losses import clip, siglip
from stability.losses.fused import is_large, judged_with_slopes, told_apart_with_slopes
from stability.train.layers import fills_lines

Judged = tuple[Tensor, dict[str, Tensor], list[Tensor], dict[str, Tensor]]
"""Losses (R,), their state (none), their derivatives by what the towers give (R, B, D), and by scalars (R,)."""

EPSILON = 1e-12
"""Below this length a row is not made longer, as `torch.nn.functional.normalize` has it."""


def judged_by(function: Callable[..., Any]) -> Callable[..., Judged] | None:
    """Return what judges all replicas as this loss does one, with its derivatives, or None where that is not known.

    It takes what two towers give, [(R, B, D), (R, B, D)], before rows are scaled to unit length, the loss's scalars
    (R,) by name, and the names of those that are trained, which it ignores.
    """
    pairwise = SLOPES.get(function)
    if pairwise is None:
        return None

    def judge(ends: list[Tensor], scalars: Mapping[str, Tensor], trained: object) -> Judged:
        replicas, size, width = ends[0].shape
        if replicas > 1 and not fills_lines(size * size, size * width):
            return _put_together([judge(*own, trained) for own in _apart(ends, scalars)])
        lengths = [torch.linalg.vector_norm(end, dim=-1, keepdim=True).clamp_(min=EPSILON) for end in ends]
        image, text = (end / length for end, length in zip(ends, lengths, strict=True))
        scale = scalars["log_scale"].exp()[:, None, None]
        rows = image * scale
        losses, by_rows, by_text, by_bias = pairwise(rows, text, scalars.get("bias"))
        by_log_scale = (by_rows * rows).sum((1, 2))
        by_unit = (by_rows.mul_(scale), by_text)
        by_end = [
            (slope - unit * (unit * slope).sum(-1, keepdim=True)).div_(length)
            for slope, unit, length in zip(by_unit, (image, text), lengths, strict=True)
        ]
        return losses, {}, by_end, {"log_scale": by_log_scale, "bias": by_bias}

    return judge


def _apart(ends: list[Tensor], scalars: Mapping[str, Tensor]) -> Iterator[tuple[list[Tensor], dict[str, Tensor]]]:
    """Yield what each replica has, in memory of its own."""
    for i in range(len(ends[0])):
        yield [end[[i]] for end in ends], {name: value[[i]] for name, value in scalars.items()}


def _put_together(judged: list[Judged]) -> Judged:
    losses, _, by_end, by_scalar = zip(*judged, strict=True)
    joined = {
        name: torch.cat([own[name] for own in by_scalar]) for name, value in by_scalar[0].items() if value is not None
    }
    return torch.cat(losses), {}, [torch.cat(own) for own in zip(*by_end, strict=True)], joined


def _told_apart(rows: Tensor, text: Tensor, _: None) -> tuple[Tensor, Tensor, Tensor, None]:
    size = rows.shape[1]
    if is_large(rows[0]):
        losses, by_rows, by_text = _one_by_one(told_apart_with_slopes, rows, text)
    else:
        logits = torch.bmm(rows, text.mT)
        right, down = logits.softmax(-1), logits.softmax(-2)
        # The largest logit's probability is e^0 over the sum: that gives the logarithm of the sum without another pass.
        log_sums = logits.amax(-1) - right.amax(-1).log_() + logits.amax(-2) - down.amax(-2).log_()
        losses = (log_sums - 2 * torch.diagonal(logits, dim1=1, dim2=2)).sum(-1)
        slope = right.add_(down)
        torch.diagonal(slope, dim1=1, dim2=2).sub_(2)
        by_rows, by_text = torch.bmm(slope, text), torch.bmm(slope.mT, rows)
    return losses / 2 / size, by_rows.div_(2 * size), by_text.div_(2 * size), None


def _judged_pairs(rows: Tensor, text: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    size = rows.shape[1]
    if is_large(rows[0]):
        losses, by_rows, by_text, by_bias = _one_by_one(judged_with_slopes, rows, text, bias)
    else:
        wrong = torch.bmm(rows, text.mT).add_(bias[:, None, None])
        torch.diagonal(wrong, dim1=1, dim2=2).neg_()
        losses = F.softplus(wrong).sum((1, 2))
        slope = wrong.sigmoid_()
        torch.diagonal(slope, dim1=1, dim2=2).neg_()
        by_rows, by_text, by_bias = torch.bmm(slope, text), torch.bmm(slope.mT, rows), slope.sum((1, 2))
    return losses / size, by_rows.div_(size), by_text.div_(size), by_bias / size


def _one_by_one(function: Callable[..., tuple[Tensor, ...]], *stacked: Tensor) -> list[Tensor]:
    each = [function(*replica) for replica in zip(*stacked, strict=True)]
    return [torch.stack(values) for values in zip(*each, strict=True)]


SLOPES: Mapping[Callable[..., Any], Callable[..., Any]] = {clip: _told_apart, siglip: _judged_pairs}
"""What judges the rows of all replicas as a loss with its default options does: logits are <row_i, text_j> (+ bias)."""
