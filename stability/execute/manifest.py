"""The manifest of a run directory: begun, continued, or refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stability.execute.machine import device_model, git_commit, versions
from stability.execute.planning import Plan, plan_groups
from stability.grid import SCHEMA, Group, run_table, runs_of
from stability.registry import InputError
from stability.store import MANIFEST, checksum, drop_leftovers, group_path, make_writable, read_manifest, write_manifest
from stability.study import Study

Say = Callable[[str], None]


def open_run(study: Study, where: Path, device: torch.device, say: Say) -> tuple[dict[str, Any], Plan]:
    """Return the manifest of a new or continued run, written to disk, and the groups still to be trained."""
    make_writable(where)
    drop_leftovers(where)
    fresh = _new_manifest(study, device)
    stored: list[dict[str, Any]] = []
    if (where / MANIFEST).is_file():
        old = read_manifest(where)
        _refuse_strangers(old, fresh, where)
        stored = _intact(where, old["groups"], say)
    wanted = {run.id for run in runs_of(study)}
    kept = [run for group in stored for run in group["runs"]]
    strangers = set(kept) - wanted
    if strangers:
        say(f"{where}: {len(strangers)} stored runs are not in the study any more and are ignored")
    plan = plan_groups(study, device, kept)
    fresh["bytes_per_replica"] = plan.bytes
    fresh["groups"] = stored + [_entry(group) for group in plan.groups]
    write_manifest(where, fresh)
    return fresh, plan


def _new_manifest(study: Study, device: torch.device) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "study": study.name,
        "scale": study.scale,
        "study_hash": study.hash,
        "study_text": study.text,
        "versions": versions(),
        "device": {"type": device.type, "model": device_model(device)},
        "git_commit": git_commit(),
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


def _intact(where: Path, groups: list[dict[str, Any]], say: Say) -> list[dict[str, Any]]:
    """Return the finished groups whose files are as they were written."""
    kept = []
    for group in groups:
        path = group_path(where, group["id"])
        if group["status"] == "finished" and path.is_file() and checksum(path) == group["checksum"]:
            kept.append(group)
        elif group["status"] == "finished":
            say(f"{path}: missing or damaged; its {len(group['runs'])} runs are computed again")
    return kept


def _entry(group: Group) -> dict[str, Any]:
    return {
        "id": group.id,
        "arm": group.arm,
        "batch_size": group.batch_size,
        "runs": [run.id for run in group.runs],
        "status": "planned",
    }
