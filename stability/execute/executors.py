"""Builds the executor that ``--on`` names: this process, local worker processes, or the workers of a Dask cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager

from stability.execute.devices import devices_of
from stability.execute.machine import pick_device
from stability.execute.planning import worker_count
from stability.execute.pool import WorkerPool
from stability.plugins import Plugin
from stability.registry import InputError


@contextmanager
def executor_of(on: str, device: str = "auto", plugins: Sequence[Plugin] = ()) -> Iterator[Executor | None]:
    """Yield the executor that ``--on`` names.

    An exception inside the ``with`` block, such as an interruption, stops the workers of this machine at once.

    Args:
        on: ``local`` for one worker process per core on a CPU, this process on one GPU, and one worker process per GPU
            on several; ``processes:N`` for N worker processes, which take the GPUs round-robin; ``dask:ADDRESS`` for
            the workers of a Dask scheduler (see `stability.execute.cluster`).
        device: ``auto``, ``cpu`` or ``cuda``.
        plugins: Files with losses or encoders that each worker loads first.

    Raises:
        InputError: *on* is none of these.
    """
    kind, _, rest = on.partition(":")
    if kind == "dask" and rest:
        from stability.execute.cluster import cluster_of

        with cluster_of(rest, pick_device(device), plugins) as cluster:
            yield cluster
        return
    if on == "local":
        workers = worker_count(pick_device(device))
    elif kind == "processes" and rest.isdecimal() and rest.isascii() and int(rest):
        workers = int(rest)
    else:
        raise InputError(f"--on: got {on!r}; allowed: local, or processes:N with N at least 1, or dask:tcp://HOST:PORT")
    if on == "local" and workers == 1:
        yield None
        return
    pool = WorkerPool(workers, plugins, devices_of(pick_device(device)))
    try:
        yield pool
    except BaseException:
        pool.terminate()
        raise
    pool.shutdown()
