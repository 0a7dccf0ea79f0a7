"""Trains a sample of a run directory's groups again and compares them with the stored ones."""

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
    """The result of training groups again.

    Attributes:
        groups: Ids of the groups that were compared.
        finished: Number of finished groups in the run directory.
        terms: How they were compared, in words: bit for bit or within tolerance.
        differences: A sentence for each group that differs or is damaged.
    """

    groups: tuple[str, ...]
    finished: int
    terms: str
    differences: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """Return the result in one sentence."""
        if not self.groups:
            return f"{len(self.differences)} of {self.finished} finished groups missing or damaged; none trained again"
        verdict = f"{len(self.differences)} differ" if self.differences else "all agree"
        return f"{len(self.groups)} of {self.finished} finished groups trained again, compared {self.terms}: {verdict}"


def verify(
    run_dir: str | Path, sample: int = 3, progress: Callable[[int, int], None] = lambda done, total: None
) -> Verification:
    """Train finished groups of *run_dir* again and compare them with the stored ones.

    On a CPU, with the machine and versions that ran them, every value must be bit-identical. Otherwise a typical run
    must agree in the first steps, and means over runs at every step, within `stability.execute.tolerances`. If the
    file of a finished group is missing or damaged, that is reported as the difference and nothing is trained. Probes
    that measure time are exempt. Nothing in *run_dir* is changed.

    Args:
        run_dir: The run directory.
        sample: How many groups to train again, evenly spaced; 0 for all.
        progress: Called with the number of groups done and the total.

    Raises:
        InputError: The directory contains no finished group, or this machine lacks the device.
    """
    if sample < 0:
        raise InputError(f"--groups: got {sample}; allowed: 0 (all groups) or more")
    where = Path(run_dir)
    manifest = read_manifest(where)
    study = read_study(manifest, where)
    finished = [entry for entry in manifest["groups"] if entry["status"] == "finished"]
    if not finished:
        raise InputError(f"{where}: holds no finished group; `stability run` goes on with it")
    # Check this first: without the files of the tuning search, the runs of the test are not known.
    if damaged := damaged_groups(where, finished):
        return Verification((), len(finished), "", damaged)
    device = pick_device(manifest["device"]["type"])
    exact = device.type == "cpu" and _changed(manifest, device_model(device)) == ""
    runs = {run.id: run for run in known_runs(study, where, finished)[0]}
    differences: list[str] = []
    selected = _evenly(finished, sample or len(finished))
    with TemporaryDirectory() as folder:
        (Path(folder) / "groups").mkdir()
        for number, entry in enumerate(selected):
            progress(number, len(selected))
            if not set(entry["runs"]) <= set(runs):
                raise InputError(f"{where}: group {entry['id']} holds runs that its study does not have")
            group = Group(entry["id"], tuple(runs[run] for run in entry["runs"]))
            stored, again = group_path(where, group.id), group_path(Path(folder), group.id)
            result = train_local(Task(study, group, Path(folder), device), lambda step: None)
            if result.failure:
                differences.append(f"group {group.id}: fails now: {result.failure.strip().splitlines()[-1]}")
            elif sentence := _difference(read_group(stored), read_group(again), exact):
                differences.append(f"group {group.id}: {sentence}")
    terms = "bit for bit" if exact else f"within tolerance ({_changed(manifest, device_model(device)) or 'on a GPU'})"
    return Verification(tuple(entry["id"] for entry in selected), len(finished), terms, tuple(differences))


def _changed(manifest: dict[str, Any], model: str) -> str:
    """Return in words the first difference of machine or versions from those of the manifest, or ""."""
    if (was := manifest["device"]["model"]) != model:
        return f"run on {was}, this is {model}"
    for name, version in versions().items():
        if (was := manifest["versions"].get(name)) != version:
            return f"run with {name} {was}, this is {version}"
    return ""


def _evenly(entries: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return *count* of the entries, evenly spaced and deterministic.

    >>> [entry["id"] for entry in _evenly([{"id": number} for number in range(7)], 3)]
    [0, 3, 6]
    """
    count = min(count, len(entries))
    return [entries[index] for index in np.linspace(0, len(entries) - 1, count).round().astype(int)]


def timed() -> set[str]:
    """Return the names of the measures of probes that measure time."""
    return {measure.name for variant in probe.values() if variant.traits.timed for measure in variant.traits.measures}


def _difference(stored: pd.DataFrame, again: pd.DataFrame, exact: bool) -> str:
    """Return in words the first difference between two tables of a group, or ""."""
    if list(stored.columns) != list(again.columns) or not stored[["run", "step"]].equals(again[["run", "step"]]):
        return "holds other columns, runs or steps than the same group trained again"
    for name in stored.columns.drop(["run", "step", *(timed() & set(stored.columns))]):
        if sentence := (_unequal if exact else _beyond_tolerance)(name, stored, again):
            return sentence
    return ""


def _unequal(name: str, stored: pd.DataFrame, again: pd.DataFrame) -> str:
    """Return in words the first value that is not bit-identical, or ""."""
    stored_bytes, again_bytes = ([_bytes(value) for value in frame[name]] for frame in (stored, again))
    for row, (before, after) in enumerate(zip(stored_bytes, again_bytes, strict=True)):
        if before != after:
            return _describe_difference(name, stored, again, row)
    return ""


def _bytes(value: Any) -> bytes | None:
    return None if value is None else np.asarray(value, np.float32).tobytes()


def _describe_difference(name: str, stored: pd.DataFrame, again: pd.DataFrame, index: int) -> str:
    row = stored.iloc[index]
    return f"{name} of run {row['run']} at step {row['step']} is {again[name].iloc[index]}, stored is {row[name]}"


def _beyond_tolerance(name: str, stored: pd.DataFrame, again: pd.DataFrame) -> str:
    """Return in words where a measure differs by more than two machines may, or ""."""
    if stored[name].dtype == object:
        return ""  # Lists: the order of a density's nodes depends on rounding.
    pair = pair_of(name, stored, again)
    # Use the median: a single rank flip due to rounding does not mean a different training.
    typical, rounding = pair.early.median(axis=1), SHARE * pair.size
    if (typical > rounding).any():
        difference = f"{typical.max():.2g} off in a typical run: more than {rounding:.2g}, so early in training"
        return f"{name} at step {typical.idxmax()} is {difference}"
    if not (exceeds := pair.off.to_numpy() > pair.allowed).any():
        return ""
    index = int(exceeds.argmax())
    now, was = (frame.iloc[index].mean() for frame in (pair.again, pair.stored))
    means = f"{now:.6g}, stored is {was:.6g}"
    return f"the mean of {name} at step {pair.stored.index[index]} is {means}: more than {pair.allowed:.2g} off"
