"""The machine of a run: device, memory, versions of everything that affects a number, and reproducible arithmetic."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

from stability.devices import host_memory
from stability.registry import InputError, nearest

PRECISION = "highest"
"""Precision of float32 matrix products: no TF32 or bfloat16."""

PACKAGES = ("torch", "numpy", "scipy", "statsmodels", "pandas", "pyarrow", "contrastive-stability")


def pick_device(name: str) -> torch.device:
    """Return the device called *name*; ``auto`` is the GPU if there is one."""
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device: unknown device {name!r}{nearest(name, ('auto', 'cpu', 'cuda'))}")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "--device: 'cuda' was asked for, but this machine has no CUDA device (allowed here: auto, cpu)"
        )
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def device_model(device: torch.device) -> str:
    """Return the model of the processor or GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def device_memory(device: torch.device) -> int:
    """Return the bytes of memory of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return host_memory()


@contextmanager
def peak_of(device: torch.device) -> Iterator[Callable[[], int | None]]:
    """Yield a function that returns the peak memory in bytes since the call, or None if the system does not report it.

    On a GPU it is the device memory that PyTorch reserves. On a CPU it is the resident memory of this process as Linux
    counts it, Python and PyTorch included.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_reserved(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak: proc(5)
    except OSError:
        yield lambda: None
    else:
        yield lambda: 1024 * _kibibytes(Path("/proc/self/status"), "VmHWM")


def _kibibytes(status: Path, key: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(key))


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect a number."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


@cache
def source_hash() -> str:
    """Return a hash of the package's source, since checkouts of one version may compute different numbers."""
    folder = Path(__file__).resolve().parents[1]
    hasher = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        hasher.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return hasher.hexdigest()[:12]


def git_commit() -> str:
    """Return the commit of the source tree that the package runs from ("-dirty" if edited), or "" outside one."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists() or shutil.which("git") is None:
        return ""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=False
        ).stdout.strip()

    edited = git("status", "--porcelain", "--untracked-files=no", "--", "stability", "pyproject.toml")
    return git("rev-parse", "HEAD") + ("-dirty" if edited else "")


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Parameters of mallopt(3), from glibc's malloc.h."""

RETAIN = {M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**26, M_MMAP_MAX: 0}
"""Settings while training: freed memory is kept for the next step."""

DEFAULT = {M_TRIM_THRESHOLD: 2**17, M_TOP_PAD: 2**17, M_MMAP_MAX: 2**16}
"""Settings otherwise: the defaults of glibc."""


def _set_malloc(parameters: Mapping[int, int]) -> None:
    """Set parameters of glibc's malloc; with another C library do nothing.

    Every training step frees and allocates the same megabytes. If they are returned to the system in between, every
    page causes a fault at its first access, which takes half of the time of a small model's step.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        for parameter, value in parameters.items():
            library.mallopt(parameter, value)
        library.malloc_trim(0)


@contextmanager
def reproducible_arithmetic() -> Iterator[None]:
    """Compute in one thread and in full float32 precision, so that sums have the same order on every machine.

    Memory freed inside the ``with`` block is retained for the next step.
    """
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision(PRECISION)
    torch.backends.cudnn.allow_tf32 = False  # the setting above does not apply to convolutions
    _set_malloc(RETAIN)
    try:
        yield
    finally:
        _set_malloc(DEFAULT)
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = convolutions


def core_count() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
