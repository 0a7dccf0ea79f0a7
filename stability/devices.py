"""What computing on a device asks for: copies that nobody waits for, and memory in which equal numbers stay equal."""

from __future__ import annotations

import torch
from torch import Tensor

CACHE_LINE_FLOATS = 16
"""Numbers of a line of a CPU's cache, in float32."""


def is_accelerator(device: torch.device) -> bool:
    """Return whether the host launches operations on *device*, which run on their own."""
    return device.type != "cpu"


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU on *device*; the host goes on while it is copied.

    Memory must be pinned for that. The caching allocator of pinned memory keeps it until the copy is done.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=is_accelerator(device))


def padded(size: int) -> int:
    """Return the smallest number of whole cache lines that holds *size* numbers, in numbers.

    >>> padded(16), padded(17)
    (16, 32)
    """
    return -(-size // CACHE_LINE_FLOATS) * CACHE_LINE_FLOATS


def is_aligned(device: torch.device, *sizes: int) -> bool:
    """Return whether replicas that have so many numbers each all begin a cache line; on an accelerator always.

    Where they do not, a replica's bits would depend on its position: ``torch.bmm`` may sum in another order, and
    functions such as ``exp`` treat the last numbers of a tensor by other instructions than the rest.
    """
    return is_accelerator(device) or not any(size % CACHE_LINE_FLOATS for size in sizes)
