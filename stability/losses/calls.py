"""One call of a loss on random pairs: its arguments, and its checked result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from stability.losses.registry import LossTraits, reserved_of
from stability.registry import InputError, Variant
from stability.streams import stream

SIZE, DIM = 6, 4
"""Batch size and width of the embeddings."""

AVAILABLE = 64
"""Number of training pairs, or the batch size if that is larger."""


@dataclass(frozen=True)
class Inputs:
    """The arguments of one call of a loss.

    Attributes:
        varying: Differentiable arguments: image, text (B, D) and the scalars.
        reserved: Reserved arguments except the state.
        state: The state; empty for a loss without one.
    """

    varying: dict[str, Tensor]
    reserved: dict[str, Tensor]
    state: dict[str, Tensor]

    @property
    def everything(self) -> dict[str, Tensor]:
        """Return all tensors by name, those of the state as ``state.<name>``."""
        return {**self.varying, **self.reserved, **{f"state.{name}": value for name, value in self.state.items()}}

    def changed(self, **values: Tensor) -> Inputs:
        """Return the same call with other values of some differentiable arguments."""
        return replace(self, varying=self.varying | values)

    def reordered(self, order: Tensor) -> Inputs:
        """Return the same call with the pairs and all per-pair arguments reordered."""
        varying = {name: value[order] if value.ndim == 2 else value for name, value in self.varying.items()}
        reserved = dict(self.reserved)
        if "index" in reserved:
            reserved["index"] = reserved["index"][order]
        if "uniform" in reserved:
            reserved["uniform"] = reserved["uniform"][order][:, order]
        return Inputs(varying, reserved, self.state)


def inputs_of(
    variant: Variant[LossTraits], size: int = SIZE, *, seed: int = 0, step: int = 3, dtype: torch.dtype = torch.float64
) -> Inputs:
    """Return the arguments of a call of a loss on random pairs, at its initial scalars and initial state.

    Args:
        variant: the loss.
        size: the batch size.
        seed: of the random embeddings.
        step: the training step.
        dtype: of the embeddings, the scalars and the state.
    """
    generator = stream(seed, "check")
    image, text = F.normalize(torch.randn(2, size, DIM, generator=generator, dtype=torch.float64), dim=-1).to(dtype)
    scalars = {name: torch.tensor(scalar.at(size), dtype=dtype) for name, scalar in variant.traits.scalars.items()}
    available = {
        "step": torch.tensor(step),
        "index": torch.randperm(max(AVAILABLE, size), generator=generator)[:size],
        "uniform": torch.rand(size, size, generator=generator, dtype=torch.float64).to(dtype),
    }
    names = reserved_of(variant)
    initial = variant.traits.state(max(AVAILABLE, size)) if variant.traits.state and "state" in names else {}
    state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in initial.items()}
    reserved = {name: value for name, value in available.items() if name in names}
    return Inputs({"image": image, "text": text, **scalars}, reserved, state)


def call(variant: Variant[LossTraits], inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss and its new state (empty for a loss without one).

    Raises:
        InputError: The loss does not return one number, or takes a state and does not return a new one.
    """
    rest = {name: value for name, value in inputs.varying.items() if name not in ("image", "text")} | inputs.reserved
    state: dict[str, Tensor] = {}
    if "state" not in reserved_of(variant):
        returned = variant(inputs.varying["image"], inputs.varying["text"], **rest)
    else:
        output = variant(inputs.varying["image"], inputs.varying["text"], **rest, state=dict(inputs.state))
        if not (isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], Mapping)):
            raise InputError("it asks for a state, so it has to return two things: (loss, new_state)")
        returned, state = output[0], dict(output[1])
        if state.keys() != inputs.state.keys():
            raise InputError(f"its new state has {sorted(state)}, its initial state {sorted(inputs.state)}")
    if not isinstance(returned, Tensor):
        raise InputError(f"it returns a value of type {type(returned).__name__}; allowed: a tensor that is one number")
    if returned.ndim:
        raise InputError(f"it returns a tensor of shape {tuple(returned.shape)}; allowed: one number, shape ()")
    if not returned.is_floating_point():
        raise InputError(f"it returns a number of type {dtype_name(returned)}; allowed: a real one, as float32 is")
    return returned, state


def dtype_name(tensor: Tensor) -> str:
    """Return the name of a tensor's type, such as float32."""
    return str(tensor.dtype).removeprefix("torch.")
