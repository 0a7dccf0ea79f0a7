"""What a worker does with a group: it trains it, shows signs of life, and says how it ended."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

import torch

from stability.execute.devices import VISIBLE, device_of_worker
from stability.execute.machine import device_model, reproducible_arithmetic, source_hash, versions
from stability.grid import Group, study_of
from stability.plugins import Plugin, load_plugins
from stability.store import disk_fault, group_path, parameters_path
from stability.study import Study
from stability.train import train_group

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

HEARTBEAT = 0.5
"""Seconds between two signs of life of a worker."""


@dataclass(frozen=True)
class Task:
    """A group to be trained and all that its worker must know.

    *bytes* is the memory it takes. A worker that sees the file *token* among the groups shares the disk.
    """

    study: Study
    group: Group
    where: Path
    device: torch.device
    save_params: bool = False
    bytes: int = 0
    token: str = ""


@dataclass(frozen=True)
class Outcome:
    """How the training of a group ended: after some seconds, with the traceback of a failure or none.

    *notes* are sentences on how it went, if the user should know. *cause* tells a lack of memory and a disk that cannot be written from other failures; for the disk, *failure* is one
    sentence. *files* are what a worker that does not share the disk has written, by path below the run directory.
    """

    seconds: float
    failure: str = ""
    cause: Literal["", "memory", "disk"] = ""
    files: Mapping[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def train_local(task: Task, progress: Callable[[int], None]) -> Outcome:
    """Train a group in this process; whatever is raised on the way is its outcome."""
    start = time.perf_counter()
    params = parameters_path(task.where, task.group.id) if task.save_params else None
    path = group_path(task.where, task.group.id)
    try:
        with reproducible_arithmetic():
            study = study_of(task.study, task.group)
            notes = train_group(study, task.group, task.study.pairs(), path, task.device, progress, params)
    except Exception as error:  # noqa: BLE001 (a stranger's loss may raise anything; the traceback is kept)
        seconds = time.perf_counter() - start
        if isinstance(error, OSError) and (sentence := disk_fault(error, task.where)):
            return Outcome(seconds, sentence, "disk")
        return Outcome(seconds, traceback.format_exc(), "memory" if _lacks_memory(error) else "")
    return Outcome(time.perf_counter() - start, notes=notes)


def _lacks_memory(error: BaseException) -> bool:
    """Tell whether memory ran out; torch has no type of its own for that on a CPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
    )


def train_remote(task: Task, report: Callable[[str], None] | None = None) -> Outcome:
    """Train a group in a worker that shows signs of life; where it does not share the disk, return the files.

    The signs go into a file of the run directory, or without a shared disk to *report*.
    """
    if task.token and (task.where / "groups" / task.token).is_file():
        path = heartbeat_path(task.where, task.group)
        with _remove_on_exit(path), _heartbeats(path.write_text) as progress:
            outcome = train_local(task, _abort_if_orphaned(task, progress))
        path.unlink(missing_ok=True)
        return outcome
    with TemporaryDirectory() as folder, _heartbeats(report or (lambda sign: None)) as progress:
        apart = replace(task, where=Path(folder))
        group_path(apart.where, task.group.id).parent.mkdir()
        outcome = train_local(apart, progress)
        written = [path for path in apart.where.rglob("*") if path.is_file() and not outcome.failure]
        return replace(
            outcome, files={path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(written)}
        )


def _abort_if_orphaned(task: Task, progress: Callable[[int], None]) -> Callable[[int], None]:
    """Return *progress*, which raises once nobody waits for the group any more: its token is gone from the shared disk.

    A worker of a cluster outlives the process that gave it the group; that one may be interrupted and begun again.
    """
    token, asked = task.where / "groups" / task.token, time.monotonic()

    def told(step: int) -> None:
        nonlocal asked
        if time.monotonic() - asked > HEARTBEAT:
            asked = time.monotonic()
            if not token.is_file():
                raise RuntimeError(f"group {task.group.id}: nobody waits for it any more")
        progress(step)

    return told


@dataclass(frozen=True)
class Heartbeat:
    """A sign of life of a worker: the step it is at, how often it has said so, and its process."""

    step: int
    beat: int
    process: int


def heartbeat_path(where: Path, group: Group) -> Path:
    """Return the file that holds the last sign of life of the worker of *group*."""
    return where / "groups" / f".{group.id}.sign"


def read_heartbeat(where: Path, group: Group) -> Heartbeat | None:
    """Return the last sign of life of the worker of *group*; None before the first."""
    try:
        numbers = heartbeat_path(where, group).read_text().split()
    except FileNotFoundError:
        return None
    # A file that is just being written may be seen empty.
    return Heartbeat(*map(int, numbers)) if len(numbers) == 3 else None


@contextmanager
def _heartbeats(send: Callable[[str], object]) -> Iterator[Callable[[int], None]]:
    """Yield a function that is told the step; a thread sends step, beat and process at every heartbeat.

    A thread, since a step may take long: a worker whose beats go on without steps computes, or turns in circles.
    """
    step, beats, ended = 0, 0, threading.Event()

    def beat() -> None:
        nonlocal beats
        # A disk that is full or gone: the training itself will meet that, and say so.
        with contextlib.suppress(OSError):
            send(f"{step} {beats} {os.getpid()}")
        beats += 1

    def keep_beating() -> None:
        while not ended.wait(HEARTBEAT):
            beat()

    def progress(now: int) -> None:
        nonlocal step
        step = now

    beat()
    thread = threading.Thread(target=keep_beating, daemon=True)
    thread.start()
    try:
        yield progress
    finally:
        ended.set()
        thread.join()


@contextmanager
def _remove_on_exit(path: Path) -> Iterator[None]:
    """Remove the sign of life in *path* where this worker process is told to end.

    A pool tells all workers to end when one has died: the one whose sign is found afterwards is the one that died.
    """
    if multiprocessing.parent_process() is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(*_: object) -> None:
        path.unlink(missing_ok=True)
        os._exit(1)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def begin(plugins: Sequence[Plugin], devices: Sequence[str] = (), number: Synchronized[int] | None = None) -> None:
    """Make a worker process ready: it knows the user's losses, and ends when its parent is gone, even if killed.

    With a *number*, which counts the workers of a pool, it sees one of *devices* only, from before CUDA is first used.
    An interruption at the terminal, which reaches every process, is its parent's to handle.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            parent.join()
            os._exit(1)

        _die_with_the_parent()
        # Where the system does not see to it; and a parent that was gone already is noticed nowhere else.
        threading.Thread(target=watch, daemon=True).start()
    if number is not None:
        with number.get_lock():
            os.environ[VISIBLE] = device_of_worker(number.value, devices)
            number.value += 1
    load_plugins(plugins)


PR_SET_PDEATHSIG = 1
"""Operation of prctl(2), from Linux's linux/prctl.h."""


def _die_with_the_parent() -> None:
    """Have Linux kill this process, frozen or not, with the thread that began it; elsewhere do nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def environment(device: torch.device) -> dict[str, str]:
    """Return what must be equal on every machine of a study: versions, our source, and the model of the device."""
    return {**versions(), "a source of stability": source_hash(), f"model of the {device.type}": device_model(device)}
