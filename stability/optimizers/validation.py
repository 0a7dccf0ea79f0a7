"""What is refused when an optimizer is loaded: wrong declarations, and a function that returns no direction."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor

from stability.losses.calls import dtype_name
from stability.optimizers.registry import RESERVED, OptimizerTraits, buffer_widths, options_of
from stability.optimizers.trials import defaults_of, direction_of, random_gradients, trial, zero_buffers
from stability.registry import InputError, Variant, shortened

DECAYS = ("decoupled", "in_grad", "own")

OPTION_TYPES = (bool, int, float, str)
"""What an option may be, or a tuple of numbers: what TOML and the digest of a run can hold."""


def validate_optimizer(variant: Variant[OptimizerTraits]) -> None:
    """Raise `InputError` with one sentence if an optimizer is declared wrongly or does not return a direction."""
    where = f"optimizer {variant.name!r}"
    _check_traits(variant.traits, where)
    for name, parameter in options_of(variant).items():
        _check_option(name, parameter.default, where)
    try:
        _check_calls(variant)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"{where} can't be called: {error_message(error)}") from error


def error_message(error: BaseException) -> str:
    """Return the first line of an exception, with its type unless it is an `InputError`."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    return first if isinstance(error, InputError) else f"{type(error).__name__}: {first}"


def _check_traits(traits: OptimizerTraits, where: str) -> None:
    buffers = traits.buffers
    named = isinstance(buffers, tuple) and all(isinstance(name, str) for name in buffers)
    if not callable(buffers) and not named:
        raise InputError(
            f"{where}: buffers={shortened(buffers)}; allowed: a tuple of names, as ('first',), () for none, or a "
            "function of the layout"
        )
    if isinstance(buffers, tuple) and len({*buffers}) < len(buffers):
        raise InputError(f"{where}: buffers={shortened(buffers)}; allowed: names that differ")
    if traits.decay not in DECAYS:
        raise InputError(f"{where}: decay={shortened(traits.decay)}; allowed: {', '.join(map(repr, DECAYS))}")
    for name in ("describe", "preconditioner", "stability_threshold", "evaluated"):
        value = getattr(traits, name)
        if not callable(value) and (name == "describe" or value is not None):
            raise InputError(f"{where}: {name}={shortened(value)}; allowed: a function")
    for name in ("bounded_step", "linear_maps"):
        if not isinstance(getattr(traits, name), bool):
            raise InputError(f"{where}: {name}={shortened(getattr(traits, name))}; allowed: True or False")


def _check_option(name: str, default: Any, where: str) -> None:
    if default is inspect.Parameter.empty:
        raise InputError(
            f"{where}: {name!r} has no default; give it one, or use one of the reserved names ({', '.join(RESERVED)})"
        )
    numbers = isinstance(default, tuple) and all(isinstance(item, int | float) for item in default)
    if not numbers and not isinstance(default, OPTION_TYPES):
        raise InputError(
            f"{where}: option {name!r} has the default {shortened(default)}; allowed: a number, a text, True or False, "
            "or a tuple of numbers"
        )


def _check_calls(variant: Variant[OptimizerTraits]) -> None:
    """Raise `InputError` unless the widths of buffers, the direction, the words and the threshold are sound."""
    of = trial()
    widths = buffer_widths(variant, of.layout, of.params.shape[1])
    for name, width in widths.items():
        if not isinstance(name, str) or isinstance(width, bool) or not isinstance(width, int) or width < 0:
            raise InputError(f"its buffers are {shortened(widths)}; allowed: a whole number of at least 0 by name")
    count = torch.ones((), dtype=torch.float32)
    grads = random_gradients(of)(1, of.params)
    check_direction(direction_of(variant, of, of.params, grads, zero_buffers(variant, of), count), grads)
    words = variant.traits.describe(**defaults_of(variant))
    if not isinstance(words, str) or not words.strip() or "\n" in words:
        raise InputError(f"describe returns {shortened(words)}; allowed: a text of one line")
    if variant.traits.stability_threshold is not None:
        check_threshold(variant.traits.stability_threshold(**defaults_of(variant)))


def check_direction(direction: object, grads: Tensor, which: str = "its first direction") -> None:
    """Raise `InputError`, which names it as *which*, unless a direction is finite and like the gradients."""
    if not isinstance(direction, Tensor):
        raise InputError(f"it returns a value of type {type(direction).__name__}; allowed: a tensor, the direction")
    if direction.shape != grads.shape:
        raise InputError(
            f"it returns a direction of shape {tuple(direction.shape)} for gradients of shape {tuple(grads.shape)}; "
            "allowed: the same shape"
        )
    if direction.dtype != grads.dtype:
        raise InputError(
            f"it returns {dtype_name(direction)} for gradients of {dtype_name(grads)}; make new tensors of the "
            "gradient's type, and convert none"
        )
    if not bool(direction.isfinite().all()):
        raise InputError(f"{which} is not finite")


def check_threshold(threshold: object) -> None:
    """Raise `InputError` unless a threshold is a positive number."""
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 < threshold < math.inf:
        raise InputError(f"stability_threshold returns {shortened(threshold)}; allowed: a positive number")
