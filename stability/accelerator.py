"""What differs between a CPU and an accelerator: copies that nobody waits for, and how much is computed at once."""

from __future__ import annotations

import torch
from torch import Tensor

SHARE = 4
"""One call may compute as much as this part of an accelerator's memory: a quarter, where a training step has half."""

UNKNOWN_MEMORY = 2**34
"""Bytes that an accelerator is taken to have if PyTorch cannot tell."""


def copied_to(values: Tensor, device: torch.device) -> Tensor:
    """Return *values* on *device*; the host does not wait for a copy from the CPU to an accelerator."""
    if device.type == "cuda" and values.device.type == "cpu":
        # Only from pinned memory does CUDA copy while the host goes on.
        values = values.pin_memory()
    return values.to(device, non_blocking=True) if values.device.type == "cpu" else values.to(device)


def room_on(device: torch.device, on_cpu: int, taken: int = 0) -> int:
    """Return how many bytes one call may compute at once: *on_cpu*, or a share of an accelerator's memory.

    That is of all its memory but what the caller says is *taken*; never of the memory that happens to be free, so that
    numbers do not depend on what else lies there.
    """
    if device.type == "cpu":
        return on_cpu
    known = device.type == "cuda"
    memory = torch.cuda.get_device_properties(device).total_memory if known else UNKNOWN_MEMORY
    return max(0, memory - taken) // SHARE
