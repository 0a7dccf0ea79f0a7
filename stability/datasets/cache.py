"""Cache of prepared data: arrays written once with checksums, then memory-mapped, never read as a whole.

An entry is a folder ``<cache>/<key>/`` of .npy files and ``data.json``. The key is a digest of the source (names, sizes
and time stamps of files) and of the preparation. The fingerprint is a digest of the prepared content, so equal pairs
have equal fingerprints independent of their location.
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
"""Number of bytes read at once for a checksum."""


@dataclass(frozen=True)
class Entry:
    """A folder of prepared arrays, and further facts about them."""

    folder: Path
    facts: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the SHA-256 of the prepared content."""
        return str(self.facts["fingerprint"])

    def array(self, name: str) -> Tensor:
        """Return an array as a memory-mapped tensor: pages are read on access, and writes stay private."""
        return torch.from_numpy(np.load(self.folder / f"{name}.npy", mmap_mode="c", allow_pickle=False))

    def __contains__(self, name: str) -> bool:
        return f"{name}.npy" in self.facts["files"]


def cache_folder(path: str = "") -> Path:
    """Return the folder of prepared data: *path*, else $STABILITY_CACHE, else the user's cache directory."""
    folder = path or os.environ.get(VARIABLE, "")
    if folder:
        return Path(folder).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("contrastive-stability")


def stamps(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Return (path, bytes, time stamp) of each file, (path, -1, -1) if it does not exist."""
    result = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            result.append((str(file.absolute()), -1, -1))
        else:
            result.append((str(file.absolute()), status.st_size, status.st_mtime_ns))
    return result


def prepared(key: Mapping[str, Any], cache: str, build: Callable[[Path], Mapping[str, Any]]) -> Entry:
    """Return the entry of *key*; build it if it does not exist or is damaged.

    The entry is written to a temporary folder that is renamed last, so an existing entry is complete. If two processes
    build the same entry, the first to finish wins.

    Args:
        key: identifies source and preparation.
        cache: folder of the cache; see `cache_folder`.
        build: writes .npy files into a folder and returns further facts as plain data.

    Raises:
        InputError: if the cache cannot be written.
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
        # A damaged entry is replaced; one that another process has just finished is equal to ours.
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
    files = {path.name: _file_record(path) for path in sorted(folder.iterdir())}
    content = {name: file["sha256"] for name, file in files.items()}
    # The notes on samples that were left out are not part of the content.
    content_facts = {name: fact for name, fact in facts.items() if name != "notes"}
    fingerprint = hashlib.sha256(json.dumps([content, content_facts], sort_keys=True).encode()).hexdigest()[:16]
    plain = {"schema": SCHEMA, "fingerprint": fingerprint, **facts, "files": files}
    (folder / FACTS).write_text(json.dumps(plain, indent=1), encoding="utf-8")
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _file_record(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"bytes": status.st_size, "changed": status.st_mtime_ns, "sha256": sha256(path)}


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _intact(folder: Path) -> Entry | None:
    """Return the entry if it is intact: a file whose size or time stamp has changed must match its checksum.

    Reading all of a large entry at each start would take minutes, so files with unchanged size and time are trusted.
    """
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        for name, record in facts["files"].items():
            path = folder / name
            status = path.stat()
            changed = (status.st_size, status.st_mtime_ns) != (record["bytes"], record["changed"])
            if changed and sha256(path) != record["sha256"]:
                return None
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError):
        return None
    return Entry(folder, facts)
