"""Prepared data on disk: arrays written once beside a checksum, then mapped into memory, never read whole.

An entry is a folder ``<cache>/<key>/`` of .npy files and ``data.json``. The key is a digest of where the data come from
(names, sizes and time stamps of the source files) and of how they were prepared; the fingerprint is a digest of what
came out, so the same pairs have the same fingerprint wherever they lie.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stability.registry import InputError

SCHEMA = 1
FACTS = "data.json"
VARIABLE = "STABILITY_CACHE"
CHUNK = 1 << 22
"""Bytes read at once for a checksum."""


@dataclass(frozen=True)
class Entry:
    """A folder of prepared arrays, and the facts about them that are no array."""

    folder: Path
    facts: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the SHA-256 of all that was prepared."""
        return str(self.facts["fingerprint"])

    def array(self, name: str) -> Tensor:
        """Return an array as a tensor mapped into memory: pages are read when touched, and writes stay private."""
        return torch.from_numpy(np.load(self.folder / f"{name}.npy", mmap_mode="c", allow_pickle=False))

    def __contains__(self, name: str) -> bool:
        return f"{name}.npy" in self.facts["files"]


def cache_folder(given: str = "") -> Path:
    """Return where prepared data are kept: *given*, else $STABILITY_CACHE, else the user's cache directory."""
    named = given or os.environ.get(VARIABLE, "")
    if named:
        return Path(named).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("contrastive-stability")


def stamps(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Return (path, bytes, time stamp) of each file, (path, -1, -1) of one that is not there."""
    found = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            found.append((str(file.absolute()), -1, -1))
        else:
            found.append((str(file.absolute()), status.st_size, status.st_mtime_ns))
    return found


def prepared(key: Mapping[str, Any], cache: str, build: Callable[[Path], Mapping[str, Any]]) -> Entry:
    """Return the entry of *key*, built now if it is not there or not intact.

    *build* writes .npy files into the folder it is given and returns further facts as plain data. It writes to a
    temporary folder that is renamed last, so an entry that exists is complete; of two processes that build the same
    one, the first to finish wins. Raises `InputError` if the cache cannot be written.
    """
    digest = hashlib.sha256(json.dumps([SCHEMA, key], sort_keys=True).encode()).hexdigest()[:24]
    home = cache_folder(cache)
    folder = home / digest
    if (entry := _intact(folder)) is not None:
        return entry
    try:
        home.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{digest}.", dir=home))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(
            f"cache: {home} cannot be written ({reason}); name another folder by data.cache or ${VARIABLE}"
        ) from error
    try:
        _finish(unfinished, build(unfinished))
        # A damaged entry is replaced; one that another process has just finished is as good as ours.
        if folder.exists() and _intact(folder) is None:
            shutil.rmtree(folder)
        if not folder.exists():
            unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    entry = _intact(folder)
    if entry is None:
        raise InputError(f"cache: {folder} was damaged while it was written; remove it and try again")
    return entry


def _finish(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the facts with checksums, and flush all files to disk."""
    files = {path.name: _described(path) for path in sorted(folder.iterdir())}
    content = {name: file["sha256"] for name, file in files.items()}
    # How many samples were left out says nothing about those that were kept.
    kept = {name: fact for name, fact in facts.items() if name != "notes"}
    fingerprint = hashlib.sha256(json.dumps([content, kept], sort_keys=True).encode()).hexdigest()[:16]
    plain = {"schema": SCHEMA, "fingerprint": fingerprint, **facts, "files": files}
    (folder / FACTS).write_text(json.dumps(plain, indent=1), encoding="utf-8")
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _described(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"bytes": status.st_size, "changed": status.st_mtime_ns, "sha256": sha256(path)}


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def _intact(folder: Path) -> Entry | None:
    """Return the entry if it is complete: a file whose size or time stamp is not as recorded must match its checksum.

    Reading all of a large entry at each start would cost minutes, so an untouched file is taken as it was.
    """
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        for name, was in facts["files"].items():
            path = folder / name
            status = path.stat()
            touched = (status.st_size, status.st_mtime_ns) != (was["bytes"], was["changed"])
            if touched and sha256(path) != was["sha256"]:
                return None
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError):
        return None
    return Entry(folder, facts)
