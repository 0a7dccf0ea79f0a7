"""A sample of a directory's groups, trained again elsewhere and compared with what is stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from stability.execute.machine import device_model, pick_device, versions
from stability.execute.tolerances import SHARE, pair_of
from stability.execute.worker import Task, train_local
from stability.grid import Group
from stability.probes import probe
from stability.registry import InputError
from stability.store import damaged_groups, group_path, read_group, read_manifest, read_study
from stability.tuning import known_runs


@dataclass(frozen=True)
class Verification:
    """What came of training groups again: the ids compared, on what terms, and a sentence for each that differs."""

    groups: tuple[str, ...]
    finished: int
    terms: str
    differences: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """Return the result in one sentence."""
        if not self.groups:
            return f"{len(self.differences)} of {self.finished} finished groups missing or damaged; none trained again"
        found = f"{len(self.differences)} differ" if self.differences else "all agree"
        return f"{len(self.groups)} of {self.finished} finished groups trained again, compared {self.terms}: {found}"


def verify(
    run_dir: str | Path, sample: int = 3, progress: Callable[[int, int], None] = lambda done, total: None
) -> Verification:
    """Return how *sample* finished groups of *run_dir* (0: all), picked evenly, compare with themselves trained again.

    On the machine and versions that ran them, on a CPU, every value must be bit-identical; elsewhere a typical
    run must agree while training begins, and means over runs at every step, as well as two machines can (see
    `stability.execute.tolerances`). Where a finished group's file is missing or damaged, that is the difference told,
    and nothing is trained. Probes that measure time are exempt. Nothing in *run_dir* is touched. Raises
    `InputError` if it holds no finished group, or this machine lacks the device.
    """
    if sample < 0:
        raise InputError(f"--groups: got {sample}; allowed: 0 (all groups) or more")
    where = Path(run_dir)
    manifest = read_manifest(where)
    study = read_study(manifest, where)
    finished = [entry for entry in manifest["groups"] if entry["status"] == "finished"]
    if not finished:
        raise InputError(f"{where}: holds no finished group; `stability run` goes on with it")
    # Before anything is trained: without its files of the search, a study does not even know the runs of its test.
    if damaged := damaged_groups(where, finished):
        return Verification((), len(finished), "", damaged)
    device = pick_device(manifest["device"]["type"])
    exact = device.type == "cpu" and _changed(manifest, device_model(device)) == ""
    runs = {run.id: run for run in known_runs(study, where, finished)[0]}
    differences: list[str] = []
    chosen = _evenly(finished, sample or len(finished))
    with TemporaryDirectory() as folder:
        (Path(folder) / "groups").mkdir()
        for number, entry in enumerate(chosen):
            progress(number, len(chosen))
            if not set(entry["runs"]) <= set(runs):
                raise InputError(f"{where}: group {entry['id']} holds runs that its study does not have")
            group = Group(entry["id"], tuple(runs[run] for run in entry["runs"]))
            stored, again = group_path(where, group.id), group_path(Path(folder), group.id)
            outcome = train_local(Task(study, group, Path(folder), device), lambda step: None)
            if outcome.failure:
                differences.append(f"group {group.id}: fails now: {outcome.failure.strip().splitlines()[-1]}")
            elif said := _difference(read_group(stored), read_group(again), exact):
                differences.append(f"group {group.id}: {said}")
    terms = "bit for bit" if exact else f"within tolerance ({_changed(manifest, device_model(device)) or 'on a GPU'})"
    return Verification(tuple(entry["id"] for entry in chosen), len(finished), terms, tuple(differences))


def _changed(manifest: dict[str, Any], model: str) -> str:
    """Return what of machine and versions is not as it was, in words, or nothing."""
    if (was := manifest["device"]["model"]) != model:
        return f"run on {was}, this is {model}"
    for name, version in versions().items():
        if (before := manifest["versions"].get(name)) != version:
            return f"run with {name} {before}, this is {version}"
    return ""


def _evenly(entries: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return *count* of the entries, evenly spread: the same ones each time.

    >>> [entry["id"] for entry in _evenly([{"id": number} for number in range(7)], 3)]
    [0, 3, 6]
    """
    count = min(count, len(entries))
    return [entries[place] for place in np.linspace(0, len(entries) - 1, count).round().astype(int)]


def timed() -> set[str]:
    """Return the measures of probes that measure time."""
    return {
        measure.name
        for variant in probe.values()
        if variant.traits.get("timed")
        for measure in variant.traits["measures"]
    }


def _difference(stored: pd.DataFrame, again: pd.DataFrame, exact: bool) -> str:
    """Return where two tables of a group differ first, in words, or nothing."""
    if list(stored.columns) != list(again.columns) or not stored[["run", "step"]].equals(again[["run", "step"]]):
        return "holds other columns, runs or steps than the same group trained again"
    for name in stored.columns.drop(["run", "step", *(timed() & set(stored.columns))]):
        if said := (_unequal if exact else _far)(name, stored, again):
            return said
    return ""


def _unequal(name: str, stored: pd.DataFrame, again: pd.DataFrame) -> str:
    ours, theirs = ([_bytes(value) for value in frame[name]] for frame in (again, stored))
    for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if one != other:
            return _said(name, stored, again, place)
    return ""


def _bytes(value: Any) -> bytes | None:
    return None if value is None else np.asarray(value, np.float32).tobytes()


def _said(name: str, stored: pd.DataFrame, again: pd.DataFrame, place: int) -> str:
    row = stored.iloc[place]
    return f"{name} of run {row['run']} at step {row['step']} is {again[name].iloc[place]}, stored is {row[name]}"


def _far(name: str, stored: pd.DataFrame, again: pd.DataFrame) -> str:
    """Return where one number per step differs by more than it may between two machines, or nothing."""
    if stored[name].dtype == object:
        return ""  # Lists: the nodes of a density have no order that survives rounding.
    pair = pair_of(name, stored, again)
    # The median: a rank that rounding tips over, in one run, is no other training.
    typical, rounding = pair.early.median(axis=1), SHARE * pair.size
    if (typical > rounding).any():
        how = f"{typical.max():.2g} off in a typical run: more than {rounding:.2g}, so early in training"
        return f"{name} at step {typical.idxmax()} is {how}"
    if not (far := pair.off.to_numpy() > pair.allowed).any():
        return ""
    place = int(far.argmax())
    now, was = (frame.iloc[place].mean() for frame in (pair.again, pair.stored))
    means = f"{now:.6g}, stored is {was:.6g}"
    return f"the mean of {name} at step {pair.stored.index[place]} is {means}: more than {pair.allowed:.2g} off"
