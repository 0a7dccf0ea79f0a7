"""Canonical names of variants in a study: ``-`` is read as ``_``, so stored names have one spelling."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from stability.losses import loss
from stability.registry import snake_case

LISTS_OF_ARMS = ("arms", "compare", "losses")
"""Keys whose values name arms: a loss, or a table ``[arms.NAME]``, whose name is left unchanged."""

OF_VARIANTS = ("contrast", "corruption", "optimizer")
"""Keys whose values name variants."""


def with_canonical_names(plain: dict[str, Any]) -> dict[str, Any]:
    """Return a study read from TOML (with overrides of scales and replications) with variant names in snake_case.

    >>> plain = {"grid": {"arms": ["siglip-masked", "my-arm"]}, "arms": {"my-arm": {"loss": "hybrid-separate"}}}
    >>> with_canonical_names(plain)
    {'grid': {'arms': ['siglip_masked', 'my-arm']}, 'arms': {'my-arm': {'loss': 'hybrid_separate'}}}
    """
    arms = plain.get("arms")
    named = {*(arms if isinstance(arms, dict) else ())}
    for table in (plain.get("replications"), plain.get("scales")):
        for part in table.values() if isinstance(table, dict) else ():
            own_arms = part.get("arms") if isinstance(part, dict) else None
            named |= {*(own_arms if isinstance(own_arms, dict) else ())}
    return _table(plain, (), named)


def _table(table: dict[str, Any], path: tuple[str, ...], arms: Collection[str]) -> dict[str, Any]:
    parent = path[-1:]
    result = {}
    for key, value in table.items():
        name = snake_case(key) if parent == ("probes",) else key
        if parent == ("values",) and "published" in path:
            name = _arm(key, arms)
        result[name] = _value(value, (*path, name), arms)
    return result


def _value(value: Any, path: tuple[str, ...], arms: Collection[str]) -> Any:
    key, parent = path[-1], path[-2] if len(path) > 1 else ""
    if isinstance(value, dict):
        return _table(value, path, arms)
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return [_table(item, path, arms) for item in value]
    if key in LISTS_OF_ARMS and isinstance(value, list):
        return [_arm(item, arms) for item in value]
    if key in OF_VARIANTS and "options" not in path:
        return [snake_case(item) for item in value] if isinstance(value, list) else snake_case(value)
    if (key == "arm" and parent in ("start", "controls")) or (key == "against" and parent == "controls"):
        return _arm(value, arms)
    is_tower = parent == "model" or (key == "name" and ("model" in path or parent == "data"))
    is_loss = key == "loss" and len(path) > 2 and path[-3] == "arms"
    return snake_case(value) if is_tower or is_loss else value


def _arm(name: Any, arms: Collection[str]) -> Any:
    """Return the name of an arm: a loss in snake_case, a table of the study unchanged."""
    is_loss = isinstance(name, str) and name not in arms and name in loss
    return snake_case(name) if is_loss else name
