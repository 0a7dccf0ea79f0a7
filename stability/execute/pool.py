"""Worker processes on this machine, replaced when one of them dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from stability.execute.worker import begin
from stability.plugins import Plugin


class WorkerPool(Executor):
    """A `ProcessPoolExecutor` that can be rebuilt after a worker's death; each worker loads *plugins* first."""

    def __init__(self, workers: int, plugins: Sequence[Plugin] = ()) -> None:
        self._workers, self._plugins = workers, tuple(plugins)
        self._pool = self._fresh()

    def _fresh(self) -> ProcessPoolExecutor:
        # Spawned, not forked: a fork copies locks of threads that it does not copy.
        return ProcessPoolExecutor(self._workers, multiprocessing.get_context("spawn"), begin, (self._plugins,))

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Schedule a call; raises `BrokenExecutor` after a worker's death, until `rebuild`."""
        with _interruptions_held():  # A call may start a worker.
            return self._pool.submit(function, *args, **kwargs)

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

    def abandon(self) -> None:
        """End the workers now: an unfinished group is trained again, and no file is ever half written."""
        workers = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.kill()


@contextmanager
def _interruptions_held() -> Iterator[None]:
    """Hold back an interruption of this thread; processes begun in here never see one.

    At a terminal it reaches every process, and a worker that is still importing what `begin` is in would complain.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
