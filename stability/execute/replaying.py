"""Runs of a run directory, trained again: found by the head of their id, on the machine and versions that ran them."""

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
    keep: Collection[int] | Callable[[int], Collection[int]] = (),
    progress: Callable[[int, int], None] = lambda done, steps: None,
) -> Replay:
    """Return one finished run of *run_dir* at *step* (None: the end), trained again and checked against what is stored.

    *run* is a run's id or the head of one, None the first finished run of the test; *keep* names steps at which
    parameters are kept too, or picks them from the last step. *progress* is told the steps done and their number. Where
    the directory holds the run's final parameters (``--save-params``) and no more is asked for, nothing is trained.
    Raises `InputError` for an unknown or unfinished run, and where device or versions are not those of the directory.
    """
    where = Path(run_dir)
    manifest = read_manifest(where)
    study = read_study(manifest, where)
    device = _same_machine(where, manifest)
    finished = [entry for entry in manifest["groups"] if entry["status"] == "finished"]
    known = {each.id: each for each in known_runs(study, where, finished)[0]}
    if run is None:
        ended = {each for entry in finished for each in entry["runs"]}
        run = next((name for name, each in known.items() if name in ended and not each.tuning), "")
    chosen = known[resolve(run, known, where)]
    entry = next((entry for entry in manifest["groups"] if chosen.id in entry["runs"]), None)
    if entry is None or entry["status"] != "finished":
        raise InputError(f"{where}: run {chosen.id} is not finished; `stability run` goes on with it")
    path, saved = group_path(where, entry["id"]), None
    for sentence in damaged_groups(where, [entry]):
        raise InputError(sentence)
    group = Group(entry["id"], tuple(known[each] for each in entry["runs"]))
    total = study_of(study, group).train.steps
    last = total if step is None else step
    kept = keep(last) if callable(keep) else keep
    params_path = parameters_path(where, entry["id"])
    if last == total and checksum_matches(params_path, entry.get("params_checksum")):
        saved = read_parameters(params_path, chosen.id)
    with reproducible_arithmetic():
        return replay(
            study_of(study, group),
            group,
            chosen,
            step=last,
            keep=kept,
            stored=read_group(path),
            saved=saved,
            device=device,
            progress=lambda done: progress(done, last),
        )


def resolve(given: str, known: Collection[str], where: Path) -> str:
    """Return the run id that *given* is, or begins; or raise `InputError` with the nearest ids."""
    found = [each for each in known if each.startswith(given)] if given else []
    if given in known or len(found) == 1:
        return given if given in known else found[0]
    if found:
        raise InputError(f"{where}: {len(found)} runs begin with {given!r} ({_some(found)}); give more of the id")
    near = difflib.get_close_matches(given, known, n=1)
    # A head is short beside an id: what begins alike is near too.
    near = near or [each for each in sorted(known) if len(given) > 2 and each.startswith(given[:-1])][:1]
    nearest = f"; did you mean {near[0]!r}?" if near else ""
    raise InputError(f"{where}: holds no run {given!r}{nearest} (known are {len(known)}: {_some(known)})")


def _some(ids: Collection[str]) -> str:
    shown = sorted(ids)[:4]
    return ", ".join(shown) + (", ..." if len(ids) > len(shown) else "")


def _same_machine(where: Path, manifest: dict[str, Any]) -> torch.device:
    """Return the device of a run directory, or raise `InputError` where a replay could not give the same numbers."""
    device = pick_device(manifest["device"]["type"])
    if (model := device_model(device)) != manifest["device"]["model"]:
        raise InputError(f"{where}: was run on {manifest['device']['model']}, this is {model}; replay it there")
    for name, version in versions().items():
        if (was := manifest["versions"].get(name)) != version:
            raise InputError(f"{where}: was run with {name} {was}, this is {version}; replay it with that version")
    return device
