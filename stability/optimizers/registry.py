"""The registry of optimizers and its interface.

An optimizer is a function ``(grad, buffers, count, *, <its options>) -> direction`` over rows of flat parameters.
*grad* (R, P) holds the gradients of R replicas. *buffers* holds the optimizer's running state by name, each like *grad*
and updated in place. *count* (0-d, float32, on the device) is the number of steps including this one. The trainer adds
*rate* times *direction* to the parameters, with a learning rate for each replica. All operations must be elementwise,
so that a replica's numbers do not depend on the others, and the host must not read tensors, so that a step can be
captured as a CUDA graph. Options are keys of a study's ``[train]`` table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from stability.registry import Registry, Traits


@dataclass(frozen=True)
class OptimizerTraits(Traits):
    """What an optimizer declares.

    Attributes:
        buffers: The names of the buffers, which are initially zero.
        decay: ``"decoupled"`` (the trainer adds ``- weight_decay * theta`` to the direction) or ``"in_grad"`` (it adds
            ``weight_decay * theta`` to the gradient).
        preconditioner: ``(buffers, steps, *, <options>) -> (R, P)``: the positive diagonal that divides a step.
        describe: ``(**options) -> str``: the optimizer with its options, as a report names it.
        stability_threshold: ``(**options) -> float``: the largest sharpness that is stable at learning rate 1; None if
            unknown.
        bounded_step: A step moves a parameter by no more than about the learning rate, whatever the gradient.
    """

    buffers: tuple[str, ...]
    decay: Literal["decoupled", "in_grad"]
    preconditioner: Callable[..., Tensor]
    describe: Callable[..., str]
    stability_threshold: Callable[..., float] | None = None
    bounded_step: bool = False


optimizer = Registry("optimizer", OptimizerTraits, group="stability.optimizers")
