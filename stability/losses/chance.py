"""The chance level of a loss: its value on uninformative embeddings."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stability.losses.calls import DIM, SIZE, call, inputs_of
from stability.losses.registry import LossTraits, scalars_with
from stability.registry import Variant

LATE = 10**9
"""The step of the search, at which a schedule of the loss has ended."""


def chance_level(variant: Variant[LossTraits], batch_size: int, options: Mapping[str, Any] | None = None) -> float:
    """Return the chance level of a loss (uninformative embeddings) with these *options*, which include scalars.

    The declared formula is used if it takes every option; otherwise the minimum over constant similarities is
    computed numerically.
    """
    options = options or {}
    scalars, declared, formula = scalars_with(variant, options), variant.traits.scalars, variant.traits.chance
    others = {key: value for key, value in options.items() if key not in scalars}
    # The initial value of a trained scalar does not matter; the value of a frozen one does.
    sets_a_constant = any(not scalar.trained and scalar != declared[name] for name, scalar in scalars.items())
    if formula and not sets_a_constant and others.keys() <= inspect.signature(formula).parameters.keys():
        return float(formula(batch_size, **others))
    traits = replace(variant.traits, scalars=scalars)
    arm = replace(variant, function=partial(variant.function, **others), traits=traits)
    return best_constant(arm, batch_size)


def best_constant(variant: Variant[LossTraits], size: int = SIZE) -> float:
    """Return the minimum loss of a similarity that is the same for all pairs, with the best trained scalars.

    All images are one vector, all texts another; their angle and the trained scalars are optimized, at a late step.
    """
    return minimum_loss(variant, constant_pairs, size)


def constant_pairs(angle: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return *size* equal images and equal texts at an angle."""
    axes = torch.eye(DIM, dtype=torch.float64)[:2]
    text = torch.cos(angle) * axes[0] + torch.sin(angle) * axes[1]
    return axes[0].expand(size, DIM), text.expand(size, DIM)


def matched_pairs(angle: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return pairs that match up to an angle, spread over all axes."""
    axes, index = torch.eye(DIM, dtype=torch.float64), torch.arange(size)
    image, orthogonal = axes[index % DIM], axes[(index + 1) % DIM]
    # The search starts at a right angle, which is shifted here to almost matching pairs.
    turn = angle - math.pi / 2 + 0.1
    return image, torch.cos(turn) * image + torch.sin(turn) * orthogonal


def minimum_loss(
    variant: Variant[LossTraits], embed: Callable[[Tensor, int], tuple[Tensor, Tensor]], size: int = SIZE
) -> float:
    """Return the minimum loss over an angle and the trained scalars; *embed* maps angle and size to embeddings."""
    inputs = inputs_of(variant, size, step=LATE)
    angle = torch.tensor(math.pi / 2, dtype=torch.float64, requires_grad=True)
    free: dict[str, Tensor] = {
        name: inputs.varying[name].clone().requires_grad_()
        for name, scalar in variant.traits.scalars.items()
        if scalar.trained
    }
    optimizer = torch.optim.LBFGS([angle, *free.values()], max_iter=200, line_search_fn="strong_wolfe")

    def evaluate() -> float:
        optimizer.zero_grad()
        image, text = embed(angle, size)
        value = call(variant, inputs.changed(image=image, text=text, **free))[0]
        value.backward()
        return value.item()

    optimizer.step(evaluate)
    return evaluate()
