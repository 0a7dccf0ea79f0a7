"""Assigns the GPUs of this machine to worker processes, each of which sees one GPU only."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""Environment variable that CUDA reads at first use in a process: the devices that the process may see."""


def devices_of(device: torch.device) -> tuple[str, ...]:
    """Return the names of the GPUs that this process sees, in the form that `VISIBLE` takes; none for a CPU.

    GPUs of another model than the first are left out, because numbers may differ between models.
    """
    if device.type != "cuda":
        return ()
    models = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return devices_alike(models, os.environ.get(VISIBLE, ""))


def devices_alike(models: Sequence[str], visible: str = "") -> tuple[str, ...]:
    """Return the names of the devices whose model is that of the first; *visible* is the value of `VISIBLE`.

    >>> devices_alike(["H100", "H100", "T4"]), devices_alike(["H100", "H100"], "GPU-3f,6")
    (('0', '1'), ('GPU-3f', '6'))
    """
    names = [name.strip() for name in visible.split(",")] if visible else [str(index) for index in range(len(models))]
    return tuple(name for name, model in zip(names, models, strict=False) if model == models[0])


def device_of_worker(worker: int, devices: Sequence[str]) -> str:
    """Return the device of the worker with this number (from 0), assigned round-robin.

    >>> [device_of_worker(worker, ("0", "1")) for worker in range(5)]
    ['0', '1', '0', '1', '0']
    """
    return devices[worker % len(devices)]


def card_in_use(device: torch.device) -> tuple[str, int]:
    """Return the UUID of the GPU that this process trains on, and the number of GPUs it sees."""
    return str(torch.cuda.get_device_properties(device).uuid), torch.cuda.device_count()


def workers_a_device(workers: int, devices: Sequence[str]) -> int:
    """Return the largest number of workers that share one device and its memory; 1 without devices.

    >>> workers_a_device(5, ("0", "1")), workers_a_device(1, ("0", "1")), workers_a_device(8, ())
    (3, 1, 1)
    """
    return -(-workers // len(devices)) if devices else 1
