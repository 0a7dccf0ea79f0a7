"""Creates, updates and checks the manifest of a run directory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from stability.execute.machine import PRECISION, device_model, git_commit, versions
from stability.execute.planning import plan_groups
from stability.grid import SCHEMA, Group, run_table
from stability.precision import in_words
from stability.registration import with_begun, with_claims
from stability.registry import InputError
from stability.store import (
    MANIFEST,
    checksum_matches,
    group_path,
    make_writable,
    parameters_path,
    quarantine,
    read_manifest,
    remove_stale,
    write_manifest,
)
from stability.study import Study
from stability.tuning import known_runs

Say = Callable[[str], None]

NONE: Mapping[str, dict[str, Any]] = MappingProxyType({})


def open_run(
    study: Study, where: Path, device: torch.device, say: Say, save_params: bool = False, sharing: int = 1
) -> tuple[dict[str, Any], tuple[Group, ...]]:
    """Return the manifest of a new or continued run, written to disk, and the groups still to be trained.

    Groups that were planned before keep their runs, so that an interrupted run ends in the same files as one that was
    not. Only runs that are in no kept group are planned again. While a tuning search is unfinished
    (``manifest["tuning"]``) only its runs are planned, and groups already planned for the test wait in the manifest.

    Args:
        study: The study.
        where: The run directory.
        device: The device to train on.
        say: Called with a sentence on stored runs that the study no longer has, on damaged files, and on data that were
            left out.
        save_params: Also train the groups whose parameters were not saved.
        sharing: How many workers share a GPU.

    Raises:
        InputError: The directory belongs to another study, device or version, or cannot be written.
    """
    make_writable(where)
    remove_stale(where)
    manifest = _new_manifest(study, device)
    old: list[dict[str, Any]] = []
    log = None
    if (where / MANIFEST).is_file():
        previous = read_manifest(where)
        _check_compatible(previous, manifest, where)
        manifest["started"] = previous["started"]
        old, log = previous["groups"], previous.get("registration")
    manifest["registration"] = with_claims(log, study, old)
    for note in study.notes:
        say(f"data: {note}")
    finished = [entry for entry in old if _is_intact(where, entry, say, save_params)]
    planned_runs, tuning = known_runs(study, where, finished)
    runs = {run.id: run for run in planned_runs}
    manifest["runs"] = run_table(runs.values())
    waiting = [entry for entry in old if tuning and entry not in finished and not set(entry["runs"]) <= set(runs)]
    obsolete = {run for entry in finished for run in entry["runs"]} - set(runs)
    if obsolete and not tuning:
        say(f"{where}: {len(obsolete)} stored runs are not in the study any more and are ignored")
    unfinished = [entry for entry in old if entry not in finished and set(entry["runs"]) <= set(runs)]
    kept = [Group(entry["id"], tuple(runs[run] for run in entry["runs"])) for entry in unfinished]
    covered = {run for entry in (*finished, *unfinished) for run in entry["runs"]}
    plan = plan_groups(study, device, [run for run in runs.values() if run.id not in covered], kept, sharing)
    manifest["bytes_per_replica"] = plan.bytes
    commit = git_commit()
    failures = {entry["id"]: entry for entry in old if entry["status"] == "failed"}
    manifest["groups"] = finished + [_entry(group, commit, failures) for group in plan.groups]
    manifest["groups"] += [_as_planned(entry) for entry in waiting]
    if study.tune:
        manifest["tuning"] = tuning
    write_manifest(where, manifest)
    return manifest, plan.groups


def begin(where: Path, manifest: dict[str, Any], groups: Sequence[Group]) -> None:
    """Record in the manifest, in memory and on disk, that the runs of *groups* are about to take their first step."""
    log = with_begun(manifest["registration"], groups)
    if log is not manifest["registration"]:
        manifest["registration"] = log
        write_manifest(where, manifest)


def _new_manifest(study: Study, device: torch.device) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "study": study.name,
        "scale": study.scale,
        **({"replication": study.replication} if study.replication else {}),
        "study_hash": study.hash,
        "study_text": study.text,
        "versions": versions(),
        "device": {"type": device.type, "model": device_model(device)},
        "arithmetic": {"threads": 1, "matmul_precision": PRECISION, "compiled": False, **_products(study, device)},
        "seeds": study.grid.seeds,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **({"looks": list(study.looks)} if study.looks else {}),
    }


def _products(study: Study, device: torch.device) -> dict[str, dict[str, str]]:
    """Return how the 16-bit products of the study are computed, by their format; nothing if it has none."""
    products = {name: in_words(name, device) for name in sorted(study.precisions) if name != "float32"}
    return {"products": products} if products else {}


def _check_compatible(old: dict[str, Any], new: dict[str, Any], where: Path) -> None:
    for key in ("study", "scale", "replication"):
        if (was := old.get(key)) != (now := new.get(key)):
            raise InputError(f"{where}: holds {key} {was!r}, not {now!r}; give another --out")
    if old.get("looks") != new.get("looks"):
        was, now = (_registered(entry.get("looks")) for entry in (old, new))
        raise InputError(f"{where}: was begun with {was} registered, not {now}; give another --out")
    if old["device"] != new["device"]:
        was, now = (f"{entry['type']} ({entry['model']})" for entry in (old["device"], new["device"]))
        raise InputError(f"{where}: was run on {was}, this is {now}; give another --out")
    changed = [name for name, version in new["versions"].items() if old["versions"].get(name) != version]
    if changed:
        was, now = (entry["versions"].get(changed[0]) for entry in (old, new))
        raise InputError(f"{where}: was run with {changed[0]} {was}, this is {now}; give another --out")


def _registered(looks: list[int] | None) -> str:
    return f"looks at {', '.join(map(str, looks))} seeds" if looks else "no looks"


def _is_intact(where: Path, entry: dict[str, Any], say: Say, save_params: bool) -> bool:
    """Return whether a group is finished and its files have the checksums written for them."""
    if entry["status"] != "finished":
        return False
    files = {group_path(where, entry["id"]): entry["checksum"]}
    if save_params:
        files[parameters_path(where, entry["id"])] = entry.get("params_checksum")
    for path, written in files.items():
        if not checksum_matches(path, written):
            kept = f", kept as {quarantine(where, path)}" if path.is_file() else ""
            say(f"{path}: {'damaged' if kept else 'missing'}{kept}; its {len(entry['runs'])} runs are computed again")
            return False
    return True


def _as_planned(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the entry of a group that waits for the tuning search.

    A finished group (here always one with a damaged file) becomes a planned one, so that the damage is reported once.
    """
    if entry["status"] != "finished":
        return entry
    dropped = ("checksum", "params_checksum", "seconds")
    return {key: value for key, value in entry.items() if key not in dropped} | {"status": "planned"}


def split_group(where: Path, manifest: dict[str, Any], group: Group, parts: Sequence[Group]) -> None:
    """Replace *group* by *parts* in the manifest, in memory and on disk.

    Args:
        where: The run directory.
        manifest: Its manifest, which is changed in place.
        group: The group to replace.
        parts: Groups that have its runs.
    """
    index = next(index for index, entry in enumerate(manifest["groups"]) if entry["id"] == group.id)
    commit = manifest["groups"][index]["git_commit"]
    manifest["groups"][index : index + 1] = [_entry(part, commit) for part in parts]
    write_manifest(where, manifest)


def _entry(group: Group, commit: str, failures: Mapping[str, dict[str, Any]] = NONE) -> dict[str, Any]:
    """Return the entry of a planned group; a group that has failed keeps its failure until it is retried."""
    failure = failures.get(group.id, {})
    return {
        "id": group.id,
        "arm": group.arm,
        "batch_size": group.batch_size,
        "runs": [run.id for run in group.runs],
        "status": "planned",
        **{key: failure[key] for key in ("status", "error", "seconds") if key in failure},
        "git_commit": commit,
        **({"tuning": True} if group.tuning else {}),
    }
