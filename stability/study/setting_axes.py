"""Axes of the grid that set keys of other tables, as ``"train.warmup" = [0, 20]``."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stability.registry import InputError, nearest, shortened

Settings = tuple[tuple[str, Any], ...]
"""Values of keys of other tables, by dotted key."""

TABLES = ("train", "model", "data", "arms")
"""The tables whose keys can be axes."""

EXCLUDED = {
    "train.steps": "all runs of a study are equally long",
    "train.budget": "all runs of a study are equally long",
    "data.name": "other data are a replication ([replications.NAME])",
    "data.corruption": "two ways to draw corruption are two studies",
    "arms.*.start": "an arm that every arm starts from would start from itself",
}
"""Keys that no axis can set, and why."""


NONE = "none"
OPTIONAL = ("train.clip_norm", "train.clip_quantile")
"""Keys that a study may leave out; as a level of such an axis, "none" stands for that."""


def flattened(grid: Mapping[str, Any]) -> dict[str, Any]:
    """Return a grid with nested tables as dotted keys: TOML reads an unquoted ``train.warmup`` as a table.

    >>> flattened({"lr": [1e-3], "train": {"warmup": [0, 20]}, "model.*.width": [16]})
    {'lr': [0.001], 'train.warmup': [0, 20], 'model.*.width': [16]}
    """
    flat: dict[str, Any] = {}
    for key, value in grid.items():
        if isinstance(value, Mapping) and key.partition(".")[0] in TABLES:
            flat |= flattened({f"{key}.{name}": item for name, item in value.items()})
        else:
            flat[key] = value
    return flat


def check_keys(axes: Mapping[str, Any], known: Sequence[str], locate: Any) -> None:
    """Raise `InputError` for a key of the grid that is neither an axis of its own nor a key of another table.

    Args:
        axes: The keys of the grid that are not its own, and their values.
        known: The grid's own keys.
        locate: Returns the location of keys in the file.
    """
    for key, values in axes.items():
        where, table = locate("grid", key), key.partition(".")[0]
        if "." not in key:
            raise InputError(f"{where}: unknown key{nearest(key, known)}")
        if table not in TABLES or key.endswith("."):
            allowed = ", ".join(f"{name}.KEY" for name in TABLES)
            raise InputError(f"{where}: got the table {table!r}; allowed: keys of other tables, as {allowed}")
        if table == "arms" and not (key.startswith("arms.*.") and key.count(".") == 2):
            raise InputError(
                f"{where}: allowed: arms.*.KEY, an option or scalar of every arm; for one arm, list arms with "
                "different options in grid.arms"
            )
        if key in EXCLUDED:
            raise InputError(f"{where}: cannot be an axis: {EXCLUDED[key]}")
        if not isinstance(values, list) or not values:
            raise InputError(f"{where}: got {shortened(values)}; allowed: a list of at least one value")
        if len({repr(value) for value in values}) < len(values):
            raise InputError(f"{where}: got {shortened(values)}; allowed: values that differ")


def with_settings(plain: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Return a study as plain data with *settings* in their tables, and no such axis in its grid.

    ``model.*.KEY`` sets the key of every tower, ``arms.*.KEY`` that of every arm of the grid.

    Raises:
        InputError: The data have no such table.
    """
    merged = copy.deepcopy(dict(plain))
    merged["grid"] = {key: value for key, value in merged["grid"].items() if "." not in key}
    for key, value in settings:
        for path in _paths(merged, key):
            table = merged
            for name in path[:-1]:
                if table.get(name) is None:
                    table[name] = {}
                table = table[name]
                if not isinstance(table, dict):
                    raise InputError(f"{'.'.join(path[:-1])} is not a table")
            if value == NONE and key in OPTIONAL:
                table.pop(path[-1], None)
            else:
                table[path[-1]] = value
    return merged


def _paths(plain: dict[str, Any], key: str) -> list[list[str]]:
    """Return the paths that a dotted key with a ``*`` for all towers or arms stands for."""
    table, name, *rest = key.split(".")
    if table == "model" and rest:
        sides = [side for side in ("image", "text", "extra_modalities") if plain["model"].get(side) is not None]
        for side in sides:
            tower = plain["model"][side]
            plain["model"][side] = {"name": tower} if isinstance(tower, str) else tower
        return [[table, side, *rest] for side in (sides if name == "*" else [name])]
    if table == "arms":
        for arm in plain["grid"]["arms"]:
            plain.setdefault("arms", {}).setdefault(arm, {"loss": arm})
        return [[table, arm, *rest] for arm in plain["grid"]["arms"]]
    return [[table, name, *rest]]


def combinations(axes: Mapping[str, Sequence[Any]]) -> Iterator[Settings]:
    """Yield every combination of the values of the axes; an empty one if there are no axes.

    >>> list(combinations({"train.warmup": [0, 20]}))
    [(('train.warmup', 0),), (('train.warmup', 20),)]
    """
    for values in itertools.product(*axes.values()):
        yield tuple(zip(axes, values, strict=True))
