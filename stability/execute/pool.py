"""Worker processes on this machine, replaced when one of them dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

from stability.execute.devices import workers_a_device
from stability.execute.worker import begin
from stability.plugins import Plugin


class WorkerPool(Executor):
    """A `ProcessPoolExecutor` that can be rebuilt after a worker's death; each worker loads *plugins* first.

    Where *devices* are several, as `stability.execute.devices.devices_of` names them, each worker sees one of them, in
    turn, also after a death. `sharing` is how many workers share the memory of one device.

    Workers are begun in a thread of the pool's own, whoever submits: Linux ends them with that thread (see `begin`), so
    it must live as long as they do.
    """

    def __init__(self, workers: int, plugins: Sequence[Plugin] = (), devices: Sequence[str] = ()) -> None:
        self._workers, self._plugins, self._devices = workers, tuple(plugins), tuple(devices)
        self.sharing = workers_a_device(workers, devices)
        self._starter = ThreadPoolExecutor(1, "starter", _block_sigint)
        self._pool = self._fresh()

    def _fresh(self) -> ProcessPoolExecutor:
        # Spawned, not forked: a fork copies locks of threads that it does not copy.
        context = multiprocessing.get_context("spawn")
        # A pool gives all its workers the same arguments: they number themselves, anew in every pool.
        number = context.Value("i", 0) if len(self._devices) > 1 else None
        return ProcessPoolExecutor(self._workers, context, begin, (self._plugins, self._devices, number))

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Schedule a call; raises `BrokenExecutor` after a worker's death, until `rebuild`."""
        return self._starter.submit(self._pool.submit, function, *args, **kwargs).result()

    def rebuild(self) -> None:
        """Replace a broken pool."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._fresh()

    def kill(self, process: int) -> None:
        """Kill one worker, by its process id; the pool is broken then. Strangers are left alone."""
        if process in self._pool._processes:
            os.kill(process, signal.SIGKILL)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers after their groups."""
        self._pool.shutdown(wait, cancel_futures=cancel_futures)
        if wait:  # else the thread goes on, and the workers with it
            self._starter.shutdown()

    def abandon(self) -> None:
        """End the workers now: an unfinished group is trained again, and no file is ever half written."""
        self._starter.submit(self._abandon).result()  # behind a submission that an interruption has left to itself
        self._starter.shutdown()

    def _abandon(self) -> None:
        workers = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.kill()


def _block_sigint() -> None:
    """Block interruptions in this thread; processes begun in it never see one.

    At a terminal it reaches every process, and a worker that is still importing what `begin` is in would complain.
    """
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
