"""Runs groups serially in this process, or in parallel on an executor whose workers may die or hang."""

from __future__ import annotations

import secrets
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Event

from stability.execute.pool import WorkerPool
from stability.execute.worker import HEARTBEAT, GroupResult, Heartbeat, Task, read_heartbeat, train_local, train_remote
from stability.grid import Group
from stability.registry import InputError
from stability.study import Study

HEARTBEAT_TIMEOUT = 60.0
"""Seconds without a heartbeat after which a worker counts as hanging: it is frozen, or its machine is lost."""

STEP_TIMEOUT = 3600.0
"""Seconds without a training step after which a worker counts as hanging although it still sends heartbeats."""

MAX_ATTEMPTS = 3
"""How often a group is started whose workers die or hang."""


@dataclass(frozen=True)
class Callbacks:
    """Functions that are called as a run proceeds.

    Attributes:
        open: Called with the study or replication whose groups come next.
        say: Called with a sentence for the user.
        begin: Called with the number of groups to train.
        step: Called with a group and the number of steps it has done.
        done: Called with a finished group and the seconds it took.
    """

    open: Callable[[Study], None] = lambda study: None
    say: Callable[[str], None] = lambda sentence: None
    begin: Callable[[int], None] = lambda groups: None
    step: Callable[[Group, int], None] = lambda group, step: None
    done: Callable[[Group, float], None] = lambda group, seconds: None


NO_CALLBACKS = Callbacks()


def run_serial(tasks: deque[Task], callbacks: Callbacks, stop: Event) -> Iterator[tuple[Task, GroupResult]]:
    """Yield each of *tasks* with its result, trained in this process, until *stop* is set; the caller may add tasks."""
    while tasks and not stop.is_set():
        task = tasks.popleft()
        yield task, train_local(task, partial(callbacks.step, task.group))


def run_parallel(
    tasks: deque[Task], executor: Executor, callbacks: Callbacks, stop: Event
) -> Iterator[tuple[Task, GroupResult]]:
    """Yield each of *tasks* with its result, in the order in which they end on *executor*.

    A group whose worker dies or hangs is requeued and started at most `MAX_ATTEMPTS` times in all. A broken
    `WorkerPool` is rebuilt. If another executor breaks, the groups that it had not started are trained in this process.

    Args:
        tasks: The groups to train; the caller may add tasks while iterating.
        executor: Runs `train_remote` for each task.
        callbacks: Called with sentences and steps.
        stop: Once set, no further group is started.

    Raises:
        InputError: The executor drops its groups, as a cluster does that has lost its scheduler.
    """
    if not tasks:
        return
    token_file = tasks[0].where / "groups" / f".shared-{secrets.token_hex(8)}"
    in_flight = _InFlight(executor, callbacks, token_file.name)
    token_file.touch()
    try:
        while (tasks and not stop.is_set()) or in_flight.futures or in_flight.lost:
            if stop.is_set():
                in_flight.cancel_pending()
            else:
                in_flight.submit(tasks)
            yield from in_flight.completed()
            yield from in_flight.requeue_stalled(tasks)
            if in_flight.lost and not in_flight.futures:
                yield from in_flight.requeue_lost(tasks)
                if not isinstance(executor, WorkerPool):
                    yield from run_serial(tasks, callbacks, stop)
    finally:
        token_file.unlink(missing_ok=True)


@dataclass
class _InFlight:
    """The groups submitted to an executor, and the last heartbeats of its workers.

    Attributes:
        executor: Where the groups are submitted.
        callbacks: Called with sentences and steps.
        token: Name of the file that marks the disk as shared (see `Task`).
        futures: The submitted tasks by their future.
        lost: Tasks that the executor had when it broke.
        attempts: How often each group was started and lost, by id.
        heartbeats: The last heartbeat of each group, by id.
        idle_failures: How often in a row the executor broke before a worker had started a group.
    """

    executor: Executor
    callbacks: Callbacks
    token: str
    futures: dict[Future[GroupResult], Task] = field(default_factory=dict)
    lost: list[Task] = field(default_factory=list)
    attempts: Counter[str] = field(default_factory=Counter)
    heartbeats: dict[str, _LastHeartbeat] = field(default_factory=dict)
    idle_failures: int = 0

    def submit(self, tasks: deque[Task]) -> None:
        """Submit *tasks* to the executor, unless it is broken."""
        while tasks and not self.lost:
            task = replace(tasks.popleft(), token=self.token)
            try:
                self.futures[self.executor.submit(train_remote, task)] = task
            except BrokenExecutor:
                self.lost.append(task)

    def cancel_pending(self) -> None:
        """Cancel the groups that no worker has started."""
        for future in [future for future in self.futures if future.cancel()]:
            del self.futures[future]

    def completed(self) -> Iterator[tuple[Task, GroupResult]]:
        """Wait for one heartbeat interval or the end of a group, and yield the groups that have ended."""
        finished, _ = wait(self.futures, timeout=HEARTBEAT, return_when=FIRST_COMPLETED)
        for future in finished:
            task = self.futures.pop(future)
            try:
                result = future.result()
            except BrokenExecutor:
                self.lost.append(task)
                continue
            except CancelledError as error:
                raise InputError(
                    f"--on: the executor has dropped group {task.group.id}; is its scheduler still there? Finished "
                    "groups are kept, and the same command goes on from there"
                ) from error
            except InputError:
                raise
            except Exception:  # noqa: BLE001 (the executor's own error, as for a group that killed several workers)
                result = GroupResult(0.0, traceback.format_exc())
            self.idle_failures = 0
            yield task, result

    def requeue_stalled(self, tasks: deque[Task]) -> Iterator[tuple[Task, GroupResult]]:
        """Report every step, and requeue the groups of workers that hang.

        A hanging worker of a `WorkerPool` is killed; one of another executor is left running, and its group is added to
        *tasks*. Yields the groups that have used up their attempts.
        """
        now = time.monotonic()
        for future, task in list(self.futures.items()):
            heartbeat = read_heartbeat(task.where, task.group)
            if heartbeat is None:
                continue
            self.callbacks.step(task.group, heartbeat.step)
            last = self.heartbeats.get(task.group.id, _LastHeartbeat(heartbeat, now, now)).updated(heartbeat, now)
            self.heartbeats[task.group.id] = last
            if not (reason := last.stall_reason(now)):
                continue
            del self.heartbeats[task.group.id]
            self.callbacks.say(f"group {task.group.id}: its worker hangs ({reason}); the group is requeued")
            if isinstance(self.executor, WorkerPool):
                # The pool breaks; the heartbeat file left behind shows which group the dead worker had.
                self.executor.kill(heartbeat.process)
                continue
            self._count_attempt(task)
            future.cancel()
            del self.futures[future]
            if self.attempts[task.group.id] < MAX_ATTEMPTS:
                tasks.append(task)
            else:
                yield task, GroupResult(0.0, f"its workers hang: {reason}, {MAX_ATTEMPTS} times")

    def requeue_lost(self, tasks: deque[Task]) -> Iterator[tuple[Task, GroupResult]]:
        """Requeue the groups of a broken executor, rebuild it if it is a `WorkerPool`, and yield the failed groups.

        A group counts as failed if too many workers died while training it.
        """
        lost, self.lost = self.lost, []
        # A dead worker leaves its heartbeat file, so the group that it was training may have killed it.
        suspects = [task for task in lost if read_heartbeat(task.where, task.group)]
        self.idle_failures += not suspects
        rebuilt = isinstance(self.executor, WorkerPool)
        allowed = MAX_ATTEMPTS if rebuilt else 1
        for task in reversed(lost):
            if task in suspects:
                self._count_attempt(task)
            if self.attempts[task.group.id] >= allowed:
                times = f", {allowed} times" if allowed > 1 else ""
                yield task, GroupResult(0.0, f"the worker process died (killed, or out of memory){times}")
            elif self.idle_failures >= MAX_ATTEMPTS:
                yield task, GroupResult(0.0, f"worker processes died before they began, {MAX_ATTEMPTS} times")
            else:
                tasks.appendleft(task)
        if isinstance(self.executor, WorkerPool):
            self.executor.rebuild()
            if suspects:
                names = ", ".join(task.group.id for task in suspects)
                self.callbacks.say(
                    f"a worker process died (killed, or out of memory) in group {names}; what it broke goes on"
                )

    def _count_attempt(self, task: Task) -> None:
        """Count a lost attempt of a group, and remove the files that its worker left."""
        self.attempts[task.group.id] += 1
        self.heartbeats.pop(task.group.id, None)
        for leftover in (task.where / "groups").glob(f".{task.group.id}.*"):
            leftover.unlink(missing_ok=True)


@dataclass(frozen=True)
class _LastHeartbeat:
    """The last heartbeat of a worker.

    Attributes:
        heartbeat: What the worker sent.
        received_at: When it arrived, in seconds of this process's monotonic clock.
        step_changed_at: When its step last changed, in seconds of the same clock.
    """

    heartbeat: Heartbeat
    received_at: float
    step_changed_at: float

    def updated(self, heartbeat: Heartbeat, now: float) -> _LastHeartbeat:
        """Return the state after reading *heartbeat* at *now*."""
        previous = self.heartbeat
        return _LastHeartbeat(
            heartbeat,
            now if heartbeat != previous else self.received_at,
            now if (heartbeat.step, heartbeat.process) != (previous.step, previous.process) else self.step_changed_at,
        )

    def stall_reason(self, now: float) -> str:
        """Return why the worker counts as hanging, or "".

        >>> last = _LastHeartbeat(Heartbeat(3, 7, 1), received_at=0.0, step_changed_at=0.0)
        >>> last.stall_reason(HEARTBEAT_TIMEOUT), last.stall_reason(HEARTBEAT_TIMEOUT + 1)
        ('', 'no heartbeat for 60 s')
        >>> last.updated(Heartbeat(3, 8, 1), STEP_TIMEOUT).stall_reason(STEP_TIMEOUT + 1)
        'no step for 3600 s'
        """
        if now - self.received_at > HEARTBEAT_TIMEOUT:
            return f"no heartbeat for {HEARTBEAT_TIMEOUT:.0f} s"
        return f"no step for {STEP_TIMEOUT:.0f} s" if now - self.step_changed_at > STEP_TIMEOUT else ""
