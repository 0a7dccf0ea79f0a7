"""The worker side of a run: training one group, sending heartbeats, and returning how the training ended."""

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
from stability.train.checkpoints import checkpoints_folder

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

HEARTBEAT = 0.5
"""Seconds between two heartbeats of a worker."""


@dataclass(frozen=True)
class Task:
    """A group to train, with everything that its worker needs.

    Attributes:
        study: The study that the group belongs to.
        group: The runs to train together.
        where: The run directory.
        device: The device to train on.
        save_params: Whether to write the final parameters too.
        checkpoints: Whether to read the checkpoints of parents in the run directory, and to write those of other runs'
            parents; else parents are trained up to the switch, to the same bits.
        bytes: Memory that the group takes.
        token: Name of a file in ``groups/``; a worker that sees it there shares the disk.
    """

    study: Study
    group: Group
    where: Path
    device: torch.device
    save_params: bool = False
    checkpoints: bool = False
    bytes: int = 0
    token: str = ""


@dataclass(frozen=True)
class GroupResult:
    """How the training of a group ended.

    Attributes:
        seconds: How long it took.
        failure: The traceback of a failure, one sentence if the disk failed, or "".
        cause: ``memory`` if memory ran out, ``disk`` if the disk cannot be written, "" for any other failure or none.
        files: What a worker that does not share the disk has written, by path relative to the run directory.
        notes: Sentences for the user on how the training went.
    """

    seconds: float
    failure: str = ""
    cause: Literal["", "memory", "disk"] = ""
    files: Mapping[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def train_local(task: Task, progress: Callable[[int], None]) -> GroupResult:
    """Train a group in this process; an exception is returned as the result's failure."""
    start = time.perf_counter()
    params = parameters_path(task.where, task.group.id) if task.save_params else None
    path = group_path(task.where, task.group.id)
    checkpoints = checkpoints_folder(task.where) if task.checkpoints else None
    try:
        with reproducible_arithmetic():
            study = study_of(task.study, task.group)
            notes = train_group(study, task.group, study.pairs(), path, task.device, progress, params, checkpoints)
    except Exception as error:  # noqa: BLE001 (a user's loss may raise anything; the traceback is kept)
        seconds = time.perf_counter() - start
        if isinstance(error, OSError) and (sentence := disk_fault(error, task.where)):
            return GroupResult(seconds, sentence, "disk")
        return GroupResult(seconds, traceback.format_exc(), "memory" if _is_out_of_memory(error) else "")
    return GroupResult(time.perf_counter() - start, notes=notes)


def _is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out; torch has no exception type for that on a CPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
    )


def train_remote(task: Task, report: Callable[[str], None] | None = None) -> GroupResult:
    """Train a group in a worker that sends heartbeats.

    With a shared disk the heartbeats go into a file of the run directory. Without one they go to *report*, and the
    result contains the written files.
    """
    if task.token and (task.where / "groups" / task.token).is_file():
        path = heartbeat_path(task.where, task.group)
        with _remove_on_exit(path), _heartbeats(path.write_text) as progress:
            result = train_local(task, _abort_if_orphaned(task, progress))
        path.unlink(missing_ok=True)
        return result
    with TemporaryDirectory() as folder, _heartbeats(report or (lambda heartbeat: None)) as progress:
        local_task = replace(task, where=Path(folder), checkpoints=False)
        group_path(local_task.where, task.group.id).parent.mkdir()
        result = train_local(local_task, progress)
        written = [path for path in local_task.where.rglob("*") if path.is_file() and not result.failure]
        return replace(
            result, files={path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(written)}
        )


def _abort_if_orphaned(task: Task, progress: Callable[[int], None]) -> Callable[[int], None]:
    """Return *progress*, which raises `RuntimeError` once the task's token is gone from the shared disk.

    A worker of a cluster may outlive the process that submitted the group, and that process may be interrupted and
    restarted, so the group would be trained twice.
    """
    token, last_check = task.where / "groups" / task.token, time.monotonic()

    def checked_progress(step: int) -> None:
        nonlocal last_check
        if time.monotonic() - last_check > HEARTBEAT:
            last_check = time.monotonic()
            if not token.is_file():
                raise RuntimeError(f"group {task.group.id}: orphaned, the run that submitted it has ended")
        progress(step)

    return checked_progress


@dataclass(frozen=True)
class Heartbeat:
    """A heartbeat of a worker: its current step, the number of heartbeats sent before, and its process id."""

    step: int
    beat: int
    process: int


def heartbeat_path(where: Path, group: Group) -> Path:
    """Return the path of the file that holds the last heartbeat of the worker of *group*."""
    return where / "groups" / f".{group.id}.heartbeat"


def read_heartbeat(where: Path, group: Group) -> Heartbeat | None:
    """Return the last heartbeat of the worker of *group*; None before the first."""
    try:
        numbers = heartbeat_path(where, group).read_text().split()
    except FileNotFoundError:
        return None
    # A file that is just being written may be read while it is empty.
    return Heartbeat(*map(int, numbers)) if len(numbers) == 3 else None


@contextmanager
def _heartbeats(send: Callable[[str], object]) -> Iterator[Callable[[int], None]]:
    """Yield a function that records the current step; a thread sends step, beat and process at every heartbeat.

    Heartbeats come from a thread because one step may take long. Heartbeats without steps mean that the worker still
    computes, or is in an endless loop.
    """
    step, beats, ended = 0, 0, threading.Event()

    def beat() -> None:
        nonlocal beats
        # If the disk is full or gone, the training itself fails on it and reports that.
        with contextlib.suppress(OSError):
            send(f"{step} {beats} {os.getpid()}")
        beats += 1

    def keep_beating() -> None:
        while not ended.wait(HEARTBEAT):
            beat()

    def progress(current: int) -> None:
        nonlocal step
        step = current

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
    """Remove the heartbeat file *path* when this worker process receives SIGTERM.

    A pool sends SIGTERM to all workers when one has died, so the heartbeat file that remains is that of the dead one.
    """
    if multiprocessing.parent_process() is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(*_: object) -> None:
        path.unlink(missing_ok=True)
        os._exit(1)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def init_worker(
    plugins: Sequence[Plugin], devices: Sequence[str] = (), number: Synchronized[int] | None = None
) -> None:
    """Initialize a worker process.

    It loads the user's losses and encoders, and exits when its parent process ends, even if that is killed. SIGINT,
    which a terminal sends to every process, is ignored here and handled by the parent.

    Args:
        plugins: Files with losses or encoders of the user.
        devices: Names of the GPUs, of which this process may see only one.
        number: Counter shared by the workers of a pool, which picks this worker's GPU before CUDA is first used.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            parent.join()
            os._exit(1)

        _die_with_the_parent()
        # Needed on other systems than Linux, and for a parent that had ended before the call above.
        threading.Thread(target=watch, daemon=True).start()
    if number is not None:
        with number.get_lock():
            os.environ[VISIBLE] = device_of_worker(number.value, devices)
            number.value += 1
    load_plugins(plugins)


PR_SET_PDEATHSIG = 1
"""Operation of prctl(2), from Linux's linux/prctl.h."""


def _die_with_the_parent() -> None:
    """On Linux, request SIGKILL for this process when the thread that started it ends; elsewhere do nothing.

    SIGKILL also ends a process that is frozen.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def environment(device: torch.device) -> dict[str, str]:
    """Return what must be equal on every machine of a study: versions, our source, and the model of the device."""
    return {**versions(), "a source of stability": source_hash(), f"model of the {device.type}": device_model(device)}
