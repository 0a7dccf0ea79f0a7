"""Adafactor: Adam's second moments from sums over rows and columns, with steps in units of the parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from stability.optimizers.registry import Layout, Segment, optimizer
from stability.optimizers.reproducible import mean_square, move_towards_, sum_last

LEAST_SCALE = 1e-3
"""The least RMS of a parameter in whose units it moves."""

DECAY_EXPONENT = -0.8
"""The weight of step t in the running means is t to this power."""


def factored_widths(layout: Layout) -> dict[str, int]:
    """Return the sizes of the running means: those of rows and columns of matrices, and of all other numbers."""
    matrices = [segment.shape for segment in layout if len(segment.shape) > 1]
    return {
        "rows": sum(math.prod(shape[:-1]) for shape in matrices),
        "columns": sum(math.prod(shape) // shape[-2] for shape in matrices),
        "second": sum(segment.size for segment in layout if len(segment.shape) < 2),
    }


@optimizer(
    buffers=factored_widths,
    decay="decoupled",
    describe=lambda: "Adafactor",
)
def adafactor(
    grad: Tensor, buffers: Mapping[str, Tensor], count: Tensor, *, params: Tensor, layout: Layout, rates: Tensor
) -> Tensor:
    """Return -max(1e-3, RMS(theta)) g / sqrt(v), clipped for each parameter to an RMS of 1 before the first factor.

    v is the running mean of the squared gradient, with weight t^-0.8 for step t. That of a matrix is the product of its
    means over rows and over columns, divided by the mean of all. There is no momentum; the learning rate is at most
    1 / sqrt(t); weight decay is decoupled. As `torch.optim.Adafactor`. A parameter of more than two axes is a stack of
    matrices. Shazeer and Stern (2018), arXiv:1804.04235, Alg. 4.

    Args:
        grad: gradients (R, P).
        buffers: running means (R, width) by name, updated in place.
        count: number of steps including this one, float32: 0-d, or (R, 1) if replicas skip steps.
        params: parameters (R, P).
        layout: where each parameter lies.
        rates: learning rates (R,).
    """
    step = count.to(grad.dtype)
    weight = step.pow(DECAY_EXPONENT)
    bound = (1 / (rates * step.flatten().sqrt())).clamp(max=1.0)
    least = torch.finfo(grad.dtype).eps
    direction = torch.zeros_like(grad)
    for segment, means in _with_means(layout, buffers):
        part = segment.of(grad)
        if len(segment.shape) < 2:
            second = move_towards_(means["second"], part.square(), weight)
        else:
            second = _factored(means, part.reshape(len(part), -1, *segment.shape[-2:]), weight, least)
        update = part / second.clamp(min=least**2).sqrt_()
        scale = mean_square(segment.of(params)).sqrt_().clamp_(min=LEAST_SCALE)
        scale *= bound / mean_square(update).sqrt_().clamp_(min=1.0)
        segment.of(direction).copy_(update.mul_(scale[:, None]).neg_())
    return direction


def _with_means(layout: Layout, buffers: Mapping[str, Tensor]) -> Iterator[tuple[Segment, dict[str, Tensor]]]:
    """Yield each parameter with its running means, views (R, width) of *buffers*."""
    starts = dict.fromkeys(buffers, 0)
    for segment in layout:
        widths = factored_widths((segment,))
        yield segment, {name: buffers[name][:, starts[name] : starts[name] + widths[name]] for name in buffers}
        starts = {name: start + widths[name] for name, start in starts.items()}


def _factored(means: Mapping[str, Tensor], matrices: Tensor, weight: Tensor, least: float) -> Tensor:
    """Return the estimated second moments (R, n) of gradients of stacked *matrices* (R, stack, rows, columns)."""
    squares, shape = matrices.square(), matrices.shape
    of_rows = sum_last(squares) / shape[-1]
    # A sum over columns would depend on how many are added at once.
    of_columns = sum_last(squares.mT.contiguous()) / shape[-2]
    rows = move_towards_(means["rows"], of_rows.flatten(1), weight).view(of_rows.shape)
    columns = move_towards_(means["columns"], of_columns.flatten(1), weight).view(of_columns.shape)
    mean = (sum_last(rows) / shape[-2]).clamp_(min=least)
    return (rows[..., None] * columns[..., None, :]).div_(mean[..., None, None]).flatten(1)
