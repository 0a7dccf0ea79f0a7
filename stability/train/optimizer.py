"""AdamW, its schedule and gradient clipping, for a whole population in flat buffers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stability.study import Train


@dataclass(frozen=True)
class Block:
    """Parameters side by side, from *start* to *stop* of P, with one weight decay and one factor on the rate."""

    start: int
    stop: int
    decay: float
    multiplier: float


def blocks_of(sizes: Iterable[tuple[int, float, float]]) -> tuple[Block, ...]:
    """Return the fewest blocks that cover parameters given in order by their (size, decay, multiplier).

    >>> blocks_of([(6, 0.1, 1.0), (2, 0.1, 1.0), (3, 0.0, 1.0)])
    (Block(start=0, stop=8, decay=0.1, multiplier=1.0), Block(start=8, stop=11, decay=0.0, multiplier=1.0))
    """
    blocks: list[Block] = []
    stop = 0
    for (decay, multiplier), alike in itertools.groupby(sizes, key=lambda entry: entry[1:]):
        start, stop = stop, stop + sum(size for size, *_ in alike)
        blocks.append(Block(start, stop, decay, multiplier))
    return tuple(blocks)


@dataclass
class Moments:
    """Adam's running means of the gradient and of its square, each (R, P), and the number of steps behind them."""

    first: Tensor
    second: Tensor
    count: int = 0

    @classmethod
    def zeros_like(cls, theta: Tensor) -> Moments:
        """Return the moments before the first step."""
        return cls(torch.zeros_like(theta), torch.zeros_like(theta))


def schedule(train: Train, step: int) -> float:
    """Return the factor on the learning rate at *step*: linear warm-up, then constant, or cosine to zero.

    >>> short = Train(steps=8, warmup=4, schedule="cosine")
    >>> [round(schedule(short, step), 3) for step in range(8)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if step < train.warmup:
        return (step + 1) / train.warmup
    if train.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - train.warmup) / (train.steps - train.warmup)))


CACHE = 2**19
"""Floats of parameters that are updated at a time on a CPU: few enough for its cache, enough to be worth the calls."""


def adamw(
    theta: Tensor,
    gradient: Tensor,
    moments: Moments,
    rates: Sequence[float],
    blocks: Sequence[Block],
    train: Train,
    frozen: Tensor | None = None,
) -> Tensor:
    """Update *theta* (R, P) and *moments* in place by a step of AdamW; return the norm of each replica's update, (R,).

    Decay is decoupled: theta <- theta - rate (m_hat / (sqrt(v_hat) + eps) + decay theta). Loshchilov and Hutter (2019),
    arXiv:1711.05101, Alg. 2, by torch's fused kernel: one pass over parameters, gradients and moments, row by row, so
    that a replica's bits do not depend on the others. Replicas that are *frozen* (R,) keep their parameters.

    On a CPU a few rows at a time are copied, updated and compared with the copy, while they are in the cache.
    """
    moments.count += 1
    count = torch.tensor(float(moments.count), device=theta.device)
    buffers = (theta, gradient, moments.first, moments.second)
    views = [[x[:, block.start : block.stop].unbind() for x in buffers] for block in blocks]
    width = len(theta) if theta.is_cuda else max(1, CACHE // theta.shape[1])
    norms = theta.new_empty(len(theta))
    for start in range(0, len(theta), width):
        places = range(start, min(start + width, len(theta)))
        part = theta[start : start + width]
        before = part.clone()
        for block, rows in zip(blocks, views, strict=True):
            for rate in dict.fromkeys(rates[place] for place in places):
                alike = [place for place in places if rates[place] == rate]
                parameters, gradients, first, second = ([own[place] for place in alike] for own in rows)
                torch._fused_adamw_(
                    parameters,
                    gradients,
                    first,
                    second,
                    [],
                    [count] * len(alike),
                    lr=rate * block.multiplier,
                    beta1=train.betas[0],
                    beta2=train.betas[1],
                    weight_decay=block.decay,
                    eps=train.eps,
                    amsgrad=False,
                    maximize=False,
                )
        if frozen is not None:
            torch.where(frozen[start : start + width, None], before, part, out=part)
        norms[start : start + width] = torch.linalg.vector_norm(before.sub_(part), dim=-1)
    return norms


def preconditioner(moments: Moments, train: Train) -> Tensor:
    """Return Adam's bias-corrected sqrt(v_hat) + eps, shape (R, P); eps alone before the first step."""
    correction = 1 - train.betas[1] ** moments.count if moments.count else 1.0
    return (moments.second / correction).sqrt_().add_(train.eps)


@dataclass
class Clip:
    """Clipping of each replica's gradient norm: off, at a quantile of its own recent norms, or at an absolute norm."""

    quantile: float | None
    norm: float | None
    recent: Tensor
    seen: int = 0

    @classmethod
    def of(cls, train: Train, replicas: int, device: torch.device, window: int = 100) -> Clip:
        """Return the clipping that a study asks for; quantiles are over the last *window* steps."""
        return cls(train.clip_quantile, train.clip_norm, torch.zeros(replicas, window, device=device))

    def __call__(self, gradient: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
        """Return the clipped gradient (R, P) and whether each replica was clipped (R,).

        A quantile needs history: it clips from the window's end on, against the norms before this step.
        """
        if self.quantile is None and self.norm is None:
            return gradient, torch.zeros_like(norm)
        if self.norm is not None:
            bound = torch.full_like(norm, self.norm)
        else:
            assert self.quantile is not None
            full = self.seen >= self.recent.shape[1]
            bound = self.recent.quantile(self.quantile, dim=1) if full else torch.full_like(norm, math.inf)
            self.recent[:, self.seen % self.recent.shape[1]] = norm
            self.seen += 1
        factor = (bound / norm).clamp(max=1.0)
        return gradient * factor[:, None], (norm > bound).to(norm.dtype)
