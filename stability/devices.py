"""What computing on a device asks for: copies that nobody waits for, and memory in which equal numbers stay equal."""

from __future__ import annotations

import torch
from torch import Tensor

CACHE_LINE_FLOATS = 16
"""Numbers of a line of a CPU's cache, in float32."""


SHARE = 4
"""One call may compute as much as this part of an accelerator's memory: a quarter, where a training step has half."""

UNKNOWN_MEMORY = 2**34
"""Bytes that an accelerator is taken to have if PyTorch cannot tell."""


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


def room_on(device: torch.device, on_cpu: int, taken: int = 0) -> int:
    """Return how many bytes one call may compute at once: *on_cpu*, or a share of an accelerator's memory.

    That is of all its memory but what the caller says is *taken*; never of the memory that happens to be free, so that
    numbers do not depend on what else lies there.
    """
    if not is_accelerator(device):
        return on_cpu
    known = device.type == "cuda"
    memory = torch.cuda.get_device_properties(device).total_memory if known else UNKNOWN_MEMORY
    return max(0, memory - taken) // SHARE


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
