"""The manifest of a run directory: begun, continued, or refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stability.execute.machine import PRECISION, device_model, git_commit, versions
from stability.execute.planning import plan_groups
from stability.grid import SCHEMA, Group, run_table, runs_of
from stability.registry import InputError
from stability.store import MANIFEST, checksum, drop_leftovers, group_path, make_writable, read_manifest, write_manifest
from stability.study import Study

Say = Callable[[str], None]


def open_run(study: Study, where: Path, device: torch.device, say: Say) -> tuple[dict[str, Any], tuple[Group, ...]]:
    """Return the manifest of a new or continued run, written to disk, and the groups still to be trained.

    Groups once planned keep their runs, so that a run that was interrupted ends in the same files as one that was not;
    only runs that are in no kept group are planned anew. *say* is told of stored runs that the study has no more,
    of damaged files, and of what was left out of the data.
    """
    make_writable(where)
    drop_leftovers(where)
    manifest = _new_manifest(study, device)
    old: list[dict[str, Any]] = []
    if (where / MANIFEST).is_file():
        before = read_manifest(where)
        _refuse_strangers(before, manifest, where)
        manifest["started"] = before["started"]
        old = before["groups"]
    for note in study.notes:
        say(f"data: {note}")
    runs = {run.id: run for run in runs_of(study)}
    finished = [entry for entry in old if _is_intact(where, entry, say)]
    strangers = {run for entry in finished for run in entry["runs"]} - set(runs)
    if strangers:
        say(f"{where}: {len(strangers)} stored runs are not in the study any more and are ignored")
    open_again = [entry for entry in old if entry not in finished and set(entry["runs"]) <= set(runs)]
    kept = [Group(entry["id"], tuple(runs[run] for run in entry["runs"])) for entry in open_again]
    covered = {run for entry in (*finished, *open_again) for run in entry["runs"]}
    plan = plan_groups(study, device, [run for run in runs.values() if run.id not in covered], kept)
    manifest["bytes_per_replica"] = plan.bytes
    commit = git_commit()
    manifest["groups"] = finished + [_entry(group, commit) for group in plan.groups]
    write_manifest(where, manifest)
    return manifest, plan.groups


def _new_manifest(study: Study, device: torch.device) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "study": study.name,
        "scale": study.scale,
        "study_hash": study.hash,
        "study_text": study.text,
        "versions": versions(),
        "device": {"type": device.type, "model": device_model(device)},
        "arithmetic": {"threads": 1, "matmul_precision": PRECISION, "compiled": False},
        "seeds": study.grid.seeds,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "runs": run_table(runs_of(study)),
    }


def _refuse_strangers(old: dict[str, Any], new: dict[str, Any], where: Path) -> None:
    for key in ("study", "scale"):
        if old[key] != new[key]:
            raise InputError(f"{where}: holds {key} {old[key]!r}, not {new[key]!r}; give another --out")
    if old["device"] != new["device"]:
        was, now = (f"{entry['type']} ({entry['model']})" for entry in (old["device"], new["device"]))
        raise InputError(f"{where}: was run on {was}, this is {now}; give another --out")
    changed = [name for name, version in new["versions"].items() if old["versions"].get(name) != version]
    if changed:
        was, now = (entry["versions"].get(changed[0]) for entry in (old, new))
        raise InputError(f"{where}: was run with {changed[0]} {was}, this is {now}; give another --out")


def _is_intact(where: Path, entry: dict[str, Any], say: Say) -> bool:
    """Tell whether a group is finished and its file as it was written."""
    if entry["status"] != "finished":
        return False
    path = group_path(where, entry["id"])
    if path.is_file() and checksum(path) == entry["checksum"]:
        return True
    say(f"{path}: missing or damaged; its {len(entry['runs'])} runs are computed again")
    return False


def _entry(group: Group, commit: str) -> dict[str, Any]:
    return {
        "id": group.id,
        "arm": group.arm,
        "batch_size": group.batch_size,
        "runs": [run.id for run in group.runs],
        "status": "planned",
        "git_commit": commit,
    }
