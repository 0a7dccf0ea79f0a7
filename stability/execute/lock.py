"""One `stability run` at a time in a run directory."""

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

    The operating system's file lock, so that a killed owner holds nothing; who holds it is written beside it.
    """
    lock, owner = FileLock(run_dir / ".lock"), run_dir / ".owner.json"
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"{run_dir}: another `stability run` is at work there ({_described(owner)}); wait for it, stop it, or give "
            "another --out"
        ) from error
    try:
        who = {"process": os.getpid(), "host": platform.node(), "since": time.time()}
        write_atomically(owner, json.dumps(who).encode())
        yield
    finally:
        with contextlib.suppress(OSError):  # Where nothing can be written, nothing can be removed either.
            owner.unlink(missing_ok=True)
        lock.release()


def _described(owner: Path) -> str:
    """Return who holds the lock and for how long, as far as it has been written yet."""
    try:
        who = json.loads(owner.read_text(encoding="utf-8"))
        minutes = max(0.0, time.time() - who["since"]) / 60
        return f"process {who['process']} on {who['host']}, for {minutes:.0f} minutes"
    except (OSError, ValueError, KeyError, TypeError):
        return "just started"
