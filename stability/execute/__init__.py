"""The groups of a study that are not yet in the store, trained here or on any `concurrent.futures.Executor`."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from threading import Event
from typing import Any

import torch

from stability.execute.executors import executor_of
from stability.execute.lock import run_lock
from stability.execute.machine import pick_device
from stability.execute.manifest import open_run, split_group
from stability.execute.planning import estimate, sharing_of
from stability.execute.replaying import replay_run
from stability.execute.scheduling import NO_CALLBACKS, Callbacks, run_parallel, run_serial
from stability.execute.worker import Outcome, Task
from stability.grid import Group, halves
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

__all__ = [
    "Callbacks",
    "default_out",
    "estimate",
    "executor_of",
    "pick_device",
    "replay_run",
    "run",
    "run_replications",
]


def default_out(study: Study) -> Path:
    """Return ``runs/<study>-<scale>``."""
    return Path("runs") / f"{study.name}-{study.scale}"


def run(
    study: Study | str | Path,
    device: str = "auto",
    executor: Executor | None = None,
    out: str | Path | None = None,
    watch: Callbacks = NO_CALLBACKS,
    save_params: bool = False,
    *,
    only_failed: bool = False,
    fail_fast: bool = False,
    replications: bool = True,
) -> Path:
    """Train every run of *study* that the directory *out* does not hold yet, and return the directory.

    Its *replications* follow, each a run of its own in ``replications/<name>`` of that directory.

    Groups run one after the other in this process, or on *executor*; workers that do not see *out* send their files. A
    run interrupted or killed goes on where it stopped: finished groups are kept. A group that raises is noted as
    failed, with its traceback; the others go on, unless *fail_fast*, and the next call tries it again. With
    *only_failed* nothing else is trained. A group for which memory does not suffice is trained in halves. With
    *save_params* the parameters after the last step are kept too, as ``params/<group>.safetensors``; groups finished
    without are trained again, to the same bytes. Raises `InputError` if *out* holds another study, or this one from
    another device or version, if another process runs there, or if the disk is full.
    """
    study = study if isinstance(study, Study) else load_study(study)
    where = Path(out) if out is not None else default_out(study)
    chosen = pick_device(device)
    make_writable(where)
    with disk_faults_named(where), run_lock(where):
        watch.open(study)
        while _train_pending(study, chosen, executor, where, watch, save_params, only_failed, fail_fast):
            pass
        if replications:
            run_replications(study, device, executor, where, watch, save_params, only_failed, fail_fast)
    return where


def run_replications(
    study: Study,
    device: str,
    executor: Executor | None,
    where: Path,
    watch: Callbacks,
    save_params: bool,
    only_failed: bool = False,
    fail_fast: bool = False,
) -> None:
    """Train what is missing of the replications of *study*, each in a run directory of its own inside *where*."""
    for again in study.replications:
        if fail_fast and _has_failed(where):
            break
        place = replication_path(where, again.replication)
        run(again, device, executor, place, watch, save_params, only_failed=only_failed, fail_fast=fail_fast)


def _has_failed(where: Path) -> bool:
    """Tell whether a group of a run directory, or of a replication in it, has failed."""
    places = (where, *replications_in(where))
    return any(entry["status"] == "failed" for place in places for entry in read_manifest(place)["groups"])


def _train_pending(
    study: Study,
    device: torch.device,
    executor: Executor | None,
    where: Path,
    watch: Callbacks,
    save_params: bool,
    only_failed: bool,
    fail_fast: bool,
) -> bool:
    """Train the groups that can be planned by now, and return whether more will follow, as the test does a search."""
    manifest, groups = open_run(study, where, device, watch.say, save_params, sharing_of(executor))
    if only_failed:
        groups = _failed(manifest, groups, where, watch)
    watch.begin(len(groups))
    tasks = deque(_task(study, group, where.resolve(), device, save_params, manifest) for group in groups)
    stop = Event()
    outcomes = run_serial(tasks, watch, stop) if executor is None else run_parallel(tasks, executor, watch, stop)
    for task, outcome in outcomes:
        if outcome.cause == "disk":
            raise InputError(outcome.failure)
        if outcome.cause == "memory" and len(task.group.runs) > 2:
            parts = halves(task.group)
            watch.say(f"group {task.group.id}: memory does not suffice for {len(task.group.runs)} runs; halving it")
            split_group(where, manifest, task.group, parts)
            tasks.extend(_task(study, part, task.where, device, save_params, manifest) for part in parts)
            watch.begin(len(parts) - 1)
            watch.done(task.group, outcome.seconds)
            continue
        _record(where, manifest, task, outcome, watch)
        if fail_fast and outcome.failure:
            stop.set()
    if not manifest.get("tuning") or only_failed or stop.is_set():
        return False
    failed = sum(entry["status"] == "failed" for entry in manifest["groups"] if entry.get("tuning"))
    if failed:
        watch.say(f"{where}: {failed} groups of the search failed, so no setting is chosen and the test is not run")
    return not failed


def _task(
    study: Study, group: Group, where: Path, device: torch.device, save_params: bool, manifest: dict[str, Any]
) -> Task:
    need = manifest["bytes_per_replica"][f"{group.arm} {group.batch_size}"] * len(group.runs)
    return Task(study, group, where, device, save_params, need)


def _failed(manifest: dict[str, Any], groups: Sequence[Group], where: Path, watch: Callbacks) -> tuple[Group, ...]:
    ids = {entry["id"] for entry in manifest["groups"] if entry["status"] == "failed"}
    if not ids:
        watch.say(f"{where}: no group has failed, so there is none to try again")
    return tuple(group for group in groups if group.id in ids)


def _record(where: Path, manifest: dict[str, Any], task: Task, outcome: Outcome, watch: Callbacks) -> None:
    """Note in the manifest how a group ended, after writing what a worker without our disk has sent."""
    group = task.group
    entry = next(entry for entry in manifest["groups"] if entry["id"] == group.id)
    entry["seconds"] = round(outcome.seconds, 2)
    entry.pop("error", None)
    for path in (group_path(where, group.id), parameters_path(where, group.id)):
        if content := outcome.files.get(path.relative_to(where).as_posix()):
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, content)
    for note in outcome.notes:
        watch.say(f"group {group.id} ({group.arm}, batch size {group.batch_size}): {note}")
    if outcome.failure:
        entry |= {"status": "failed", "error": outcome.failure}
        reason = outcome.failure.strip().splitlines()[-1]
        watch.say(f"group {group.id} ({group.arm}, batch size {group.batch_size}) failed: {reason}")
    else:
        entry |= {"status": "finished", "checksum": checksum(group_path(where, group.id))}
        if task.save_params:
            entry["params_checksum"] = checksum(parameters_path(where, group.id))
    write_manifest(where, manifest)
    watch.done(group, outcome.seconds)
