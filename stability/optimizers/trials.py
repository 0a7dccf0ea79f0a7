"""Tries an optimizer on a few replicas of small parameters of odd sizes, as training calls it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from stability.devices import padded
from stability.optimizers.registry import Layout, Segment, buffer_widths, inputs_of, options_of
from stability.registry import Variant
from stability.streams import stream

REPLICAS = 5
STEPS = 4
DECAY = 0.1

SMALL: tuple[tuple[str, tuple[int, ...], bool, bool], ...] = (
    ("image.0.weight", (7, 3), True, True),
    ("text.0.weight", (5, 9), True, True),
    ("text.table", (4, 3), False, True),
    ("image.1.weight", (3, 2, 2), False, True),
    ("image.0.bias", (5,), False, True),
    ("text.frozen", (3,), False, False),
    ("loss.log_scale", (), False, True),
    ("loss.bias", (), False, True),
)
"""Name, shape, whether it is the matrix of a linear map, and whether it is trained, of each parameter."""

LARGE = (("image.0.weight", (211, 173), True, True), *SMALL[1:])
"""With a matrix that a CPU may split among threads."""

Gradients = Callable[[int, Tensor], Tensor]
"""The gradients (R, P) of a step, by its number from 1 on and the parameters (R, P)."""


@dataclass(frozen=True)
class Trial:
    """Parameters at the start of a trial, and what a study sets.

    Attributes:
        params: parameters (R, P).
        layout: where each parameter lies; the numbers behind the last are padding.
        rates: learning rates (R,).
    """

    params: Tensor
    layout: Layout
    rates: Tensor

    def of(self, rows: Sequence[int]) -> Trial:
        """Return the trial of some replicas, by their indices."""
        index = torch.tensor(list(rows), device=self.params.device)
        return replace(self, params=self.params[index], rates=self.rates[index])

    def without_decay(self) -> Trial:
        """Return the trial without weight decay."""
        return replace(self, layout=tuple(replace(segment, decay=0.0) for segment in self.layout))


@dataclass(frozen=True)
class Outcome:
    """What a trial led to.

    Attributes:
        params: the parameters (R, P) after the last step.
        buffers: the optimizer's buffers (R, width) after it, by name.
        directions: what the optimizer returned at each step, each (R, P).
    """

    params: Tensor
    buffers: dict[str, Tensor]
    directions: list[Tensor]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Everything that can differ between two trials, by name."""
        directions = {f"the direction of step {step}": value for step, value in enumerate(self.directions, 1)}
        return directions | {f"buffer {name!r}": value for name, value in self.buffers.items()}


def layout_of(shapes: Sequence[tuple[str, tuple[int, ...], bool, bool]]) -> Layout:
    """Return the layout of parameters of these names and shapes; trained ones of two axes or more decay."""
    segments: list[Segment] = []
    for name, shape, linear, trained in shapes:
        start = segments[-1].start + segments[-1].size if segments else 0
        decay = DECAY if trained and len(shape) > 1 else 0.0
        segments.append(Segment(name, start, shape, linear=linear, trained=trained, decay=decay))
    return tuple(segments)


def size_of(layout: Layout) -> int:
    """Return the number of parameters, without the padding behind them."""
    return layout[-1].start + layout[-1].size


def trial(shapes: Sequence[Any] = SMALL, dtype: torch.dtype = torch.float32) -> Trial:
    """Return a trial of `REPLICAS` replicas with parameters of these shapes (see `layout_of`), padded with zeros."""
    layout = layout_of(shapes)
    params = torch.zeros(REPLICAS, padded(size_of(layout)), dtype=dtype)
    numbers = torch.randn(REPLICAS, size_of(layout), generator=stream(0, "optimizer/params"))
    params[:, : size_of(layout)] = numbers.to(dtype)
    return Trial(params, layout, torch.logspace(-3, -1, REPLICAS, dtype=dtype))


def random_gradients(of: Trial, seed: int = 0) -> Gradients:
    """Return gradients that are drawn once for each step and replica; zero for what is not trained and for padding."""
    trained = torch.zeros(of.params.shape[1], dtype=of.params.dtype)
    for segment in of.layout:
        trained[segment.start : segment.start + segment.size] = float(segment.trained)
    width = of.params.shape[1]

    def gradients(step: int, params: Tensor) -> Tensor:
        numbers = torch.randn(REPLICAS, width, generator=stream(seed, f"optimizer/gradient/{step}"))
        return (0.3 * numbers.to(of.params.dtype) * trained).to(params.device)

    return gradients


def zero_buffers(variant: Variant, of: Trial) -> dict[str, Tensor]:
    """Return the buffers of an optimizer before the first step."""
    count, width = of.params.shape
    return {name: of.params.new_zeros(count, size) for name, size in buffer_widths(variant, of.layout, width).items()}


def defaults_of(variant: Variant) -> dict[str, Any]:
    """Return the options of an optimizer with their defaults."""
    return {name: parameter.default for name, parameter in options_of(variant).items()}


def direction_of(
    variant: Variant, of: Trial, params: Tensor, grads: Tensor, buffers: Mapping[str, Tensor], count: Tensor
) -> Any:
    """Return what an optimizer returns for one step.

    Args:
        variant: the optimizer.
        of: the trial, for its layout and rates.
        params: parameters (R, P) before the step.
        grads: gradients (R, P).
        buffers: its buffers by name, updated.
        count: number of steps including this one.
    """
    reserved = inputs_of(variant, {"params": params, "layout": of.layout, "rates": of.rates})
    return variant(grads, buffers, count, **reserved, **defaults_of(variant))


def run_trial(variant: Variant, of: Trial, gradients: Gradients, steps: int = STEPS) -> Outcome:
    """Return what some steps lead to, with weight decay as the optimizer declares it.

    Args:
        variant: the optimizer.
        of: the trial.
        gradients: the gradients of each step.
        steps: the number of steps.
    """
    params, buffers, directions = of.params.clone(), zero_buffers(variant, of), []
    count = torch.zeros((), dtype=torch.float32, device=params.device)
    decay = params.new_zeros(params.shape[1])
    for segment in of.layout:
        decay[segment.start : segment.start + segment.size] = segment.decay
    for step in range(1, steps + 1):
        count += 1
        grads = gradients(step, params).clone()
        if variant.traits.decay == "in_grad":
            grads += decay * params
        direction = direction_of(variant, of, params, grads, buffers, count)
        directions.append(direction.clone())
        if variant.traits.decay == "decoupled":
            direction = direction - decay * params
        params += of.rates[:, None] * direction
    return Outcome(params, buffers, directions)
