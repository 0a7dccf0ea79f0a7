"""The registry of optimizers and its interface.

An optimizer is a function ``(grad, buffers, count, *, <reserved names>, <its options>) -> direction`` over rows of flat
parameters. *grad* (R, P) holds the gradients of R replicas. *buffers* holds the optimizer's running state by name, (R,
width), updated in place. *count* (float32, on the device; 0-d, or (R, 1) if replicas may skip steps, as in float16) is
the number of steps including this one. The trainer adds *rate* times *direction* to the parameters, with a learning
rate for each replica. Options are keys of a study's ``[train]`` table; one that the study leaves out has the
optimizer's own default, and one that it sets always counts.

Inputs in addition to the gradient are requested by reserved keyword-only names (`RESERVED`):

- ``params``: the parameters (R, P) before the step;
- ``layout``: the position, shape and weight decay of each parameter, a tuple of `Segment`;
- ``rates``: the learning rates (R,) of this step, before factors on those of scalars.

A replica's numbers must not depend on the others: operations are elementwise, or reduce over one parameter of one
replica (`stability.optimizers.reproducible`). The host must not read tensors, so that a step can be captured as a CUDA
graph.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from stability.registry import Registry, Traits, Variant

RESERVED = ("params", "layout", "rates")
"""Keyword-only names that an optimizer may request and no study can set."""


@dataclass(frozen=True)
class Segment:
    """One parameter in the flat vector of P numbers.

    Attributes:
        name: as in the model, such as ``image.0.weight`` or ``loss.bias``.
        start: position of its first number.
        shape: its shape in memory; the weights of a linear map, (out, in), are stored as (in, out).
        linear: whether it is the matrix of a linear map, not an embedding, a vector or a scalar.
        trained: whether it is trained; otherwise its gradient is zero.
        decay: its weight decay.
        lr_multiplier: the factor on its learning rate, by which the trainer multiplies the direction.
    """

    name: str
    start: int
    shape: tuple[int, ...]
    linear: bool = False
    trained: bool = True
    decay: float = 0.0
    lr_multiplier: float = 1.0

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def of(self, flat: Tensor) -> Tensor:
        """Return this parameter's part of *flat* (R, P) as a view (R, size)."""
        return flat[:, self.start : self.start + self.size]


Layout = tuple[Segment, ...]
"""All parameters in memory order; the padding behind the last belongs to none."""


@dataclass(frozen=True)
class OptimizerTraits(Traits):
    """What an optimizer declares.

    Attributes:
        buffers: The names of the buffers, which are initially zero and like the gradient; or ``layout -> width of each
            buffer by name``.
        decay: ``"decoupled"`` (the trainer adds ``- weight_decay * theta`` to the direction), ``"in_grad"`` (it adds
            ``weight_decay * theta`` to the gradient) or ``"own"`` (the optimizer adds `Segment.decay` times the
            parameter itself).
        describe: ``(**options) -> str``: the optimizer with its options, as a report names it.
        preconditioner: ``(buffers, steps, *, <options>) -> (R, P)``: the positive diagonal that divides a step; None
            if a step is not the gradient's mean divided by a diagonal.
        stability_threshold: ``(**options) -> float``: the largest sharpness that is stable at learning rate 1; None if
            unknown.
        evaluated: ``(params, buffers, *, <options>) -> (R, P)``: the parameters that probes measure and that are kept,
            if they are not those at which gradients are taken; before the first step the two are equal.
        bounded_step: A step moves a parameter by no more than about the learning rate, whatever the gradient.
        linear_maps: It treats the matrices of linear maps in a way of its own, so towers without any are refused.
    """

    buffers: tuple[str, ...] | Callable[[Layout], Mapping[str, int]]
    decay: Literal["decoupled", "in_grad", "own"]
    describe: Callable[..., str]
    preconditioner: Callable[..., Tensor] | None = None
    stability_threshold: Callable[..., float] | None = None
    evaluated: Callable[..., Tensor] | None = None
    bounded_step: bool = False
    linear_maps: bool = False


optimizer = Registry("optimizer", OptimizerTraits, group="stability.optimizers")


def options_of(variant: Variant[OptimizerTraits]) -> dict[str, inspect.Parameter]:
    """Return the options of an optimizer that a study may set.

    >>> list(options_of(optimizer["adamw"]))
    ['betas', 'eps']
    """
    return {name: parameter for name, parameter in variant.options.items() if name not in RESERVED}


def inputs_of(variant: Variant[OptimizerTraits], available: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the *available* reserved inputs that an optimizer requests."""
    return {name: available[name] for name in RESERVED if name in variant.options}


def buffer_widths(variant: Variant[OptimizerTraits], layout: Layout, width: int) -> dict[str, int]:
    """Return the numbers per replica in each buffer of an optimizer, for a gradient of *width* numbers."""
    buffers = variant.traits.buffers
    return dict(buffers(layout)) if callable(buffers) else dict.fromkeys(buffers, width)
