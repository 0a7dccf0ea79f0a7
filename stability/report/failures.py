"""Reasons of failed runs: each reason once, in one line, with the affected runs and a traceback."""

from __future__ import annotations

import re

from stability.analysis import Results
from stability.report.figures.panels import grouped
from stability.report.tables import Json

LONGEST_REASON = 300
LONGEST_TRACEBACK = 6_000
"""Characters kept from the start of a reason, and from the end of a traceback, where the error is."""


def failures(results: Results) -> list[Json]:
    """Return each reason of failed runs as {reason, runs, cells, traceback}, most runs first.

    "runs" is the number of affected runs of the study's grid. Only the first traceback of a reason is kept.
    """
    failed = results.runs[results.runs["status"] == "failed"].set_index("run")
    by_reason: dict[str, Json] = {}
    for entry in results.manifest["groups"]:
        lost = [run for run in entry.get("runs", ()) if run in failed.index] if entry.get("error") else []
        if lost:
            text = str(entry["error"])
            failure = by_reason.setdefault(reason_of(text), {"runs": [], "traceback": shortened(text)})
            failure["runs"] += lost
    rows = [
        {
            "reason": reason,
            "runs": len(failure["runs"]),
            "cells": ", ".join(
                f"{arm} at batch {size}: {len(group)}"
                for (arm, size), group in grouped(failed.loc[failure["runs"]], "arm", "batch_size")
            ),
            "traceback": failure["traceback"],
        }
        for reason, failure in by_reason.items()
    ]
    return sorted(rows, key=lambda row: -row["runs"])


def reason_of(traceback: str) -> str:
    r"""Return the exception's type and the first line of its message, from below the last frame of a traceback.

    >>> reason_of('Traceback (most recent call last):\n  File "a.py", line 1, in f\n    1 / 0\nValueError: no\nmore\n')
    'ValueError: no'
    """
    lines = [line for line in traceback.strip().splitlines() if line.strip()] or ["unknown"]
    frames = [index for index, line in enumerate(lines) if line.startswith('  File "')]
    after = [line for line in lines[frames[-1] :] if not line.startswith(" ")] if frames else lines
    reason = (after or lines[-1:])[0].strip()
    return reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]} …"


def shortened(traceback: str) -> str:
    r"""Return a traceback without the machine's parent folders; only its end if it is very long.

    >>> shortened('  File "/home/me/lib/stability/train/chains.py", line 3, in step')
    '  File "stability/train/chains.py", line 3, in step'
    """
    plain = re.sub(r'File "(?:[^"\n]*[/\\])?((?:[^/\\"\n]+[/\\]){2}[^/\\"\n]+)"', r'File "\1"', traceback.strip("\n"))
    return plain if len(plain) <= LONGEST_TRACEBACK else f"…\n{plain[-LONGEST_TRACEBACK:]}"
