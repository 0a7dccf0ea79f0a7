"""Parameters of towers in safetensors files, from which runs can start; a safetensors file cannot run code."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stability.registry import InputError, nearest

Shapes = Mapping[str, tuple[int, ...]]


def digest_of(path: str) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of a file's content: the same wherever the file lies.

    Raises:
        InputError: The file cannot be read.
    """
    file = Path(path).expanduser()
    try:
        stat = file.stat()
        return _digest(file.absolute(), stat.st_mtime_ns, stat.st_size)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from error


@lru_cache(maxsize=64)
def _digest(file: Path, *stamp: int) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def run_in(path: str, prefix: str | None) -> str:
    """Return the id of the run whose parameters a file gives; "" for a file of one set of parameters without an id.

    Args:
        path: The file.
        prefix: The id or a unique prefix of it; None: the file must have one set of parameters.

    Raises:
        InputError: The file cannot be read, or *prefix* does not select one of its runs.
    """
    runs = _runs(path)
    if prefix is None:
        if len(runs) > 1:
            raise InputError(
                f"{path} has the parameters of {len(runs)} runs; allowed: one of them, as run = {runs[0]!r}"
            )
        return runs[0] if runs else ""
    selected = [run for run in runs if run.startswith(prefix)]
    if len(selected) != 1:
        found = f"{len(selected)} runs begin with" if selected else "no run begins with"
        raise InputError(f"{path}: {found} {prefix!r}{nearest(prefix, runs)}")
    return selected[0]


def names_in(path: str) -> frozenset[str]:
    """Return the names of the parameters in a file, or raise `InputError` if it cannot be read."""
    with _opened(path) as file:
        return frozenset(file.keys())


def _runs(path: str) -> list[str]:
    """Return the ids of the runs in a file that ``--save-params`` wrote; none for any other."""
    with _opened(path) as file:
        return [run for run in (file.metadata() or {}).get("runs", "").split(",") if run]


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    try:
        with safe_open(Path(path).expanduser(), framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file") from error
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read as a safetensors file: {error}") from error


def read_parameters_of(path: str, prefix: str | None, shapes: Shapes) -> dict[str, Tensor]:
    """Return the parameters of one run by name, float32 on the CPU: all towers, and what the file has of the loss.

    Args:
        path: The file: each tensor has the shape of the parameter, or in a file of ``--save-params`` one more axis.
        prefix: Which run of a file of several (see `run_in`).
        shapes: Shapes of the parameters of the towers, by name.

    Raises:
        InputError: The file cannot be read, lacks a parameter of a tower, or has one of another name, shape or type, or
            with a number that is not finite.
    """
    run, runs = run_in(path, prefix), _runs(path)
    params = {}
    with _opened(path) as file:
        names = set(file.keys())
        for name in sorted(shapes.keys() - names):
            raise InputError(
                f"{path}: has no {name!r}, a parameter of the towers{nearest(name, names - shapes.keys())}"
            )
        for name in sorted(names):
            if name not in shapes and not name.startswith("loss."):
                raise InputError(f"{path}: has {name!r}, which no tower has{nearest(name, shapes)}")
            value = file.get_slice(name)[runs.index(run)] if run else file.get_tensor(name)
            _check(path, name, value, shapes.get(name, ()))
            params[name] = value
    return params


def _check(path: str, name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if value.shape != shape:
        raise InputError(
            f"{path}: {name!r} has the shape {list(value.shape)}; allowed: {list(shape)}, as in the towers"
        )
    if value.dtype != torch.float32:
        raise InputError(f"{path}: {name!r} is {str(value.dtype).removeprefix('torch.')}; allowed: float32")
    if not bool(value.isfinite().all()):
        raise InputError(f"{path}: {name!r} has numbers that are not finite; allowed: finite numbers")
