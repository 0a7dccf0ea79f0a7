"""The groups of a study that are not yet in the store, trained here or on any `concurrent.futures.Executor`."""

from __future__ import annotations

import math
import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from stability.execute.lock import owned
from stability.execute.machine import pick_device, reproducible_arithmetic
from stability.execute.manifest import open_run
from stability.execute.planning import estimate, worker_count
from stability.execute.replaying import replay_run
from stability.grid import Group, study_of
from stability.plugins import Plugin, load_plugins
from stability.registry import InputError
from stability.store import checksum, group_path, make_writable, parameters_path, write_manifest
from stability.study import Study, load_study
from stability.train import train_group

__all__ = ["Watch", "default_out", "estimate", "executor_of", "pick_device", "replay_run", "run"]


@dataclass(frozen=True)
class Watch:
    """Who is told how a run goes on.

    *say* gets a sentence, *begin* the number of groups to train, *step* a group and its steps done, *done* a
    finished group and its seconds.
    """

    say: Callable[[str], None] = lambda sentence: None
    begin: Callable[[int], None] = lambda groups: None
    step: Callable[[Group, int], None] = lambda group, step: None
    done: Callable[[Group, float], None] = lambda group, seconds: None


def default_out(study: Study) -> Path:
    """Return ``runs/<study>-<scale>``."""
    return Path("runs") / f"{study.name}-{study.scale}"


def run(
    study: Study | str | Path,
    device: str = "auto",
    executor: Executor | None = None,
    out: str | Path | None = None,
    watch: Watch = Watch(),
    save_params: bool = False,
) -> Path:
    """Train every run of *study* that the directory *out* does not hold yet, and return the directory.

    Groups run one after the other in this process, or on *executor*, whose workers must see the same file system. A
    run interrupted or killed goes on where it stopped: finished groups are kept. A group that raises is noted as
    failed, with its traceback; the others go on, and the next call tries it again. With *save_params* the parameters
    after the last step are kept too, as ``params/<group>.safetensors``; groups finished without are trained again, to
    the same bytes. Raises `InputError` if *out* holds another study, or this one from another device or version, or if
    another process runs there.
    """
    study = study if isinstance(study, Study) else load_study(study)
    where = Path(out) if out is not None else default_out(study)
    chosen = pick_device(device)
    make_writable(where)
    with owned(where):
        while _train_what_is_known(study, chosen, executor, where, watch, save_params):
            pass
    return where


def _train_what_is_known(
    study: Study, device: torch.device, executor: Executor | None, where: Path, watch: Watch, save_params: bool
) -> bool:
    """Train the groups that can be planned by now, and return whether more will follow, as the test does a search."""
    manifest, groups = open_run(study, where, device, watch.say, save_params)
    watch.begin(len(groups))
    outcomes = _in_order(study, groups, where, device, watch, save_params)
    if executor is not None:
        outcomes = _side_by_side(study, groups, where, device, watch, save_params, executor)
    for group, outcome in outcomes:
        _record(where, manifest, group, outcome, watch, save_params)
    if not manifest.get("tuning"):
        return False
    failed = sum(entry["status"] == "failed" for entry in manifest["groups"] if entry.get("tuning"))
    if failed:
        watch.say(f"{where}: {failed} groups of the search failed, so no setting is chosen and the test is not run")
    return not failed


@dataclass(frozen=True)
class Outcome:
    """How the training of a group ended: after some seconds, with the traceback of a failure or none."""

    seconds: float
    failure: str = ""


def _in_order(
    study: Study, groups: Sequence[Group], where: Path, device: torch.device, watch: Watch, save_params: bool
) -> Iterator[tuple[Group, Outcome]]:
    for group in groups:
        yield group, _train(study, group, where, device, partial(watch.step, group), save_params)


def _side_by_side(
    study: Study,
    groups: Sequence[Group],
    where: Path,
    device: torch.device,
    watch: Watch,
    save_params: bool,
    executor: Executor,
) -> Iterator[tuple[Group, Outcome]]:
    there = where.resolve()
    jobs = {executor.submit(_train_elsewhere, study, group, there, device, save_params): group for group in groups}
    waiting, orphans = set(jobs), []
    while waiting:
        finished, waiting = wait(waiting, timeout=HEARTBEAT, return_when=FIRST_COMPLETED)
        for job in finished:
            try:
                yield jobs[job], job.result()
            except BrokenExecutor:
                # A dead worker takes the whole pool with it; only the groups that had begun can have killed it.
                if _heartbeat(where, jobs[job]) is None:
                    orphans.append(jobs[job])
                else:
                    yield jobs[job], Outcome(0.0, "the worker process died (killed, or out of memory)")
        for job in waiting:
            step = _heartbeat(where, jobs[job])
            if step is not None:
                watch.step(jobs[job], step)
    yield from _in_order(study, orphans, where, device, watch, save_params)


def _train(
    study: Study, group: Group, where: Path, device: torch.device, progress: Callable[[int], None], save_params: bool
) -> Outcome:
    start = time.perf_counter()
    params = parameters_path(where, group.id) if save_params else None
    try:
        with reproducible_arithmetic():
            store = group_path(where, group.id)
            train_group(study_of(study, group), group, study.pairs(), store, device, progress, params)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
        return Outcome(time.perf_counter() - start, traceback.format_exc())
    return Outcome(time.perf_counter() - start)


HEARTBEAT = 0.5
"""Seconds between two signs of life of a worker."""


def _heartbeat_path(where: Path, group: Group) -> Path:
    return where / "groups" / f".{group.id}.step"


def _heartbeat(where: Path, group: Group) -> int | None:
    """Return the step that a worker last reported, or None."""
    try:
        text = _heartbeat_path(where, group).read_text()
    except FileNotFoundError:
        return None
    return int(text) if text.isdigit() else None


def _train_elsewhere(study: Study, group: Group, where: Path, device: torch.device, save_params: bool) -> Outcome:
    """Train a group in a worker process that reports its steps in a file."""
    path, last = _heartbeat_path(where, group), -math.inf

    def progress(step: int) -> None:
        nonlocal last
        if time.monotonic() - last >= HEARTBEAT:
            path.write_text(str(step))
            last = time.monotonic()

    progress(0)
    outcome = _train(study, group, where, device, progress, save_params)
    path.unlink(missing_ok=True)
    return outcome


def _begin(plugins: Sequence[Plugin]) -> None:
    """Make a worker process ready: it knows the user's losses, and ends when its parent is gone, even if killed."""
    load_plugins(plugins)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


def _record(
    where: Path, manifest: dict[str, Any], group: Group, outcome: Outcome, watch: Watch, save_params: bool
) -> None:
    entry = next(entry for entry in manifest["groups"] if entry["id"] == group.id)
    entry["seconds"] = round(outcome.seconds, 2)
    if outcome.failure:
        entry |= {"status": "failed", "error": outcome.failure}
        reason = outcome.failure.strip().splitlines()[-1]
        watch.say(f"group {group.id} ({group.arm}, batch size {group.batch_size}) failed: {reason}")
    else:
        entry |= {"status": "finished", "checksum": checksum(group_path(where, group.id))}
        if save_params:
            entry["params_checksum"] = checksum(parameters_path(where, group.id))
    write_manifest(where, manifest)
    watch.done(group, outcome.seconds)


@contextmanager
def executor_of(on: str, device: str = "auto", plugins: Sequence[Plugin] = ()) -> Iterator[Executor | None]:
    """Yield the executor that ``--on`` names.

    ``local`` is one worker process a core on a CPU, and this process on a GPU; ``processes:N`` is N worker processes.
    Each worker loads *plugins* first. Leaving by an exception, as an interruption is, stops the workers at once.
    """
    kind, _, count = on.partition(":")
    if on == "local":
        workers = worker_count(pick_device(device))
    elif kind == "processes" and count.isdigit() and int(count):
        workers = int(count)
    else:
        raise InputError(f"--on: got {on!r}; allowed: local, or processes:N with N at least 1")
    if on == "local" and workers == 1:
        yield None
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (tuple(plugins),)) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise
