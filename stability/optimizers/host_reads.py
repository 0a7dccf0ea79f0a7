"""Finds out whether the host reads numbers of tensors, which a step that is captured as a CUDA graph must not do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

HOST_READS = {
    "_local_scalar_dense": "the value of a tensor (.item(), float() or an if)",
    "equal": "whether two tensors are equal",
    "is_nonzero": "whether a tensor is zero",
    "nonzero": "the places of nonzero numbers",
    "masked_select": "numbers selected by a mask",
    "_unique2": "the distinct numbers of a tensor",
}
"""Operations whose result the host, or the size of a tensor, depends on, in words."""


def host_reads_of(step: Callable[[], object]) -> list[str]:
    """Return in words what the host reads while *step* runs, as far as operations on a CPU tell.

    >>> x = torch.ones(3)
    >>> host_reads_of(lambda: x.sum().item()), host_reads_of(lambda: x.sum() * 2)
    (['the value of a tensor (.item(), float() or an if)'], [])
    """
    with _HostReads() as operations, _Conversions() as conversions:
        step()
    return [*operations.found, *conversions.found]


class _HostReads(TorchDispatchMode):
    """Records operations by which the host reads numbers of a tensor, which cannot be captured as a CUDA graph."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and record it if it reads."""
        name = func.overloadpacket.__name__
        if name in HOST_READS:
            self.found.append(HOST_READS[name])
        elif name == "index" and any(_is_mask(index) for index in args[1]):
            self.found.append(HOST_READS["masked_select"])
        return func(*args, **(kwargs or {}))


def _is_mask(index: object) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


class _Conversions(torch.overrides.TorchFunctionMode):
    """Records methods by which Python reads a whole tensor without an operation of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch and record it if it reads."""
        if func in (Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__):
            self.found.append(f"a whole tensor (.{func.__name__}())")
        return func(*args, **(kwargs or {}))
