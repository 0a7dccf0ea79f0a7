"""A limit on the size of a tower, found while it is built, so that a typing error does not take all memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from stability.registry import InputError

REPLICAS = 2
"""Replicas that must fit in memory: a single run is trained twice."""

BYTES_PER_PARAMETER = 16
"""In training: a parameter, its gradient, and two running means of an optimizer, in float32."""

MOST_TENSORS = 4_000
"""Most parameters, each a tensor, of a tower; even empty ones take time and memory."""


class TowerTooLargeError(InputError):
    """A tower has too many parameters."""


@contextmanager
def limited_size(memory: int) -> Iterator[None]:
    """Within the block, raise `TowerTooLargeError` as soon as modules have too many parameters for *memory* bytes.

    >>> with limited_size(3200):
    ...     layer = nn.Linear(9, 10)
    >>> with limited_size(3200):
    ...     layer = nn.Linear(10, 10)
    Traceback (most recent call last):
    stability.encoders.limits.TowerTooLargeError: it has 110 parameters or more; allowed: at most 100 in a tower, so
    that 2 replicas in training fit in the memory of this machine
    """
    most, count, tensors = memory // (REPLICAS * BYTES_PER_PARAMETER), 0, 0

    def add(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count, tensors
        # A lazy layer has no size yet.
        if parameter is None or nn.parameter.is_lazy(parameter):
            return
        count, tensors = count + parameter.numel(), tensors + 1
        if count > most:
            raise TowerTooLargeError(
                f"it has {count:,} parameters or more; allowed: at most {most:,} in a tower, so that {REPLICAS} "
                "replicas in training fit in the memory of this machine"
            )
        if tensors > MOST_TENSORS:
            raise TowerTooLargeError(
                f"it has more than {MOST_TENSORS:,} weights and biases of layers; allowed: so many at most in a tower"
            )

    handle = register_module_parameter_registration_hook(add)
    try:
        yield
    finally:
        handle.remove()


def check_size(build: Callable[[], nn.Module], memory: int) -> None:
    """Raise `TowerTooLargeError` if a tower is too large, by building it without memory for its parameters.

    What cannot be built that way is not checked here.
    """
    try:
        with limited_size(memory), torch.device("meta"):
            build()
    except TowerTooLargeError:
        raise
    except Exception:  # noqa: BLE001 (the tower itself says what is wrong when it is built)
        return
