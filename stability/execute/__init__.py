"""Trains the groups of a study that the run directory lacks, in this process or on a `concurrent.futures.Executor`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import torch

from stability.execute.executors import executor_of
from stability.execute.lock import run_lock
from stability.execute.machine import pick_device
from stability.execute.manifest import begin, open_run, split_group
from stability.execute.planning import estimate, sharing_of
from stability.execute.replaying import replay_run
from stability.execute.scheduling import NO_CALLBACKS, Callbacks, run_parallel, run_serial
from stability.execute.worker import GroupResult, Task
from stability.grid import Group, halves, shape_of
from stability.registry import InputError
from stability.store import (
    checksum,
    disk_faults_named,
    group_path,
    make_writable,
    parameters_path,
    read_manifest,
    replication_path,
    replications_in,
    write_atomically,
    write_manifest,
)
from stability.study import Study, load_study
from stability.train.checkpoints import remove_checkpoints

__all__ = [
    "Callbacks",
    "RunOptions",
    "default_out",
    "estimate",
    "executor_of",
    "pick_device",
    "replay_run",
    "run",
    "train_replications",
    "train_study",
]


def default_out(study: Study) -> Path:
    """Return ``runs/<study>-<scale>``."""
    return Path("runs") / f"{study.name}-{study.scale}"


@dataclass(frozen=True)
class RunOptions:
    """How a study is trained.

    Attributes:
        device: ``auto``, ``cpu`` or ``cuda``.
        executor: Trains the groups; None trains them serially in this process. Workers that do not see the run
            directory send their files.
        callbacks: Called as the run proceeds.
        save_params: Also write the parameters after the last step, as ``params/<group>.safetensors``. Groups that
            finished without it are trained again, to the same bytes.
        only_failed: Train nothing but the groups that have failed before.
        fail_fast: Start no further group after one that fails.
        replications: Also train the study's replications, each in ``replications/<name>`` of the run directory.
    """

    device: str = "auto"
    executor: Executor | None = None
    callbacks: Callbacks = NO_CALLBACKS
    save_params: bool = False
    only_failed: bool = False
    fail_fast: bool = False
    replications: bool = True


def run(
    study: Study | str | Path,
    device: str = "auto",
    executor: Executor | None = None,
    out: str | Path | None = None,
    callbacks: Callbacks = NO_CALLBACKS,
    save_params: bool = False,
    *,
    only_failed: bool = False,
    fail_fast: bool = False,
    replications: bool = True,
) -> Path:
    """Train every run of *study* that the directory *out* does not contain yet, and return the directory.

    A run that was interrupted or killed resumes where it stopped: finished groups are kept. A group that raises is
    recorded as failed, with its traceback, and retried by the next call. A group that runs out of memory is trained in
    halves.

    Args:
        study: A study, or the name or path of its file.
        device: See `RunOptions`, as for all arguments below but *out*.
        executor: Trains the groups; None trains them serially in this process.
        out: The run directory (default: `default_out`).
        callbacks: Called as the run proceeds.
        save_params: Also write the parameters after the last step.
        only_failed: Train nothing but the groups that have failed before.
        fail_fast: Start no further group after one that fails.
        replications: Also train the study's replications.

    Returns:
        The run directory.

    Raises:
        InputError: *out* contains another study, or this one from another device or version; another process runs
            there; or the disk is full.
    """
    study = study if isinstance(study, Study) else load_study(study)
    where = Path(out) if out is not None else default_out(study)
    options = RunOptions(device, executor, callbacks, save_params, only_failed, fail_fast, replications)
    train_study(study, where, options)
    return where


def train_study(study: Study, where: Path, options: RunOptions) -> None:
    """Train every run of *study* that the run directory *where* does not contain yet, as `run` does."""
    device = pick_device(options.device)
    make_writable(where)
    with disk_faults_named(where), run_lock(where):
        options.callbacks.open(study)
        while _train_pending(study, where, device, options):
            pass
        if options.replications:
            train_replications(study, where, options)


def train_replications(study: Study, where: Path, options: RunOptions) -> None:
    """Train what is missing of the replications of *study*, each in a separate run directory inside *where*."""
    for replication in study.replications:
        if options.fail_fast and _has_failed(where):
            break
        train_study(replication, replication_path(where, replication.replication), options)


def _has_failed(where: Path) -> bool:
    """Return whether a group of a run directory, or of a replication in it, has failed."""
    run_dirs = (where, *replications_in(where))
    return any(entry["status"] == "failed" for run_dir in run_dirs for entry in read_manifest(run_dir)["groups"])


def _train_pending(study: Study, where: Path, device: torch.device, options: RunOptions) -> bool:
    """Train the groups that can be planned now, and return whether more follow.

    While the tuning search is unfinished only its groups can be planned; those of the test follow.
    """
    executor, callbacks, save_params = options.executor, options.callbacks, options.save_params
    manifest, groups = open_run(study, where, device, callbacks.say, save_params, sharing_of(executor))
    if options.only_failed:
        groups = _failed(manifest, groups, where, callbacks)
    begin(where, manifest, groups)
    callbacks.begin(len(groups))
    planned = [_task(study, group, where.resolve(), device, save_params, manifest) for group in groups]
    tasks: deque[Task] = deque()
    stop = Event()
    for task, result in _trained(planned, tasks, executor, callbacks, stop):
        if result.cause == "disk":
            raise InputError(result.failure)
        if result.cause == "memory" and len(task.group.runs) > 2:
            parts = halves(task.group)
            callbacks.say(f"group {task.group.id}: memory does not suffice for {len(task.group.runs)} runs; halving it")
            split_group(where, manifest, task.group, parts)
            tasks.extend(_task(study, part, task.where, device, save_params, manifest) for part in parts)
            callbacks.begin(len(parts) - 1)
            callbacks.done(task.group, result.seconds)
            continue
        _record(where, manifest, task, result, callbacks)
        if options.fail_fast and result.failure:
            stop.set()
    if all(entry["status"] == "finished" for entry in manifest["groups"]):
        remove_checkpoints(where)
    if not manifest.get("tuning") or options.only_failed or stop.is_set():
        return False
    failed = sum(entry["status"] == "failed" for entry in manifest["groups"] if entry.get("tuning"))
    if failed:
        callbacks.say(f"{where}: {failed} groups of the search failed, so no setting is chosen and the test is not run")
    return not failed


def _trained(
    planned: Sequence[Task], tasks: deque[Task], executor: Executor | None, callbacks: Callbacks, stop: Event
) -> Iterator[tuple[Task, GroupResult]]:
    """Yield each of the *planned* tasks with its result, by way of *tasks*, to which the caller may add parts of one.

    A group is started only when all groups have ended that its runs may start from.
    """
    for depth in sorted({task.group.depth for task in planned}):
        if stop.is_set():
            return
        tasks.extend(task for task in planned if task.group.depth == depth)
        if executor is None:
            yield from run_serial(tasks, callbacks, stop)
        else:
            yield from run_parallel(tasks, executor, callbacks, stop)


def _task(
    study: Study, group: Group, where: Path, device: torch.device, save_params: bool, manifest: dict[str, Any]
) -> Task:
    memory = manifest["bytes_per_replica"][shape_of(group.runs[0])] * len(group.runs)
    return Task(study, group, where, device, save_params, checkpoints=True, bytes=memory)


def _failed(manifest: dict[str, Any], groups: Sequence[Group], where: Path, callbacks: Callbacks) -> tuple[Group, ...]:
    ids = {entry["id"] for entry in manifest["groups"] if entry["status"] == "failed"}
    if not ids:
        callbacks.say(f"{where}: no group has failed, so there is none to try again")
    return tuple(group for group in groups if group.id in ids)


def _record(where: Path, manifest: dict[str, Any], task: Task, result: GroupResult, callbacks: Callbacks) -> None:
    """Write the files that a worker without a shared disk has sent, and record in the manifest how a group ended."""
    group = task.group
    entry = next(entry for entry in manifest["groups"] if entry["id"] == group.id)
    entry["seconds"] = round(result.seconds, 2)
    entry.pop("error", None)
    for path in (group_path(where, group.id), parameters_path(where, group.id)):
        if content := result.files.get(path.relative_to(where).as_posix()):
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, content)
    for note in result.notes:
        callbacks.say(f"group {group.id} ({group.arm}, batch size {group.batch_size}): {note}")
    if result.failure:
        entry |= {"status": "failed", "error": result.failure}
        reason = result.failure.strip().splitlines()[-1]
        callbacks.say(f"group {group.id} ({group.arm}, batch size {group.batch_size}) failed: {reason}")
    else:
        entry |= {"status": "finished", "checksum": checksum(group_path(where, group.id))}
        if task.save_params:
            entry["params_checksum"] = checksum(parameters_path(where, group.id))
    write_manifest(where, manifest)
    callbacks.done(group, result.seconds)
