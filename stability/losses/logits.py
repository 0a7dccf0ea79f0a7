"""The matrix of logits, and the parts of it that losses are made of."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from stability.registry import InputError


def scaled_similarities(image: Tensor, text: Tensor, log_scale: Tensor, max_scale: float = math.inf) -> Tensor:
    """Return t <image_i, text_j>, (B, B), with t = exp(log_scale), but at most *max_scale*; see `scaled`."""
    return scaled(image, log_scale, max_scale) @ text.T


def scaled(rows: Tensor, log_scale: Tensor, max_scale: float = math.inf) -> Tensor:
    """Return t times the rows, with t = exp(log_scale), but at most *max_scale*.

    Where t is cut, *log_scale* gets no gradient: this is a clamp inside the loss. OpenCLIP and CyCLIP cut the
    parameter itself after each step, at t = 100, for the same t in the loss.
    """
    if not max_scale > 0:
        raise InputError(f"max_scale: got {max_scale!r}; allowed: a positive number")
    return log_scale.clamp(max=math.log(max_scale)).exp() * rows


def off_diagonal(matrix: Tensor) -> Tensor:
    """Return the entries of a (B, B) matrix without its diagonal, row by row, as (B, B - 1).

    >>> import torch
    >>> off_diagonal(torch.arange(9).view(3, 3))
    tensor([[1, 2],
            [3, 5],
            [6, 7]])
    """
    size = len(matrix)
    # Without the first entry, each diagonal entry ends a row of B + 1.
    return matrix.flatten()[1:].view(size - 1, size + 1)[:, :-1].reshape(size, size - 1)


def symmetrize(one_way: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """Return the mean of a loss of rows over both directions: image to text, and text to image."""
    return (one_way(logits) + one_way(logits.T)) / 2


def sigmoid_loss_sum(logits: Tensor, offset: int = 0) -> Tensor:
    """Return sum_ij softplus(-z_ij l_ij), z being +1 on the diagonal and -1 elsewhere, in nats.

    The diagonal of a (rows, B) block of the logits starts at column *offset*.
    """
    # Signs first: softplus(l) - l is the same as softplus(-l), but rounds to 0 where a match is judged well.
    matches = torch.diagonal(logits, offset)
    return F.softplus(torch.diagonal_scatter(logits, -matches, offset)).sum()
