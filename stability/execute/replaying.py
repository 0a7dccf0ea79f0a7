"""Trains a finished run of a run directory again, on the machine and versions that ran it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch

from stability.execute.machine import device_model, pick_device, reproducible_arithmetic, versions
from stability.grid import Group, study_of
from stability.registry import InputError
from stability.store import (
    checksum_matches,
    damaged_groups,
    group_path,
    parameters_path,
    read_group,
    read_manifest,
    read_parameters,
    read_study,
)
from stability.train import Replay, replay
from stability.tuning import known_runs


def replay_run(
    run_dir: str | Path,
    run: str | None,
    *,
    step: int | None = None,
    keep: Collection[int] | Callable[[int, int], Collection[int]] = (),
    progress: Callable[[int, int], None] = lambda done, steps: None,
) -> Replay:
    """Train one finished run of *run_dir* again, check it against the stored measurements, and return it.

    If the directory contains the run's final parameters (``--save-params``) and no others are requested, nothing is
    trained.

    Args:
        run_dir: The run directory.
        run: The id of a run or a unique prefix of one; None for the first finished run of the test.
        step: The step to return; None for the last.
        keep: Further steps at which to keep the parameters, or a function that maps the first and the last step to
            them.
        progress: Called with the number of steps done and the total.

    Raises:
        InputError: The run is unknown or unfinished, its file is damaged, or device or versions are not those of the
            directory.
    """
    where = Path(run_dir)
    manifest = read_manifest(where)
    study = read_study(manifest, where)
    device = _same_machine(where, manifest)
    finished = [entry for entry in manifest["groups"] if entry["status"] == "finished"]
    runs = {item.id: item for item in known_runs(study, where, finished)[0]}
    if run is None:
        finished_ids = {run_id for entry in finished for run_id in entry["runs"]}
        run = next((run_id for run_id, item in runs.items() if run_id in finished_ids and not item.tuning), "")
    selected = runs[resolve(run, runs, where)]
    entry = next((entry for entry in manifest["groups"] if selected.id in entry["runs"]), None)
    if entry is None or entry["status"] != "finished":
        raise InputError(f"{where}: run {selected.id} is not finished; `stability run` goes on with it")
    path, saved = group_path(where, entry["id"]), None
    for sentence in damaged_groups(where, [entry]):
        raise InputError(sentence)
    group = Group(entry["id"], tuple(runs[run_id] for run_id in entry["runs"]))
    trained = study_of(study, group)
    total, first = trained.train.steps, trained.first_step(selected.arm, selected.batch_size)
    last = total if step is None else step
    kept = keep(first, last) if callable(keep) else keep
    params_path = parameters_path(where, entry["id"])
    if last == total and checksum_matches(params_path, entry.get("params_checksum")):
        saved = read_parameters(params_path, selected.id)
    with reproducible_arithmetic():
        return replay(
            trained,
            group,
            selected,
            step=last,
            keep=kept,
            stored=read_group(path),
            saved=saved,
            device=device,
            progress=lambda done: progress(done, last),
        )


def resolve(prefix: str, run_ids: Collection[str], where: Path) -> str:
    """Return the run id that equals *prefix* or is the only one that starts with it.

    Raises:
        InputError: No id or several start with it; the sentence names the nearest ids.
    """
    matches = [run_id for run_id in run_ids if run_id.startswith(prefix)] if prefix else []
    if prefix in run_ids or len(matches) == 1:
        return prefix if prefix in run_ids else matches[0]
    if matches:
        raise InputError(
            f"{where}: {len(matches)} runs begin with {prefix!r} ({_first_few(matches)}); give more of the id"
        )
    close = difflib.get_close_matches(prefix, run_ids, n=1)
    # difflib finds no close match for a prefix much shorter than an id, so also try it without its last character.
    close = close or [run_id for run_id in sorted(run_ids) if len(prefix) > 2 and run_id.startswith(prefix[:-1])][:1]
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise InputError(f"{where}: holds no run {prefix!r}{hint} (known are {len(run_ids)}: {_first_few(run_ids)})")


def _first_few(ids: Collection[str]) -> str:
    shown = sorted(ids)[:4]
    return ", ".join(shown) + (", ..." if len(ids) > len(shown) else "")


def _same_machine(where: Path, manifest: dict[str, Any]) -> torch.device:
    """Return the device of a run directory, or raise `InputError` if a replay could not give the same numbers."""
    device = pick_device(manifest["device"]["type"])
    if (model := device_model(device)) != manifest["device"]["model"]:
        raise InputError(f"{where}: was run on {manifest['device']['model']}, this is {model}; replay it there")
    for name, version in versions().items():
        if (was := manifest["versions"].get(name)) != version:
            raise InputError(f"{where}: was run with {name} {was}, this is {version}; replay it with that version")
    return device
