"""A pool of worker processes on this machine that can be rebuilt when one of them dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

from stability.execute.devices import workers_a_device
from stability.execute.worker import init_worker
from stability.plugins import Plugin


class WorkerPool(Executor):
    """A `ProcessPoolExecutor` that can be rebuilt after a worker's death.

    Worker processes are started by a dedicated thread of the pool, whichever thread submits. Linux ends them with the
    thread that started them (see `init_worker`), so that thread must live as long as they do.

    Args:
        workers: Number of processes.
        plugins: Files with losses or encoders that each worker loads first.
        devices: Names of GPUs as `stability.execute.devices.devices_of` returns them. If there are several, each worker
            sees one of them, assigned round-robin, also after a rebuild.

    Attributes:
        sharing: How many workers share the memory of one device.
    """

    def __init__(self, workers: int, plugins: Sequence[Plugin] = (), devices: Sequence[str] = ()) -> None:
        self._workers, self._plugins, self._devices = workers, tuple(plugins), tuple(devices)
        self.sharing = workers_a_device(workers, devices)
        self._starter = ThreadPoolExecutor(1, "starter", _block_sigint)
        self._pool = self._new_pool()

    def _new_pool(self) -> ProcessPoolExecutor:
        # Not fork: a forked child inherits locks held by threads that do not exist in it.
        context = multiprocessing.get_context("spawn")
        # All workers get the same arguments, so each takes its number from a counter shared by the pool.
        number = context.Value("i", 0) if len(self._devices) > 1 else None
        return ProcessPoolExecutor(self._workers, context, init_worker, (self._plugins, self._devices, number))

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Schedule a call; raises `BrokenExecutor` after a worker's death, until `rebuild`."""
        return self._starter.submit(self._pool.submit, function, *args, **kwargs).result()

    def rebuild(self) -> None:
        """Replace a broken pool."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._new_pool()

    def kill(self, process: int) -> None:
        """Kill the worker with this process id, which breaks the pool; ignore ids of other processes."""
        if process in self._pool._processes:
            os.kill(process, signal.SIGKILL)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers after their current groups."""
        self._pool.shutdown(wait, cancel_futures=cancel_futures)
        if wait:  # otherwise the thread stays alive, and the workers with it
            self._starter.shutdown()

    def terminate(self) -> None:
        """Kill the workers now; unfinished groups are lost, and files are written atomically, so none is partial."""
        self._starter.submit(self._terminate).result()  # queued after a submission that an interruption left pending
        self._starter.shutdown()

    def _terminate(self) -> None:
        workers = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.kill()


def _block_sigint() -> None:
    """Block SIGINT in this thread; processes started by it inherit the mask.

    A terminal sends SIGINT to every process, and a worker that is still importing, before `init_worker` runs, would
    print a traceback.
    """
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
