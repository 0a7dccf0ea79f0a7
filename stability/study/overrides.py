"""Overrides of a study file by one scale and then by one replication, on plain data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from stability.registry import InputError, nearest, shortened
from stability.study.schema import DEFAULT_SCALE, SCALES, Data

Plain = dict[str, Any]
Paths = set[tuple[str | int, ...]]

FIXED = ("title", "question", "source", "claims", "controls", "rankings", "scales", "replications")
"""Keys that a replication may not override: it repeats the study's question, claims and margins."""


def at_scale(plain: Plain, scale: str, where: str) -> tuple[Plain, Paths]:
    """Return the plain data with one scale's overrides merged in, and the paths that they set."""
    scales = _tables(plain, "scales", "smoke", where)
    for name in scales:
        if name not in SCALES:
            raise InputError(f"{where}: scales.{name}: unknown scale {name!r}{nearest(name, SCALES)}")
    if scale not in SCALES:
        raise InputError(f"unknown scale {scale!r}{nearest(scale, SCALES)}")
    if scale not in scales and scale != DEFAULT_SCALE:
        raise InputError(f"{where}: the study has no scale {scale!r}{nearest(scale, {*scales, DEFAULT_SCALE})}")
    overrides, replications = (table.get("replications", {}) for table in (scales.get(scale, {}), plain))
    if isinstance(overrides, dict) and isinstance(replications, dict):
        for name in overrides.keys() - replications.keys():
            location = f"{where}: scales.{scale}.replications.{name}"
            raise InputError(f"{location}: the study has no replication {name!r}{nearest(name, replications)}")
    rest = {key: value for key, value in plain.items() if key != "scales"}
    return overridden(rest, scales.get(scale, {}))


def replication_tables(plain: Plain, where: str) -> dict[str, Plain]:
    """Return the tables of overrides of a study's replications, by name.

    Raises:
        InputError: A table overrides a key in `FIXED`.
    """
    tables = _tables(plain, "replications", "digits", where)
    for name, table in tables.items():
        if fixed := next((key for key in table if key in FIXED), None):
            raise InputError(
                f"{where}: replications.{name}.{fixed}: a replication asks the study's question again; allowed: other "
                "data, model, train, grid, arms, probes, tune"
            )
    return tables


def _tables(plain: Plain, key: str, example: str, where: str) -> dict[str, Plain]:
    tables = plain.get(key, {})
    if not isinstance(tables, dict):
        raise InputError(f"{where}: {key}: got {shortened(tables)}; allowed: tables of overrides, as [{key}.{example}]")
    for name, value in tables.items():
        if not isinstance(value, dict):
            location = f"{where}: {key}.{name}"
            raise InputError(f"{location}: got {shortened(value)}; allowed: a table of overrides, as [{key}.{example}]")
    return tables


def overridden(plain: Plain, override: Plain) -> tuple[Plain, Paths]:
    """Return *plain* with *override* merged in, table by table, and the paths that were set.

    >>> overridden({"grid": {"lr": [1], "seeds": 8}}, {"grid": {"seeds": 3}})[0]
    {'grid': {'lr': [1], 'seeds': 3}}
    >>> overridden({"data": {"name": "latent", "pairs": 64}}, {"data": {"name": "digits"}})[0]
    {'data': {'name': 'digits'}}
    """
    changed: Paths = set()

    def merge(base: Any, override: Plain, path: tuple[str | int, ...]) -> Plain:
        merged = _kept(base, override, path) if isinstance(base, dict) else {}
        for key, value in override.items():
            changed.add((*path, key))
            merged[key] = merge(merged.get(key), value, (*path, key)) if isinstance(value, dict) else value
        return merged

    return merge(plain, override, ()), changed


def _kept(base: Plain, override: Plain, path: tuple[str | int, ...]) -> Plain:
    """Return the keys of a table to keep: a replaced dataset or tower loses its options."""
    variant = path == ("data",) or (len(path) == 2 and path[0] == "model")
    if not variant or override.get("name", base.get("name")) == base.get("name"):
        return dict(base)
    return {key: value for key, value in base.items() if path == ("data",) and key in Data.model_fields}


def in_words(override: Plain) -> str:
    """Return a table of overrides in one line.

    >>> in_words({"data": {"name": "digits"}, "grid": {"first_seed": 1000}})
    'data.name = "digits", grid.first_seed = 1000'
    """
    return ", ".join(f"{path} = {json.dumps(value, default=str)}" for path, value in _leaves(override))


def _leaves(table: Mapping[str, Any], head: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{head}{key}.")
        else:
            yield f"{head}{key}", value
