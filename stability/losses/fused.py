"""Fused value and gradient of the softmax and sigmoid losses of a large batch, in tiles of logits that stay in cache.

Both losses take the scaled rows of one modality and the rows of the other: logits are <row_i, column_j> (+ bias). The
gradients are written by hand. With p the gradient of the loss with respect to the logits (B, B), those with respect to
rows and columns are p @ columns and p^T @ rows; each tile of p is added to both and discarded, so memory is O(B) plus a
tile. Second and higher derivatives (`stability.losses.autograd`) use the plain formulas in blocks of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from stability.devices import is_accelerator
from stability.losses.autograd import checkpointed, custom_grad
from stability.losses.logits import sigmoid_loss_sum
from stability.precision import is_reduced
from stability.registry import InputError

TILE = 512
"""Rows and columns of a tile of logits: two tiles of 1 MB in float32 about fill a core's cache."""


def is_large(batch: Tensor) -> bool:
    """Return whether the loss of this batch, (B, D), is better computed in tiles than by its plain formula.

    On a CPU from B = 512 on, where the logits of a few replicas exceed the cache (``benchmarks/losses.py``). Other
    devices have enough bandwidth: there from B = 8,192 on, to save memory. Depends only on shape, device and whether
    products have 16 bits.
    """
    return not is_reduced(batch.device) and len(batch) >= (TILE if batch.device.type == "cpu" else 16 * TILE)


def siglip_sum_tiled(rows: Tensor, columns: Tensor, bias: Tensor, chunk: int | None = None) -> Tensor:
    """Return sum_ij softplus(-z_ij (<row_i, column_j> + bias)), with z = +1 where i = j and -1 elsewhere, in nats.

    rows and columns are (B, D), bias is a scalar. *chunk* is the number of rows at a time (None: the default).

    Args:
        rows: images times t, (B, D).
        columns: texts (B, D).
        bias: b, a scalar.
        chunk: number of rows at a time; None: the default. All rows where products have 16 bits: tiles are written for
            float32, and what is recomputed for a derivative would not be rounded.
    """
    if is_reduced(rows.device):
        return _siglip_block(rows, columns, bias, offset=0)
    block = partial(_sum_over_blocks, _siglip_block, chunk)
    return custom_grad(partial(_siglip_tiles, tile_rows=_tile_rows(chunk)), block, rows, columns, bias)


def clip_sum_tiled(rows: Tensor, columns: Tensor, chunk: int | None = None) -> Tensor:
    """Return -sum_i [log softmax_j(l_ij)_i + log softmax_j(l_ji)_i] of l_ij = <row_i, column_j>, in nats.

    rows and columns are (B, D). *chunk* is the number of rows at a time (None: the default), as in `siglip_sum_tiled`.
    """
    if is_reduced(rows.device):
        return _clip_block(rows, columns, offset=0) + _clip_block(columns, rows, offset=0)
    return custom_grad(partial(_clip_tiles, tile_rows=_tile_rows(chunk)), partial(_clip_blocks, chunk), rows, columns)


def siglip_value_and_grad(rows: Tensor, columns: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """Return `siglip_sum_tiled` and its gradients with respect to rows, columns and bias, without a graph."""
    return _siglip_tiles(rows, columns, bias, tile_rows=TILE)


def clip_value_and_grad(rows: Tensor, columns: Tensor) -> tuple[Tensor, ...]:
    """Return `clip_sum_tiled` and its gradients with respect to rows and columns, without a graph."""
    return _clip_tiles(rows, columns, tile_rows=TILE)


def _tile_rows(chunk: int | None) -> int:
    if chunk is not None and chunk < 1:
        raise InputError(f"chunk: got {chunk!r}; allowed: at least 1 row")
    return TILE if chunk is None else chunk


# The plain formulas, in blocks of rows that are recomputed for every derivative.

RowBlockLoss = Callable[..., Tensor]
"""Maps a block of rows, all columns and a bias to a sum over the rows; *offset* is the column of their first match."""


def _sum_over_blocks(block: RowBlockLoss, chunk: int | None, rows: Tensor, *inputs: Tensor) -> Tensor:
    # Each block returns a gradient as large as all columns; below 128 rows their accumulation dominates.
    chunk = chunk or max(128, 4 * TILE * TILE // len(rows))
    starts = range(0, len(rows), chunk)
    parts = zip(starts, rows.split(chunk), strict=True)
    return torch.stack([checkpointed(partial(block, offset=start), part, *inputs) for start, part in parts]).sum()


def _siglip_block(rows: Tensor, columns: Tensor, bias: Tensor, *, offset: int) -> Tensor:
    return sigmoid_loss_sum(rows @ columns.T + bias, offset)


def _clip_blocks(chunk: int | None, rows: Tensor, columns: Tensor) -> Tensor:
    one_direction = partial(_sum_over_blocks, _clip_block, chunk)
    return one_direction(rows, columns) + one_direction(columns, rows)


def _clip_block(rows: Tensor, columns: Tensor, *, offset: int) -> Tensor:
    logits = rows @ columns.T
    return (torch.logsumexp(logits, -1) - torch.diagonal(logits, offset)).sum()


# Value and gradient in tiles, in place. Sums over tiles are in float64, since there are thousands of them.


def _siglip_tiles(rows: Tensor, columns: Tensor, bias: Tensor, *, tile_rows: int) -> tuple[Tensor, ...]:
    value, grad_bias = torch.zeros(2, dtype=torch.float64, device=rows.device)
    grad_rows, grad_columns = torch.zeros_like(rows), torch.zeros_like(columns)
    buffers = rows.new_empty(2, min(tile_rows, len(rows)) * min(TILE, len(columns)))
    for down, across in _tiles(len(rows), len(columns), tile_rows):
        left, right = rows[down], columns[across]
        logits, scratch = (buffer[: len(left) * len(right)].view(len(left), len(right)) for buffer in buffers)
        torch.mm(left, right.T, out=logits).add_(bias)
        matches = torch.diagonal(logits, down.start - across.start)
        matches.neg_()
        value += _sum_of_softplus(logits, scratch)
        grad_logits = logits.sigmoid_()
        matches.neg_()
        grad_bias += grad_logits.sum()
        grad_rows[down].addmm_(grad_logits, right)
        grad_columns[across].addmm_(grad_logits.T, left)
    return value.to(rows.dtype), grad_rows, grad_columns, grad_bias.to(bias.dtype)


def _sum_of_softplus(x: Tensor, scratch: Tensor) -> Tensor:
    """Return sum log(1 + e^x) as sum max(x, 0) + sum log(1 + u), u = e^-|x|; *scratch* is overwritten.

    Logarithms dominate the cost, and (1 + u)(1 + v) = 1 + (u + v + u v): four rounds of this leave one logarithm in
    16. There is no cancellation, since no term is negative, and no overflow, since the products are at most 2^16.
    """
    above = torch.clamp(x, min=0, out=scratch).sum()
    u = torch.abs(x, out=scratch).neg_().exp_().view(-1)
    whole = len(u) // 16 * 16
    below = torch.log1p(u[whole:]).sum()
    u = u[:whole]
    while len(u) > whole // 16:
        v, u = u[: len(u) // 2], u[len(u) // 2 :]
        u.addcmul_(u, v).add_(v)
    return above + below + u.log1p_().sum()


def _clip_tiles(rows: Tensor, columns: Tensor, *, tile_rows: int) -> tuple[Tensor, ...]:
    normalize = _normalize_bounded if _is_bounded(rows, columns) else _normalize_any
    log_sums, grad_rows, grad_columns = normalize(rows, columns, tile_rows)
    value = (log_sums - 2 * (rows * columns).sum(-1)).sum(dtype=torch.float64)
    return value.to(rows.dtype), grad_rows.sub_(columns, alpha=2), grad_columns.sub_(rows, alpha=2)


def _is_bounded(rows: Tensor, columns: Tensor) -> bool:
    """Return whether no exponential of a logit can overflow in a sum or underflow, so that no shift is needed.

    False on an accelerator, where reading the answer would synchronize the host with the device.
    """
    if is_accelerator(rows.device):
        return False
    longest = [torch.linalg.vector_norm(x, dim=-1).max() for x in (rows, columns)]
    return float(longest[0] * longest[1]) < -math.log(torch.finfo(rows.dtype).tiny) - math.log(len(rows)) - 1


def _normalize_bounded(rows: Tensor, columns: Tensor, tile_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return log sum_j e^l_ij + log sum_j e^l_ji for each i, and the gradients of their sum w.r.t. rows and columns."""
    grad_rows, grad_columns = torch.zeros_like(rows), torch.zeros_like(columns)
    row_sums, column_sums = rows.new_zeros(len(rows)), rows.new_zeros(len(columns))
    buffers = rows.new_empty(2, min(tile_rows, len(rows)) * min(TILE, len(columns)))
    tiles = _tiles(len(rows), len(columns), tile_rows)

    def exponentials(down: slice, across: slice) -> tuple[Tensor, Tensor]:
        left, right = rows[down], columns[across]
        logits, scratch = (buffer[: len(left) * len(right)].view(len(left), len(right)) for buffer in buffers)
        return torch.mm(left, right.T, out=logits).exp_(), scratch

    for down, across in tiles:
        tile, scratch = exponentials(down, across)
        row_sums[down] += tile.sum(1)
        column_sums[across] += tile.sum(0)
    by_row, by_column = row_sums.reciprocal()[:, None], column_sums.reciprocal()
    for down, across in tiles:
        if len(tiles) > 1:
            tile, scratch = exponentials(down, across)
        probability = tile.mul_(torch.add(by_row[down], by_column[across], out=scratch))
        grad_rows[down].addmm_(probability, columns[across])
        grad_columns[across].addmm_(probability.T, rows[down])
    return row_sums.log() + column_sums.log(), grad_rows, grad_columns


def _normalize_any(rows: Tensor, columns: Tensor, tile_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same as `_normalize_bounded` for logits of any size, shifted by the maximum of each row and column."""
    grad_rows, grad_columns = torch.zeros_like(rows), torch.zeros_like(columns)

    def one_direction(left: Tensor, right: Tensor, grad_left: Tensor, grad_right: Tensor) -> Tensor:
        height = max(min(tile_rows, 16), tile_rows * TILE // len(right))
        buffer, log_sums = left.new_empty(min(height, len(left)), len(right)), left.new_empty(len(left))
        for start in range(0, len(left), height):
            part = slice(start, start + height)
            logits = torch.mm(left[part], right.T, out=buffer[: len(left[part])])
            largest = logits.amax(1, keepdim=True)
            tile = logits.sub_(largest).exp_()
            sums = tile.sum(1, keepdim=True)
            log_sums[part] = (largest + sums.log()).squeeze(1)
            grad_left[part].addcdiv_(tile @ right, sums)
            grad_right.addmm_(tile.T, left[part] / sums)
        return log_sums

    forth = one_direction(rows, columns, grad_rows, grad_columns)
    back = one_direction(columns, rows, grad_columns, grad_rows)
    return forth + back, grad_rows, grad_columns


def _tiles(height: int, width: int, tile_rows: int) -> list[tuple[slice, slice]]:
    downs = [slice(start, min(start + tile_rows, height)) for start in range(0, height, tile_rows)]
    return [(down, slice(start, min(start + TILE, width))) for down in downs for start in range(0, width, TILE)]
