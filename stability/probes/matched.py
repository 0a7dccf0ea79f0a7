"""Gradient noise of several losses at the same parameters, so that only the loss differs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from stability.curvature.products import ParamFilter
from stability.devices import to_float64
from stability.probes.noise import GradientNoise, Objective, gradient_noise
from stability.probes.registry import mean_over
from stability.registry import InputError

HALVINGS = 16
"""From 1e3 to 0.015, where tanh(b / c) has not rounded to 1 for the least ``logit_cap`` c of 1e-3."""


def matched_gradient_noise(
    objectives: Mapping[str, Objective],
    params: Mapping[str, Tensor],
    batches: Any,
    *,
    refit: Mapping[str, str] | None = None,
    held_out: Any = None,
    blocks: Mapping[str, ParamFilter] | None = None,
) -> dict[str, GradientNoise]:
    """Return the gradient noise of each of *objectives* at the same *params* over the same *batches*, by name.

    Noise along two training runs confounds the loss with the parameters it led to; here only the loss differs.

    Args:
        objectives: ``(params, batch) -> scalar`` by name.
        params: parameters by name.
        batches: as in `gradient_noise`.
        refit: for an objective, the name of a trained scalar that *params* lack, such as SigLIP's bias at a checkpoint
            of CLIP. It is set to the value that minimizes the objective's mean over *held_out* (see `fitted_scalar`)
            and kept constant, so that all noises are over the same *params*.
        held_out: further batches, like *batches* but with other samples: a scalar fitted on the measured batches would
            be biased towards them.
        blocks: as in `gradient_noise`.

    Raises:
        InputError: if *refit* names no objective or a scalar that *params* hold, or comes without *held_out*.

    >>> params, batches = {"w": torch.tensor(1.0)}, torch.tensor([1.0, 2.0, 6.0])
    >>> pull = lambda p, x: (p["w"] * x - p["b"]) ** 2 / 2
    >>> both = {"plain": lambda p, x: p["w"] * x, "pull": pull}
    >>> noise = matched_gradient_noise(both, params, batches, refit={"pull": "b"}, held_out=torch.tensor([2.0, 4.0]))
    >>> noise["plain"].trace_cov, noise["pull"].second_moment  # b = 3: gradients (x - 3) x = -2, -2, 18
    (tensor(7.), tensor(110.6667))
    """
    fitted: dict[str, dict[str, Tensor]] = {}
    for role, name in (refit or {}).items():
        if role not in objectives:
            raise InputError(f"refit: {role!r} is no objective (known: {', '.join(objectives)})")
        if name in params:
            raise InputError(f"refit.{role}: the parameters hold {name!r} already; allowed: a scalar that they lack")
        if held_out is None:
            raise InputError(f"refit.{role}: needs held_out, batches of samples that the measured ones do not have")
        fitted[role] = {name: fitted_scalar(objectives[role], params, held_out, name)}
    return {
        role: gradient_noise(_with(objective, fitted.get(role, {})), params, batches, blocks=blocks)
        for role, objective in objectives.items()
    }


def _with(objective: Objective, constants: Mapping[str, Tensor]) -> Objective:
    return lambda params, batch: objective({**params, **constants}, batch)


def fitted_scalar(
    objective: Objective,
    params: Mapping[str, Tensor],
    batches: Any,
    name: str,
    *,
    low: float = -1e3,
    high: float = 1e3,
    iterations: int = 40,
) -> Tensor:
    """Return the value of the scalar *name* that minimizes the mean of ``objective(params, batch)`` over *batches*.

    The mean must be convex in the scalar, as for every loss whose logits are linear in it; otherwise the result may be
    one local minimum of several. A zero of the derivative is found in float64 by alternating a bisection of [*low*,
    *high*] and a Newton step, if it stays inside the bracket, for a fixed number of *iterations*, so that it runs under
    ``torch.vmap``. Beforehand, an end at which the derivative is exactly zero moves halfway to zero, several times: far
    out, a ``logit_cap`` makes all logits constant. NaN if the derivative does not change sign within the bracket: then
    there is no minimum. Returned in the dtype of *params*.

    Args:
        objective: ``objective(params, batch)``, a scalar.
        params: all other parameters.
        batches: stacked batches.
        name: the scalar.
        low: lower end of the bracket.
        high: upper end of the bracket.
        iterations: number of bisections, each with a Newton step.

    >>> squared = lambda p, x: (p["b"] - x) ** 2
    >>> fitted_scalar(squared, {"w": torch.tensor(0.0)}, torch.tensor([1.0, 2.0, 6.0]), "b")
    tensor(3.)
    """
    constants, data = (pytree.tree_map(to_float64, tree) for tree in (dict(params), batches))

    def mean(scalar: Tensor) -> Tensor:
        return mean_over(data, lambda batch: objective({**constants, name: scalar}, batch))

    grad_of = torch.func.grad(mean)
    hess_and_grad = torch.func.grad_and_value(grad_of)
    # A zero computed from the parameters, so that under vmap both bounds have the replica axis.
    zero = sum((0 * leaf.sum() for leaf in pytree.tree_leaves(constants)), torch.zeros((), dtype=torch.float64))
    below, above = (_unsaturated(grad_of, zero + end) for end in (low, high))
    bracketed = (grad_of(below) < 0) & (grad_of(above) > 0)
    x = (below + above) / 2
    for iteration in range(iterations):
        hess, grad = hess_and_grad(x)
        below, above = torch.where(grad < 0, x, below), torch.where(grad < 0, above, x)
        newton, middle = x - grad / hess, (below + above) / 2
        inside = (newton >= below) & (newton <= above)
        x = torch.where(inside, newton, middle) if iteration % 2 else middle
    return torch.where(bracketed, x, torch.nan).to(next(iter(params.values())).dtype)


def _unsaturated(grad_of: Callable[[Tensor], Tensor], end: Tensor) -> Tensor:
    """Return *end*, halved as often as the derivative there is exactly zero, at most `HALVINGS` times."""
    for _ in range(HALVINGS):
        end = torch.where(grad_of(end) == 0, end / 2, end)
    return end


def fitted_bias(image: Tensor, text: Tensor, log_scale: Tensor, *, iterations: int = 12) -> Tensor:
    """Return the b that minimizes SigLIP's mean loss over K batches of unit rows (K, B, D) at t = e^(log_scale).

    The derivative of the loss with respect to b is sum_ij sigmoid / B - 1, so at the minimum the probabilities
    sigmoid(t <image_i, text_j> + b) of all pairs sum to the number of matches, K B, whichever pairs match. The equation
    for the logarithm of that sum is solved by Newton steps. They start where each sigmoid equals its exponential, which
    is below the solution; a step that leaves the bracket is replaced by a bisection. The result equals `fitted_scalar`
    on that loss, but the logits are computed once. Runs under ``torch.vmap``, in the dtype of *image* with sums in
    float64; needs B > 1.

    Args:
        image: unit rows (K, B, D).
        text: unit rows (K, B, D).
        log_scale: log t, a scalar.
        iterations: number of Newton steps.

    >>> ones = torch.ones(1, 8, 4) / 2
    >>> fitted_bias(ones, ones, torch.tensor(0.0)).item() + 1  # all logits are 1 + b
    -1.945910...
    """
    logits = log_scale.detach().exp() * image.detach() @ text.detach().mT
    matches = math.log(logits.shape[0] * logits.shape[1])
    below = matches - logits.flatten().logsumexp(0).double()
    above = -logits.amin().double() - math.log(logits.shape[1] - 1)
    bias = below
    for _ in range(iterations):
        # In place: for a large matrix of logits, allocation costs more than the arithmetic.
        probability = (logits + bias.to(logits.dtype)).sigmoid_()
        total = probability.sum(dtype=torch.float64)
        excess = total.log() - matches
        below, above = torch.where(excess < 0, bias, below), torch.where(excess < 0, above, bias)
        total_grad = total - torch.linalg.vector_norm(probability, dtype=torch.float64).square()
        newton = bias - excess * total / total_grad
        inside = (newton >= below) & (newton <= above)
        bias = torch.where(inside, newton, (below + above) / 2)
    return bias.to(image.dtype)
