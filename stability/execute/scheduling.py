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
from stability.execute.worker import HEARTBEAT, Outcome, Sign, Task, read_sign, train_elsewhere, train_here
from stability.grid import Group
from stability.registry import InputError
from stability.study import Study

SILENT = 60.0
"""Seconds without a sign of life after which a worker hangs: it is frozen, or its machine is lost."""

STUCK = 3600.0
"""Seconds without a step after which a worker hangs although it shows signs of life."""

TRIES = 3
"""How often a group is begun whose workers die or hang."""


@dataclass(frozen=True)
class Watch:
    """Who is told how a run goes on.

    *open* gets the study or replication whose groups come next, *say* a sentence, *begin* the number of groups to
    train, *step* a group and its steps done, *done* a finished group and its seconds.
    """

    open: Callable[[Study], None] = lambda study: None
    say: Callable[[str], None] = lambda sentence: None
    begin: Callable[[int], None] = lambda groups: None
    step: Callable[[Group, int], None] = lambda group, step: None
    done: Callable[[Group, float], None] = lambda group, seconds: None


SILENCE = Watch()


def in_order(tasks: deque[Task], watch: Watch, stop: Event) -> Iterator[tuple[Task, Outcome]]:
    """Yield each of *tasks* with its outcome, trained in this process, until *stop*; the caller may add tasks."""
    while tasks and not stop.is_set():
        task = tasks.popleft()
        yield task, train_here(task, partial(watch.step, task.group))


def side_by_side(tasks: deque[Task], executor: Executor, watch: Watch, stop: Event) -> Iterator[tuple[Task, Outcome]]:
    """Yield each of *tasks* with its outcome, as they end on *executor*; the caller may add tasks.

    After *stop* no further group is begun. A group whose worker dies or hangs is handed on, and begun `TRIES` times in
    all. A broken `WorkerPool` is rebuilt; where another executor breaks, what it had not begun is trained in this
    process. Raises `InputError` if the executor drops its groups, as a cluster does that has lost its scheduler.
    """
    if not tasks:
        return
    shared = tasks[0].where / "groups" / f".shared-{secrets.token_hex(8)}"
    crew = _Crew(executor, watch, shared.name)
    shared.touch()
    try:
        while (tasks and not stop.is_set()) or crew.jobs or crew.lost:
            if stop.is_set():
                crew.withdraw()
            else:
                crew.submit(tasks)
            yield from crew.ended()
            yield from crew.hand_on_what_hangs(tasks)
            if crew.lost and not crew.jobs:
                yield from crew.recovered(tasks)
                if not isinstance(executor, WorkerPool):
                    yield from in_order(tasks, watch, stop)
    finally:
        shared.unlink(missing_ok=True)


@dataclass
class _Crew:
    """The groups that are with an executor, and what its workers were last known to do."""

    executor: Executor
    watch: Watch
    token: str
    jobs: dict[Future[Outcome], Task] = field(default_factory=dict)
    lost: list[Task] = field(default_factory=list)
    tried: Counter[str] = field(default_factory=Counter)
    pulses: dict[str, _Pulse] = field(default_factory=dict)
    idle_ends: int = 0

    def submit(self, tasks: deque[Task]) -> None:
        """Give *tasks* to the executor, unless it is broken."""
        while tasks and not self.lost:
            task = replace(tasks.popleft(), token=self.token)
            try:
                self.jobs[self.executor.submit(train_elsewhere, task)] = task
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

    def hand_on_what_hangs(self, tasks: deque[Task]) -> Iterator[tuple[Task, Outcome]]:
        """Tell the watch of every step; kill a worker that hangs, or leave it alone and add its group to *tasks*.

        Yields the groups that have been handed on too often.
        """
        now = time.monotonic()
        for job, task in list(self.jobs.items()):
            sign = read_sign(task.where, task.group)
            if sign is None:
                continue
            self.watch.step(task.group, sign.step)
            pulse = self.pulses.get(task.group.id, _Pulse(sign, now, now)).felt(sign, now)
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
            if self.tried[task.group.id] < TRIES:
                tasks.append(task)
            else:
                yield task, Outcome(0.0, f"its workers hang: {why}, {TRIES} times")

    def recovered(self, tasks: deque[Task]) -> Iterator[tuple[Task, Outcome]]:
        """Add the groups of a broken executor to *tasks*, and yield those that have killed too many workers."""
        lost, self.lost = self.lost, []
        guilty = [task for task in lost if read_sign(task.where, task.group)]
        self.idle_ends += not guilty
        rebuilt = isinstance(self.executor, WorkerPool)
        allowed = TRIES if rebuilt else 1
        for task in reversed(lost):
            if task in guilty:
                self._count(task)
            if self.tried[task.group.id] >= allowed:
                times = f", {allowed} times" if allowed > 1 else ""
                yield task, Outcome(0.0, f"the worker process died (killed, or out of memory){times}")
            elif self.idle_ends >= TRIES:
                yield task, Outcome(0.0, f"worker processes died before they began, {TRIES} times")
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
class _Pulse:
    """The last sign of a worker, when it came, and when its step had last changed, by this process's own clock."""

    sign: Sign
    heard: float
    moved: float

    def felt(self, sign: Sign, now: float) -> _Pulse:
        """Return the pulse after reading *sign* at *now*."""
        return _Pulse(
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
        if now - self.heard > SILENT:
            return f"no sign of life for {SILENT:.0f} s"
        return f"no step for {STUCK:.0f} s" if now - self.moved > STUCK else ""
