"""A lock that admits one `stability run` at a time to a run directory."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from stability.registry import InputError
from stability.store import write_atomically


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Hold a run directory for this process; raise `InputError` naming the owner if another process holds it.

    The operating system releases its file lock when the owner is killed. The owner is written to ``.owner.json``.
    """
    lock, owner = FileLock(run_dir / ".lock"), run_dir / ".owner.json"
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"{run_dir}: another `stability run` is at work there ({_describe_owner(owner)}); wait for it, stop it, or "
            "give another --out"
        ) from error
    try:
        holder = {"process": os.getpid(), "host": platform.node(), "since": time.time()}
        write_atomically(owner, json.dumps(holder).encode())
        yield
    finally:
        with contextlib.suppress(OSError):  # On a read-only disk nothing can be removed either.
            owner.unlink(missing_ok=True)
        lock.release()


def _describe_owner(owner: Path) -> str:
    """Return which process holds the lock and for how long, or "just started" if that is not written yet."""
    try:
        holder = json.loads(owner.read_text(encoding="utf-8"))
        minutes = max(0.0, time.time() - holder["since"]) / 60
        return f"process {holder['process']} on {holder['host']}, for {minutes:.0f} minutes"
    except (OSError, ValueError, KeyError, TypeError):
        return "just started"
