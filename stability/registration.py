"""What a study claims before its runs: its claiming tables as they stood before the first step, and every later change.

The manifest of a run directory holds a log under ``registration``. Its events are ``claims`` (the claiming tables, the
design and the seeds, each time they are not as before), ``begun`` (runs before their first step) and ``unrecorded``
(runs of a directory that had no log). Each event has a UTC time and a digest of itself and of the event before it, so
that an edit by hand shows. ``looks.json`` has the looks at results, each after an event of the log. Reports hold no
times.

The digests show careless edits. They do not show a log that is rewritten with new digests, a wrong clock, results that
were read without this package, or runs of another directory; for these, publish the study file before running it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stability.grid import Group, runs_of
from stability.store import write_atomically
from stability.study import Control, Study, digest

CLAIMING_TABLES = ("claims", "controls", "rankings")
"""Tables of a study whose entries say in advance what its runs decide; each entry names its arms."""

WITHOUT_EFFECT = ("id", "source")
"""Keys of an entry that change neither what it says nor a verdict; its id is its name in the log."""

LOOKS = "looks.json"

EVENTS = ("claims", "begun", "unrecorded")
"""Kinds of events in the log of a manifest."""

Status = Literal["registered", "exploratory", "not recorded"]
Event = Mapping[str, Any]
Key = tuple[str, str]
"""Table and name of an entry."""

NOT_RECORDED = "No record was kept of what was claimed before the runs."
DAMAGED = "The record of what was claimed before the runs was edited or damaged: its digests do not agree."


@dataclass(frozen=True)
class Standing:
    """How an entry stands against the record.

    Attributes:
        status: "registered": it is as it stood before the first step of the runs that test it. "exploratory": it was
            added or changed after that, or seeds were added after a look. "not recorded": the record does not say.
        note: The reason in one sentence; empty if it is registered.
    """

    status: Status
    note: str = ""


@dataclass(frozen=True)
class Withdrawn:
    """An entry that was registered, whose runs were begun, and that the study no longer has.

    Attributes:
        table: The table.
        name: Id of the entry; of a ranking, its measure.
        text: The entry as it was registered, in words.
    """

    table: str
    name: str
    text: str


@dataclass(frozen=True)
class Record:
    """The record of a run directory.

    Attributes:
        log: The events of the manifest, the oldest first.
        looks: The looks at results.
        damage: Why the record cannot be relied on; empty if its digests agree.
    """

    log: tuple[Event, ...]
    looks: tuple[Event, ...] = ()
    damage: str = ""


@dataclass(frozen=True)
class Registration:
    """How everything that a study claims stands against the record of its run directory.

    Attributes:
        recorded: Whether there is a record that can be relied on.
        note: Why not, in a sentence.
        standings: Each entry by table and name.
        withdrawn: Entries that were withdrawn after their runs.
        first_look: Number of seeds when the results were first looked at.
    """

    recorded: bool
    note: str
    standings: Mapping[Key, Standing]
    withdrawn: tuple[Withdrawn, ...] = ()
    first_look: int | None = None

    def of(self, table: str, name: str) -> Standing:
        """Return how an entry stands."""
        return self.standings.get((table, name), Standing("not recorded", self.note))


# --- writing ---------------------------------------------------------------------------------------------------------


def with_claims(log: Sequence[Event] | None, study: Study, groups: Sequence[Mapping[str, Any]] = ()) -> Sequence[Event]:
    """Return the log with what *study* claims now, as an event if that is not as the last such event has it.

    Args:
        log: The log so far; None if the directory has none.
        study: The study that is run.
        groups: The groups of a directory without a log: what was claimed before their runs is not known.
    """
    if log is not None and not _agrees(log, EVENTS):
        return log  # A damaged log stays as it is, and so stays damaged.
    kept: list[Event] = list(log or ())
    if log is None and (runs := _by_arm((entry["arm"], entry["runs"]) for entry in groups if not entry.get("tuning"))):
        kept.append(_chained(kept, {"event": "unrecorded", "runs": runs}))
    now = _claimed(study)
    last = next((event for event in reversed(kept) if event["event"] == "claims"), None)
    if last is None or any(last[key] != value for key, value in now.items()):
        kept.append(_chained(kept, {"event": "claims", **now}))
    return kept


def with_begun(log: Sequence[Event], groups: Sequence[Group]) -> Sequence[Event]:
    """Return the log with the runs of *groups* that are about to take their first step.

    Runs of a tuning search test no claim and are left out.
    """
    if not _agrees(log, EVENTS):
        return log
    known = {run for event in log for runs in event.get("runs", {}).values() for run in runs}
    tested = (group for group in groups if not group.tuning)
    new = _by_arm((group.arm, [run.id for run in group.runs if run.id not in known]) for group in tested)
    return [*log, _chained(log, {"event": "begun", "runs": new})] if new else log


def record_look(run_dir: Path, manifest: Mapping[str, Any], study: Study) -> None:
    """Record in ``looks.json`` that the results of a run directory were looked at; nothing for an equal earlier look.

    Args:
        run_dir: The run directory.
        manifest: Its manifest.
        study: Its study.

    Raises:
        OSError: The file cannot be written.
    """
    log = manifest.get("registration")
    if not log or not any(entry["status"] == "finished" and not entry.get("tuning") for entry in manifest["groups"]):
        return
    looks = _looks_in(run_dir)
    if looks is None or not _agrees(log, EVENTS):
        return
    look = {"after": log[-1]["digest"], "seeds": _seeds(study), "registered_looks": list(study.looks)}
    if not any(all(earlier.get(key) == value for key, value in look.items()) for earlier in looks):
        looks = [*looks, _chained(looks, {"event": "look", **look})]
        write_atomically(run_dir / LOOKS, json.dumps(looks, indent=1).encode())


def _claimed(study: Study) -> dict[str, Any]:
    """Return what a study claims, and on which runs, as plain data."""
    canonical = study.canonical()
    design = {key: value for key, value in canonical.items() if key not in (*CLAIMING_TABLES, *_BESIDES)}
    design["grid"] = {key: value for key, value in design["grid"].items() if key not in ("seeds", "first_seed", "arms")}
    # Every run but for its seed: what the effect of a claim is an effect on.
    grid = study.grid.model_copy(update={"seeds": 1, "first_seed": 0})
    cells = _by_arm((run.arm, [run.id]) for run in runs_of(study.model_copy(update={"grid": grid})))
    tuned = canonical.get("tune")
    claimed = {
        "tables": {table: dict(entries_of(study, table)) for table in CLAIMING_TABLES},
        "cells": {arm: digest([sorted(ids), tuned] if tuned else sorted(ids)) for arm, ids in cells.items()},
        "design": design,
        "seeds": _seeds(study),
        "looks": list(study.looks),
    }
    plain: dict[str, Any] = json.loads(json.dumps(claimed, default=str))
    return plain


_BESIDES = ("title", "question", "source", "published", "looks")
"""Keys of a study that decide no number and no verdict; registered looks are recorded on their own."""


def entries_of(study: Study, table: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the entries of a claiming table by name, as plain data with the arms that they compare."""
    for entry in getattr(study, table, ()):
        plain = entry.model_dump(mode="json", exclude_defaults=True)
        pair = (entry.arm, entry.against) if isinstance(entry, Control) else getattr(entry, "compare", None)
        arms: Any = pair or getattr(entry, "losses", "all")
        kept = {key: value for key, value in plain.items() if key not in WITHOUT_EFFECT}
        yield name_of(entry), {**kept, "arms": sorted({*(study.grid.arms if arms == "all" else arms)})}


def name_of(entry: Any) -> str:
    """Return the name of an entry of a claiming table: its id; of one without, its measure and how it is read."""
    named = (getattr(entry, key, None) for key in ("measure", "reduction", "transform"))
    return getattr(entry, "id", "") or " ".join(filter(None, named))


def _seeds(study: Study) -> list[int]:
    return [study.grid.first_seed, study.grid.seeds]


def _by_arm(runs: Any) -> dict[str, list[str]]:
    collected: dict[str, list[str]] = {}
    for arm, ids in runs:
        if ids:
            collected.setdefault(arm, []).extend(ids)
    return collected


def _chained(earlier: Sequence[Event], event: dict[str, Any]) -> Event:
    """Return an event with the time and the digest of itself and of the event before it."""
    timed = {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **event}
    return {**timed, "digest": _digest(earlier[-1]["digest"] if earlier else "", timed)}


def _digest(before: str, event: Event) -> str:
    plain = {key: value for key, value in event.items() if key != "digest"}
    return hashlib.sha256(f"{before}{json.dumps(plain, sort_keys=True)}".encode()).hexdigest()


# --- reading ---------------------------------------------------------------------------------------------------------


def read_record(manifest: Mapping[str, Any], run_dir: Path) -> Record | None:
    """Return the record of a run directory; None if its manifest has none."""
    if "registration" not in manifest:
        return None
    log, looks = manifest["registration"], _looks_in(run_dir)
    agree = _agrees(log, EVENTS) and looks is not None and _agrees(looks, ("look",))
    return Record(tuple(log), tuple(looks or ())) if agree else Record((), (), DAMAGED)


def _looks_in(run_dir: Path) -> list[Event] | None:
    """Return the looks of a run directory, none if there is no file; None if the file cannot be read."""
    path = run_dir / LOOKS
    if not path.is_file():
        return []
    try:
        looks = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return looks if _agrees(looks, ("look",)) else None


def _agrees(events: Any, kinds: Collection[str]) -> bool:
    """Return whether these are events of the given kinds whose digests agree."""
    if not isinstance(events, list):
        return False
    before = ""
    for event in events:
        if (
            not isinstance(event, dict)
            or event.get("event") not in kinds
            or event.get("digest") != _digest(before, event)
        ):
            return False
        before = event["digest"]
    return True


def registration_of(study: Study, record: Record | None, runs: Mapping[str, Collection[str]]) -> Registration:
    """Return how what a study claims stands against the record of its run directory.

    An entry is held against the last claims before the first of its runs was begun, so that an edit that is undone
    makes it registered again, and a study whose runs are all new registers anew.

    Args:
        study: The study.
        record: The record of its run directory.
        runs: Ids of the study's runs by arm.
    """
    if record is None or record.damage:
        return Registration(False, record.damage if record else NOT_RECORDED, {})
    now = _claimed(study)
    standings = {
        (table, name): _standing(record, now, table, name, entry, runs)
        for table, entries in now["tables"].items()
        for name, entry in entries.items()
    }
    look = _first_look(record, _first_begun(record.log, runs, runs))
    return Registration(
        recorded=True,
        note="",
        standings=standings,
        withdrawn=tuple(_withdrawn(record.log, now["tables"])),
        first_look=look["seeds"][1] if look else None,
    )


def _standing(
    record: Record, now: Event, table: str, name: str, entry: Event, runs: Mapping[str, Collection[str]]
) -> Standing:
    begun = _first_begun(record.log, runs, entry["arms"])
    if begun is None:
        return Standing("registered")
    if record.log[begun]["event"] == "unrecorded":
        return Standing("not recorded", NOT_RECORDED)
    registered = _claims_before(record.log, begun)
    then = registered["tables"].get(table, {}).get(name)
    if then is None:
        return Standing("exploratory", "Added after the first step of runs that test it.")
    changes = [*_differences(then, entry)]
    if any(registered["cells"].get(arm) != now["cells"].get(arm) for arm in entry["arms"]):
        on = [*_differences(registered["design"], now["design"])] or ["the arms"]
        changes += [f"the runs that test it ({', '.join(on)})"]
    if changes:
        return Standing("exploratory", f"Changed after the first step of runs that test it: {'; '.join(changes)}.")
    look = _first_look(record, begun)
    if look and not now["looks"] and look["seeds"] != now["seeds"]:
        (first_was, was), (first, count) = look["seeds"], now["seeds"]
        seeds = f"{was} seeds, now {count}" if first == first_was else f"seeds from {first_was} on, now from {first} on"
        return Standing("exploratory", f"Seeds changed after a look at the results, at no registered look: {seeds}.")
    return Standing("registered")


def _first_begun(log: Sequence[Event], runs: Mapping[str, Collection[str]], arms: Collection[str]) -> int | None:
    """Return the position of the first event with a run of one of the *arms*; None if there is none."""
    wanted = {arm: {*runs.get(arm, ())} for arm in arms}
    for position, event in enumerate(log):
        if any(not wanted[arm].isdisjoint(ids) for arm, ids in event.get("runs", {}).items() if arm in wanted):
            return position
    return None


def _claims_before(log: Sequence[Event], position: int) -> Event:
    return next(event for event in reversed(log[:position]) if event["event"] == "claims")


def _first_look(record: Record, begun: int | None) -> Event | None:
    """Return the first look after the event at a position of the log."""
    if begun is None:
        return None
    later = {event["digest"] for event in record.log[begun:]}
    return next((look for look in record.looks if look["after"] in later), None)


def _withdrawn(log: Sequence[Event], tables: Mapping[str, Mapping[str, Any]]) -> Iterator[Withdrawn]:
    """Yield the entries that stood before the first step of a run of their arms and that *tables* lack."""
    found: set[Key] = set()
    for position, event in enumerate(log):
        if event["event"] != "begun":
            continue
        for table, entries in _claims_before(log, position)["tables"].items():
            for name, entry in entries.items():
                tested = not event["runs"].keys().isdisjoint(entry["arms"])
                if tested and name not in tables.get(table, {}) and (table, name) not in found:
                    found.add((table, name))
                    yield Withdrawn(table, name, _in_words(entry))


def _in_words(entry: Event) -> str:
    """Return an entry in one line: its text and its other keys.

    >>> _in_words({"text": "It recalls more", "measure": "recall_at_1", "margin": 0.1, "arms": ["a", "b"]})
    '“It recalls more” (measure "recall_at_1", margin 0.1)'
    """
    keys = ", ".join(f"{key} {_value(value)}" for key, value in entry.items() if key not in ("text", "arms"))
    return f"“{entry['text']}” ({keys})" if "text" in entry else keys


def _differences(then: Event, now: Event, head: str = "") -> Iterator[str]:
    """Yield in words each key whose value is not as it was.

    >>> [*_differences({"margin": 0.1, "grid": {"noise": [0.0]}}, {"margin": 0.2, "grid": {"noise": [0.0, 0.4]}})]
    ['margin was 0.1, is 0.2', 'grid.noise was [0.0], is [0.0, 0.4]']
    """
    for key in dict.fromkeys([*then, *now]):
        was, value = then.get(key), now.get(key)
        if was == value or (key == "arms" and "compare" in now):
            continue
        if isinstance(was, Mapping) and isinstance(value, Mapping):
            yield from _differences(was, value, f"{head}{key}.")
        else:
            yield f"{head}{key} was {_value(was)}, is {_value(value)}"


def _value(value: Any) -> str:
    if value is None:
        return "not set"
    return f"“{value}”" if isinstance(value, str) and " " in value else json.dumps(value)
