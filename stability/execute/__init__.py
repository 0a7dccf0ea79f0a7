"""The groups of a study that are not yet in the store, trained here or on any `concurrent.futures.Executor`."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stability.datasets import Pairs
from stability.execute.machine import pick_device
from stability.execute.manifest import open_run
from stability.execute.planning import estimate
from stability.grid import Group
from stability.registry import InputError
from stability.store import checksum, group_path, write_manifest
from stability.study import Study, load_study
from stability.train import train_group

__all__ = ["Watch", "default_out", "estimate", "executor_of", "pick_device", "run"]


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
) -> Path:
    """Train every run of *study* that the directory *out* does not hold yet, and return the directory.

    Groups run one after the other in this process, or on *executor*. A run interrupted or killed goes on where it
    stopped: finished groups are kept. A group that raises is stored as failed, with its traceback, and the others go
    on. Raises `InputError` if *out* holds another study, or this one from another device or version.
    """
    study = study if isinstance(study, Study) else load_study(study)
    where = Path(out) if out is not None else default_out(study)
    chosen = pick_device(device)
    manifest, plan = open_run(study, where, chosen, watch.say)
    torch.set_num_threads(manifest["threads"])
    pairs = study.pairs()
    watch.begin(len(plan.groups))
    entries = {entry["id"]: entry for entry in manifest["groups"]}
    if executor is None:
        for group in plan.groups:
            outcome = _train(study, group, pairs, where, str(chosen), lambda step, group=group: watch.step(group, step))
            _record(where, manifest, entries, group, outcome, watch)
    else:
        jobs = {
            executor.submit(_train_elsewhere, study, group, where.resolve(), str(chosen), manifest["threads"]): group
            for group in plan.groups
        }
        for job in as_completed(jobs):
            _record(where, manifest, entries, jobs[job], job.result(), watch)
    return where


Outcome = tuple[float, str]
"""Seconds, and the traceback of a failure (empty when all went well)."""


def _train(
    study: Study, group: Group, pairs: Pairs, where: Path, device: str, progress: Callable[[int], None]
) -> Outcome:
    start = time.perf_counter()
    try:
        train_group(study, group, pairs, group_path(where, group.id), torch.device(device), progress)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        return time.perf_counter() - start, traceback.format_exc()
    return time.perf_counter() - start, ""


def _train_elsewhere(study: Study, group: Group, where: Path, device: str, threads: int) -> Outcome:
    torch.set_num_threads(threads)
    return _train(study, group, study.pairs(), where, device, lambda step: None)


def _record(
    where: Path,
    manifest: dict[str, Any],
    entries: dict[str, dict[str, Any]],
    group: Group,
    outcome: Outcome,
    watch: Watch,
) -> None:
    seconds, failure = outcome
    entry = entries[group.id]
    entry["seconds"] = round(seconds, 2)
    if failure:
        entry |= {"status": "failed", "error": failure}
        watch.say(f"group {group.id} ({group.arm}, B = {group.batch_size}) failed: {failure.strip().splitlines()[-1]}")
    else:
        entry |= {"status": "finished", "checksum": checksum(group_path(where, group.id))}
    write_manifest(where, manifest)
    watch.done(group, seconds)


@contextmanager
def executor_of(on: str) -> Iterator[Executor | None]:
    """Yield the executor that ``--on`` names: None for ``local``, N worker processes for ``processes:N``."""
    kind, _, count = on.partition(":")
    if on == "local":
        yield None
    elif kind == "processes" and count.isdigit() and int(count):
        with ProcessPoolExecutor(int(count), multiprocessing.get_context("spawn")) as pool:
            yield pool
    else:
        raise InputError(f"--on: got {on!r}; allowed: local, or processes:N with N at least 1")
