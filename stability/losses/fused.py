"""Softmax and sigmoid loss of a large batch: value and gradient in one go, tile by tile, so that logits stay in cache.

Both take the rows of one side, scaled, and those of the other: logits are <row_i, column_j> (+ bias). The derivatives
are written out by hand. With p the derivative of the loss by the logits (B, B), those by rows and columns are p @
columns and p^T @ rows; a tile of p adds its share to both and is dropped, so memory is O(B) plus a tile. Second and
higher derivatives (`stability.losses.derivatives`) come from the plain formulas, computed in blocks of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from stability.devices import is_accelerator
from stability.losses.derivatives import checkpointed, custom_grad
from stability.losses.logits import sigmoid_loss_sum
from stability.registry import InputError

TILE = 512
"""Rows and columns of a tile of logits: 1 MB of float32, twice, is about what a core's cache holds."""


def is_large(batch: Tensor) -> bool:
    """Return whether a loss of this batch, (B, D), is better computed here than from its plain formula.

    On a CPU from B = 512 on, where the logits of a few replicas leave the cache (``benchmarks/losses.py``). Other
    devices have the bandwidth: there, from B = 8,192 on, for the memory alone. A function of shape and device only.
    """
    return len(batch) >= (TILE if batch.device.type == "cpu" else 16 * TILE)


def siglip_sum_tiled(rows: Tensor, columns: Tensor, bias: Tensor, chunk: int | None = None) -> Tensor:
    """Return sum_ij softplus(-z_ij (<row_i, column_j> + bias)), z being +1 where i = j and -1 elsewhere, in nats.

    rows and columns are (B, D), bias a scalar. *chunk* rows are judged at a time (None: as many as suit the machine).
    """
    block = partial(_sum_over_blocks, _siglip_block, chunk)
    return custom_grad(partial(_siglip_tiles, side=_side(chunk)), block, rows, columns, bias)


def clip_sum_tiled(rows: Tensor, columns: Tensor, chunk: int | None = None) -> Tensor:
    """Return -sum_i [log softmax_j(l_ij)_i + log softmax_j(l_ji)_i] of l_ij = <row_i, column_j>, in nats.

    rows and columns are (B, D). *chunk* rows are taken at a time (None: as many as suit the machine).
    """
    return custom_grad(partial(_clip_tiles, side=_side(chunk)), partial(_clip_blocks, chunk), rows, columns)


def siglip_value_and_grad(rows: Tensor, columns: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """Return `siglip_sum_tiled` and its derivatives by rows, columns and bias, of one replica and without a graph."""
    return _siglip_tiles(rows, columns, bias, side=TILE)


def clip_value_and_grad(rows: Tensor, columns: Tensor) -> tuple[Tensor, ...]:
    """Return `clip_sum_tiled` and its derivatives by rows and columns, of one replica and without a graph."""
    return _clip_tiles(rows, columns, side=TILE)


def _side(chunk: int | None) -> int:
    if chunk is not None and chunk < 1:
        raise InputError(f"chunk: got {chunk!r}; allowed: at least 1 row")
    return TILE if chunk is None else chunk


# The plain formulas, in blocks of rows that are computed again for every derivative.

Block = Callable[..., Tensor]
"""From rows, all columns and a bias to a sum over the rows; *offset* says at which column their diagonal starts."""


def _sum_over_blocks(block: Block, chunk: int | None, rows: Tensor, *inputs: Tensor) -> Tensor:
    # Every block returns a derivative as large as all columns: below 128 rows, adding these up would rule.
    chunk = chunk or max(128, 4 * TILE * TILE // len(rows))
    starts = range(0, len(rows), chunk)
    parts = zip(starts, rows.split(chunk), strict=True)
    return torch.stack([checkpointed(partial(block, offset=start), part, *inputs) for start, part in parts]).sum()


def _siglip_block(rows: Tensor, columns: Tensor, bias: Tensor, *, offset: int) -> Tensor:
    return sigmoid_loss_sum(rows @ columns.T + bias, offset)


def _clip_blocks(chunk: int | None, rows: Tensor, columns: Tensor) -> Tensor:
    one_way = partial(_sum_over_blocks, _clip_block, chunk)
    return one_way(rows, columns) + one_way(columns, rows)


def _clip_block(rows: Tensor, columns: Tensor, *, offset: int) -> Tensor:
    logits = rows @ columns.T
    return (torch.logsumexp(logits, -1) - torch.diagonal(logits, offset)).sum()


# The same with the gradient, in tiles, in place. Sums over tiles are in float64: there are thousands of them.


def _siglip_tiles(rows: Tensor, columns: Tensor, bias: Tensor, *, side: int) -> tuple[Tensor, ...]:
    value, grad_bias = torch.zeros(2, dtype=torch.float64, device=rows.device)
    grad_rows, grad_columns = torch.zeros_like(rows), torch.zeros_like(columns)
    spaces = rows.new_empty(2, min(side, len(rows)) * min(TILE, len(columns)))
    for down, across in _tiles(len(rows), len(columns), side):
        some, others = rows[down], columns[across]
        logits, spare = (space[: len(some) * len(others)].view(len(some), len(others)) for space in spaces)
        torch.mm(some, others.T, out=logits).add_(bias)
        matches = torch.diagonal(logits, down.start - across.start)
        matches.neg_()
        value += _sum_of_softplus(logits, spare)
        mistaken = logits.sigmoid_()
        matches.neg_()
        grad_bias += mistaken.sum()
        grad_rows[down].addmm_(mistaken, others)
        grad_columns[across].addmm_(mistaken.T, some)
    return value.to(rows.dtype), grad_rows, grad_columns, grad_bias.to(bias.dtype)


def _sum_of_softplus(x: Tensor, spare: Tensor) -> Tensor:
    """Return sum log(1 + e^x) as sum max(x, 0) + sum log(1 + u), u = e^-|x|.

    Logarithms are the costly part, and (1 + u)(1 + v) = 1 + (u + v + u v): four rounds of this leave one logarithm in
    16. Nothing cancels, since no term is negative, and nothing overflows, since the products are at most 2^16.
    """
    above = torch.clamp(x, min=0, out=spare).sum()
    u = torch.abs(x, out=spare).neg_().exp_().view(-1)
    whole = len(u) // 16 * 16
    below = torch.log1p(u[whole:]).sum()
    u = u[:whole]
    while len(u) > whole // 16:
        v, u = u[: len(u) // 2], u[len(u) // 2 :]
        u.addcmul_(u, v).add_(v)
    return above + below + u.log1p_().sum()


def _clip_tiles(rows: Tensor, columns: Tensor, *, side: int) -> tuple[Tensor, ...]:
    normalize = _normalize_bounded if _is_bounded(rows, columns) else _normalize_any
    log_sums, grad_rows, grad_columns = normalize(rows, columns, side)
    value = (log_sums - 2 * (rows * columns).sum(-1)).sum(dtype=torch.float64)
    return value.to(rows.dtype), grad_rows.sub_(columns, alpha=2), grad_columns.sub_(rows, alpha=2)


def _is_bounded(rows: Tensor, columns: Tensor) -> bool:
    """Return whether no exponential of a logit can overflow in a sum or vanish, so that none needs a shift.

    On an accelerator the answer would have to be read by the host, which waits for it: there it is always no.
    """
    if is_accelerator(rows.device):
        return False
    longest = [torch.linalg.vector_norm(x, dim=-1).max() for x in (rows, columns)]
    return float(longest[0] * longest[1]) < -math.log(torch.finfo(rows.dtype).tiny) - math.log(len(rows)) - 1


def _normalize_bounded(rows: Tensor, columns: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return log sum_j e^l_ij + log sum_j e^l_ji of each i, and the derivatives of their sum by rows and columns."""
    grad_rows, grad_columns = torch.zeros_like(rows), torch.zeros_like(columns)
    row_sums, column_sums = rows.new_zeros(len(rows)), rows.new_zeros(len(columns))
    spaces = rows.new_empty(2, min(side, len(rows)) * min(TILE, len(columns)))
    tiles = _tiles(len(rows), len(columns), side)

    def exponentials(down: slice, across: slice) -> tuple[Tensor, Tensor]:
        some, others = rows[down], columns[across]
        logits, spare = (space[: len(some) * len(others)].view(len(some), len(others)) for space in spaces)
        return torch.mm(some, others.T, out=logits).exp_(), spare

    for down, across in tiles:
        tile, spare = exponentials(down, across)
        row_sums[down] += tile.sum(1)
        column_sums[across] += tile.sum(0)
    by_row, by_column = row_sums.reciprocal()[:, None], column_sums.reciprocal()
    for down, across in tiles:
        if len(tiles) > 1:
            tile, spare = exponentials(down, across)
        probability = tile.mul_(torch.add(by_row[down], by_column[across], out=spare))
        grad_rows[down].addmm_(probability, columns[across])
        grad_columns[across].addmm_(probability.T, rows[down])
    return row_sums.log() + column_sums.log(), grad_rows, grad_columns


def _normalize_any(rows: Tensor, columns: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `_normalize_bounded` does, for logits of any size: rows and columns each from their own maximum."""
    grad_rows, grad_columns = torch.zeros_like(rows), torch.zeros_like(columns)

    def one_way(some: Tensor, others: Tensor, grad_some: Tensor, grad_others: Tensor) -> Tensor:
        height = max(min(side, 16), side * TILE // len(others))
        space, log_sums = some.new_empty(min(height, len(some)), len(others)), some.new_empty(len(some))
        for start in range(0, len(some), height):
            part = slice(start, start + height)
            logits = torch.mm(some[part], others.T, out=space[: len(some[part])])
            largest = logits.amax(1, keepdim=True)
            tile = logits.sub_(largest).exp_()
            sums = tile.sum(1, keepdim=True)
            log_sums[part] = (largest + sums.log()).squeeze(1)
            grad_some[part].addcdiv_(tile @ others, sums)
            grad_others.addmm_(tile.T, some[part] / sums)
        return log_sums

    log_sums = one_way(rows, columns, grad_rows, grad_columns) + one_way(columns, rows, grad_columns, grad_rows)
    return log_sums, grad_rows, grad_columns


def _tiles(height: int, width: int, side: int) -> list[tuple[slice, slice]]:
    downs = [slice(start, min(start + side, height)) for start in range(0, height, side)]
    return [(down, slice(start, min(start + TILE, width))) for down in downs for start in range(0, width, TILE)]
