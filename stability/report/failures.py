"""Why runs failed: every reason once, in one line, with the runs that it cost and the traceback behind it."""

from __future__ import annotations

import re

from stability.analysis import Results
from stability.report.figures.panels import grouped
from stability.report.tables import Json

LONGEST_REASON = 300
LONGEST_TRACEBACK = 6_000
"""Characters that are kept of a reason from its start, and of a traceback from its end, where the error is."""


def failures(results: Results) -> list[Json]:
    """Return each reason for which runs failed, most runs first: reason, runs (their number), cells, traceback.

    Runs are those of the study's grid; one traceback stands for all of its reason.
    """
    failed = results.runs[results.runs["status"] == "failed"].set_index("run")
    found: dict[str, Json] = {}
    for entry in results.manifest["groups"]:
        lost = [run for run in entry.get("runs", ()) if run in failed.index] if entry.get("error") else []
        if lost:
            text = str(entry["error"])
            known = found.setdefault(reason_of(text), {"runs": [], "traceback": shortened(text)})
            known["runs"] += lost
    told = [
        {
            "reason": reason,
            "runs": len(known["runs"]),
            "cells": ", ".join(
                f"{arm} at batch {size}: {len(rows)}"
                for (arm, size), rows in grouped(failed.loc[known["runs"]], "arm", "batch_size")
            ),
            "traceback": known["traceback"],
        }
        for reason, known in found.items()
    ]
    return sorted(told, key=lambda one: -one["runs"])


def reason_of(traceback: str) -> str:
    r"""Return the exception's type and the first line of its message: what follows a traceback's last frame.

    >>> reason_of('Traceback (most recent call last):\n  File "a.py", line 1, in f\n    1 / 0\nValueError: no\nmore\n')
    'ValueError: no'
    """
    lines = [line for line in traceback.strip().splitlines() if line.strip()] or ["unknown"]
    frames = [place for place, line in enumerate(lines) if line.startswith('  File "')]
    after = [line for line in lines[frames[-1] :] if not line.startswith(" ")] if frames else lines
    reason = (after or lines[-1:])[0].strip()
    return reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]} …"


def shortened(traceback: str) -> str:
    r"""Return a traceback without the folders of the machine that it comes from, and its end if it is very long.

    >>> shortened('  File "/home/me/lib/stability/train/chains.py", line 3, in step')
    '  File "stability/train/chains.py", line 3, in step'
    """
    plain = re.sub(r'File "(?:[^"\n]*[/\\])?((?:[^/\\"\n]+[/\\]){2}[^/\\"\n]+)"', r'File "\1"', traceback.strip("\n"))
    return plain if len(plain) <= LONGEST_TRACEBACK else f"…\n{plain[-LONGEST_TRACEBACK:]}"
