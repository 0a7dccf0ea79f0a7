"""AdamW and SGD, their schedule and gradient clipping, for a whole population in flat buffers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
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


def norms(taken: Tensor) -> dict[str, Tensor]:
    """Return the Euclidean norm (R,) of each replica's step (R, P)."""
    return {"update_norm": torch.linalg.vector_norm(taken, dim=-1)}


CACHE = 2**20
"""Floats of parameters that are updated at a time on a CPU: few enough for its cache, enough to be worth the calls."""


def take_step(
    theta: Tensor,
    gradient: Tensor,
    moments: Moments,
    rates: Sequence[float],
    blocks: Sequence[Block],
    train: Train,
    *,
    sizes: Callable[[Tensor], dict[str, Tensor]] = norms,
    frozen: Tensor | None = None,
) -> dict[str, Tensor]:
    """Update *theta* (R, P) and *moments* in place by one step of the study's optimizer; return *sizes* of the step.

    Each replica steps at its own of the *rates*; those that are *frozen* (R,) keep their parameters. The kernels are
    torch's fused ones, one pass over parameters, gradients and moments, row by row, so that a replica's bits do not
    depend on the others. On a CPU a few rows at a time are copied, updated and compared with the copy, while they are
    in the cache; *sizes* maps the step (r, P) of r rows to measures by name, each (r,).
    """
    moments.count += 1
    buffers = (theta, gradient, moments.first, moments.second)
    count = torch.tensor(float(moments.count), device=theta.device)
    most = len(theta) if theta.is_cuda else max(1, CACHE // theta.shape[1])
    count_of_parts = -(-len(theta) // most)
    parts = []
    for number in range(count_of_parts):
        rows = slice(number * len(theta) // count_of_parts, (number + 1) * len(theta) // count_of_parts)
        part = theta[rows]
        before = part.clone()
        for block in blocks:
            lying = [buffer[rows, block.start : block.stop].unbind() for buffer in buffers]
            for rate in dict.fromkeys(rates[rows]):
                alike = [place for place, own in enumerate(rates[rows]) if own == rate]
                chosen = [[own[place] for place in alike] for own in lying]
                KERNELS[train.optimizer](Step(chosen, count, rate * block.multiplier, block.decay), train)
        if frozen is not None:
            torch.where(frozen[rows, None], before, part, out=part)
        parts.append(sizes(before.sub_(part)))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@dataclass(frozen=True)
class Step:
    """What one call of a kernel works on: parameters, gradients and both moments of some replicas, at one rate."""

    rows: list[list[Tensor]]
    count: Tensor
    rate: float
    decay: float


def adamw(step: Step, train: Train) -> None:
    """Update rows in place by AdamW: theta <- theta - rate (m_hat / (sqrt(v_hat) + eps) + decay theta).

    Loshchilov and Hutter (2019), arXiv:1711.05101, Alg. 2.
    """
    parameters, gradients, first, second = step.rows
    torch._fused_adamw_(
        parameters,
        gradients,
        first,
        second,
        [],
        [step.count] * len(parameters),
        lr=step.rate,
        beta1=train.betas[0],
        beta2=train.betas[1],
        weight_decay=step.decay,
        eps=train.eps,
        amsgrad=False,
        maximize=False,
    )


def sgd(step: Step, train: Train) -> None:
    """Update rows in place by SGD: m <- momentum m + g + decay theta, theta <- theta - rate m.

    Heavy ball without dampening, Polyak (1964), USSR Computational Mathematics 4:1.
    """
    parameters, gradients, first, _ = step.rows
    torch._fused_sgd_(
        parameters,
        gradients,
        first if train.momentum else [],
        weight_decay=step.decay,
        momentum=train.momentum,
        lr=step.rate,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,
    )


KERNELS = {"adamw": adamw, "sgd": sgd}
"""The update of each optimizer, by its name in a study."""


def preconditioner(moments: Moments, train: Train) -> Tensor:
    """Return what the optimizer divides a step by, shape (R, P): Adam's bias-corrected sqrt(v_hat) + eps, or 1 for SGD.

    Adam's is eps alone before the first step.
    """
    if train.optimizer == "sgd":
        return torch.ones_like(moments.second)
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
