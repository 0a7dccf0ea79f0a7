"""Device helpers: asynchronous copies, memory limits, and cache-line alignment for reproducible bits."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

CACHE_LINE_FLOATS = 16
"""Number of float32 values in a cache line of a CPU."""

SHARE = 4
"""One call may use one part in SHARE of an accelerator's memory: a quarter; a training step may use half."""

UNKNOWN_MEMORY = 2**34
"""Bytes of memory assumed for an accelerator if PyTorch does not report them."""


def is_accelerator(device: torch.device) -> bool:
    """Return whether operations on *device* run asynchronously to the host."""
    return device.type != "cpu"


def host_memory() -> int:
    """Return the bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to *device* without blocking the host.

    The copy goes through pinned memory, which its caching allocator keeps until the copy is done.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=is_accelerator(device))


def to_float64(leaf: Any) -> Any:
    """Return a tensor of floats as float64, without its gradient; anything else unchanged."""
    return leaf.detach().double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def room_on(device: torch.device, on_cpu: int, taken: int = 0) -> int:
    """Return how many bytes one call may use: *on_cpu* on a CPU, else a share of the accelerator's memory.

    The share is of the total memory less the bytes *taken*, not of the currently free memory, so that results do not
    depend on other processes.
    """
    if not is_accelerator(device):
        return on_cpu
    is_cuda = device.type == "cuda"
    memory = torch.cuda.get_device_properties(device).total_memory if is_cuda else UNKNOWN_MEMORY
    return max(0, memory - taken) // SHARE


def padded(size: int) -> int:
    """Return *size* rounded up to whole cache lines, in float32 values.

    >>> padded(16), padded(17)
    (16, 32)
    """
    return -(-size // CACHE_LINE_FLOATS) * CACHE_LINE_FLOATS


def is_aligned(device: torch.device, *sizes: int) -> bool:
    """Return whether replicas of these sizes are all aligned to cache lines; always True on an accelerator.

    Otherwise a replica's bits would depend on its position: ``torch.bmm`` may sum in a different order, and functions
    such as ``exp`` use different instructions for the last elements of a tensor.
    """
    return is_accelerator(device) or not any(size % CACHE_LINE_FLOATS for size in sizes)
