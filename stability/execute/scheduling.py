"""Groups one after the other, or side by side on an executor whose workers may die or hang: each ends in an outcome."""

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
from stability.execute.worker import HEARTBEAT, Heartbeat, Outcome, Task, read_heartbeat, train_local, train_remote
from stability.grid import Group
from stability.registry import InputError
from stability.study import Study

HEARTBEAT_TIMEOUT = 60.0
"""Seconds without a sign of life after which a worker hangs: it is frozen, or its machine is lost."""

STEP_TIMEOUT = 3600.0
"""Seconds without a step after which a worker hangs although it shows signs of life."""

MAX_ATTEMPTS = 3
"""How often a group is begun whose workers die or hang."""


@dataclass(frozen=True)
class Callbacks:
    """Who is told how a run goes on.

    *open* gets the study or replication whose groups come next, *say* a sentence, *begin* the number of groups to
    train, *step* a group and its steps done, *done* a finished group and its seconds.
    """

    open: Callable[[Study], None] = lambda study: None
    say: Callable[[str], None] = lambda sentence: None
    begin: Callable[[int], None] = lambda groups: None
    step: Callable[[Group, int], None] = lambda group, step: None
    done: Callable[[Group, float], None] = lambda group, seconds: None


NO_CALLBACKS = Callbacks()


def run_serial(tasks: deque[Task], watch: Callbacks, stop: Event) -> Iterator[tuple[Task, Outcome]]:
    """Yield each of *tasks* with its outcome, trained in this process, until *stop*; the caller may add tasks."""
    while tasks and not stop.is_set():
        task = tasks.popleft()
        yield task, train_local(task, partial(watch.step, task.group))


def run_parallel(
    tasks: deque[Task], executor: Executor, watch: Callbacks, stop: Event
) -> Iterator[tuple[Task, Outcome]]:
    """Yield each of *tasks* with its outcome, as they end on *executor*; the caller may add tasks.

    After *stop* no further group is begun. A group whose worker dies or hangs is handed on, and begun `MAX_ATTEMPTS` times in
    all. A broken `WorkerPool` is rebuilt; where another executor breaks, what it had not begun is trained in this
    process. Raises `InputError` if the executor drops its groups, as a cluster does that has lost its scheduler.
    """
    if not tasks:
        return
    shared = tasks[0].where / "groups" / f".shared-{secrets.token_hex(8)}"
    crew = _InFlight(executor, watch, shared.name)
    shared.touch()
    try:
        while (tasks and not stop.is_set()) or crew.jobs or crew.lost:
            if stop.is_set():
                crew.withdraw()
            else:
                crew.submit(tasks)
            yield from crew.ended()
            yield from crew.requeue_stalled(tasks)
            if crew.lost and not crew.jobs:
                yield from crew.recovered(tasks)
                if not isinstance(executor, WorkerPool):
                    yield from run_serial(tasks, watch, stop)
    finally:
        shared.unlink(missing_ok=True)


@dataclass
class _InFlight:
    """The groups that are with an executor, and what its workers were last known to do."""

    executor: Executor
    watch: Callbacks
    token: str
    jobs: dict[Future[Outcome], Task] = field(default_factory=dict)
    lost: list[Task] = field(default_factory=list)
    tried: Counter[str] = field(default_factory=Counter)
    pulses: dict[str, _LastHeartbeat] = field(default_factory=dict)
    idle_ends: int = 0

    def submit(self, tasks: deque[Task]) -> None:
        """Give *tasks* to the executor, unless it is broken."""
        while tasks and not self.lost:
            task = replace(tasks.popleft(), token=self.token)
            try:
                self.jobs[self.executor.submit(train_remote, task)] = task
            except BrokenExecutor:
                self.lost.append(task)

    def withdraw(self) -> None:
        """Take back what no worker has begun."""
        for job in [job for job in self.jobs if job.cancel()]:
            del self.jobs[job]

    def ended(self) -> Iterator[tuple[Task, Outcome]]:
        """Wait for a heartbeat or for the end of a group, and yield those that have ended."""
        finished, _ = wait(self.jobs, timeout=HEARTBEAT, return_when=FIRST_COMPLETED)
        for job in finished:
            task = self.jobs.pop(job)
            try:
                outcome = job.result()
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
            except Exception:  # noqa: BLE001 (of the executor's own, as for a group that killed several workers)
                outcome = Outcome(0.0, traceback.format_exc())
            self.idle_ends = 0
            yield task, outcome

    def requeue_stalled(self, tasks: deque[Task]) -> Iterator[tuple[Task, Outcome]]:
        """Tell the watch of every step; kill a worker that hangs, or leave it alone and add its group to *tasks*.

        Yields the groups that have been handed on too often.
        """
        now = time.monotonic()
        for job, task in list(self.jobs.items()):
            sign = read_heartbeat(task.where, task.group)
            if sign is None:
                continue
            self.watch.step(task.group, sign.step)
            pulse = self.pulses.get(task.group.id, _LastHeartbeat(sign, now, now)).felt(sign, now)
            self.pulses[task.group.id] = pulse
            if not (why := pulse.hangs(now)):
                continue
            del self.pulses[task.group.id]
            self.watch.say(f"group {task.group.id}: its worker hangs ({why}); the group is handed on")
            if isinstance(self.executor, WorkerPool):
                self.executor.kill(sign.process)  # It ends as dead, with the sign that it leaves.
                continue
            self._count(task)
            job.cancel()
            del self.jobs[job]
            if self.tried[task.group.id] < MAX_ATTEMPTS:
                tasks.append(task)
            else:
                yield task, Outcome(0.0, f"its workers hang: {why}, {MAX_ATTEMPTS} times")

    def recovered(self, tasks: deque[Task]) -> Iterator[tuple[Task, Outcome]]:
        """Add the groups of a broken executor to *tasks*, and yield those that have killed too many workers."""
        lost, self.lost = self.lost, []
        guilty = [task for task in lost if read_heartbeat(task.where, task.group)]
        self.idle_ends += not guilty
        rebuilt = isinstance(self.executor, WorkerPool)
        allowed = MAX_ATTEMPTS if rebuilt else 1
        for task in reversed(lost):
            if task in guilty:
                self._count(task)
            if self.tried[task.group.id] >= allowed:
                times = f", {allowed} times" if allowed > 1 else ""
                yield task, Outcome(0.0, f"the worker process died (killed, or out of memory){times}")
            elif self.idle_ends >= MAX_ATTEMPTS:
                yield task, Outcome(0.0, f"worker processes died before they began, {MAX_ATTEMPTS} times")
            else:
                tasks.appendleft(task)
        if isinstance(self.executor, WorkerPool):
            self.executor.rebuild()
            if guilty:
                names = ", ".join(task.group.id for task in guilty)
                self.watch.say(
                    f"a worker process died (killed, or out of memory) in group {names}; what it broke goes on"
                )

    def _count(self, task: Task) -> None:
        """Note a lost try of a group, and remove what its worker left."""
        self.tried[task.group.id] += 1
        self.pulses.pop(task.group.id, None)
        for leftover in (task.where / "groups").glob(f".{task.group.id}.*"):
            leftover.unlink(missing_ok=True)


@dataclass(frozen=True)
class _LastHeartbeat:
    """The last sign of a worker, when it came, and when its step had last changed, by this process's own clock."""

    sign: Heartbeat
    heard: float
    moved: float

    def felt(self, sign: Heartbeat, now: float) -> _LastHeartbeat:
        """Return the pulse after reading *sign* at *now*."""
        return _LastHeartbeat(
            sign,
            now if sign != self.sign else self.heard,
            now if (sign.step, sign.process) != (self.sign.step, self.sign.process) else self.moved,
        )

    def hangs(self, now: float) -> str:
        """Return why the worker counts as hanging, or nothing.

        >>> pulse = _Pulse(Sign(3, 7, 1), heard=0.0, moved=0.0)
        >>> pulse.hangs(SILENT), pulse.hangs(SILENT + 1)
        ('', 'no sign of life for 60 s')
        >>> pulse.felt(Sign(3, 8, 1), STUCK).hangs(STUCK + 1)
        'no step for 3600 s'
        """
        if now - self.heard > HEARTBEAT_TIMEOUT:
            return f"no sign of life for {HEARTBEAT_TIMEOUT:.0f} s"
        return f"no step for {STEP_TIMEOUT:.0f} s" if now - self.moved > STEP_TIMEOUT else ""
