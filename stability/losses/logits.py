"""The logits of a batch, and operations on them that the losses share."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from stability.registry import InputError


def scaled_similarities(image: Tensor, text: Tensor, log_scale: Tensor, max_scale: float = math.inf) -> Tensor:
    """Return t <image_i, text_j>, (B, B), with t = exp(log_scale), but at most *max_scale*; see `scaled`.

    Args:
        image: unit rows (B, D).
        text: unit rows (B, D).
        log_scale: log t, a scalar.
        max_scale: largest t.
    """
    return scaled(image, log_scale, max_scale) @ text.T


def scaled(rows: Tensor, log_scale: Tensor, max_scale: float = math.inf) -> Tensor:
    """Return t times the rows, with t = exp(log_scale), but at most *max_scale*.

    Where t is clamped, *log_scale* gets no gradient: the clamp is inside the loss. OpenCLIP and CyCLIP clamp the
    parameter itself after each step, at t = 100, which gives the same t in the loss.
    """
    if not max_scale > 0:
        raise InputError(f"max_scale: got {max_scale!r}; allowed: a positive number")
    return log_scale.clamp(max=math.log(max_scale)).exp() * rows


def soft_capped(logits: Tensor, logit_cap: float = math.inf) -> Tensor:
    """Return c tanh(logits / c) for c = *logit_cap*, within (-c, c); the logits themselves if c is infinite.

    Unlike a clamp, the cap has a gradient everywhere. Gemma Team (2024), arXiv:2408.00118, Sec. 2.

    >>> import torch
    >>> soft_capped(torch.tensor([0.01, -1000.0]), 5.0)
    tensor([ 0.0100, -5.0000])
    """
    if not logit_cap > 0:
        raise InputError(f"logit_cap: got {logit_cap!r}; allowed: a positive number")
    return logits if logit_cap == math.inf else logit_cap * torch.tanh(logits / logit_cap)


def off_diagonal(matrix: Tensor) -> Tensor:
    """Return the entries of a (B, B) matrix without its diagonal, row by row, as (B, B - 1).

    >>> import torch
    >>> off_diagonal(torch.arange(9).view(3, 3))
    tensor([[1, 2],
            [3, 5],
            [6, 7]])
    """
    size = len(matrix)
    # After the first entry is dropped, each diagonal entry is the last of a row of B + 1.
    return matrix.flatten()[1:].view(size - 1, size + 1)[:, :-1].reshape(size, size - 1)


def symmetrize(one_direction: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """Return the mean of a loss of rows over both directions: image to text, and text to image."""
    return (one_direction(logits) + one_direction(logits.T)) / 2


def sigmoid_loss_sum(logits: Tensor, offset: int = 0) -> Tensor:
    """Return sum_ij softplus(-z_ij l_ij), with z = +1 on the diagonal and -1 elsewhere, in nats.

    The diagonal of a (rows, B) block of the logits starts at column *offset*.
    """
    # Flip signs first: softplus(l) - l equals softplus(-l), but rounds to 0 for well-classified matches.
    matches = torch.diagonal(logits, offset)
    return F.softplus(torch.diagonal_scatter(logits, -matches, offset)).sum()
