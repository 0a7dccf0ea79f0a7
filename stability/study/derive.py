"""Derived studies: the same claims about a new loss, compared with known losses."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from stability.contrasts import contrast
from stability.losses import loss
from stability.registry import InputError, nearest
from stability.study.schema import Tune
from stability.study.study import Study
from stability.study.tuning_grid import settable

DERIVED = "# Derived by: "
"""Prefix of the command in the first line of a derived study."""


def with_loss(study: Study, newcomer: str, against: Sequence[str]) -> str:
    """Return the TOML of *study* with *newcomer* compared to each of *against*, and to nothing else.

    Every claim of the study is repeated for the newcomer against each of them, once per measure and contrast; the
    primary claim stays primary against the first. Replications are left out.

    Raises:
        InputError: A name is neither a loss nor an arm of the study.
    """
    plain = {key: value for key, value in tomllib.loads(study.text).items() if key != "replications"}
    for scale in plain.get("scales", {}).values():
        scale.pop("replications", None)
    arms = plain.get("arms", {})
    for name in against:
        if name not in loss and name not in arms:
            raise InputError(f"--against: unknown loss {name!r}{nearest(name, {*loss, *arms})}")
    if newcomer in against:
        raise InputError(f"--against: {newcomer!r} is the loss itself; allowed: other losses")
    plain["title"] = f"{newcomer} against {' and '.join(against)}: {plain['title']}"
    plain["question"] = f"Is {newcomer} more stable than {' and '.join(against)}?"
    plain["grid"]["arms"] = [newcomer, *against]
    plain["arms"] = {name: arm for name, arm in arms.items() if name in against}
    if "tune" in plain:
        losses = [plain["arms"].get(name, {}).get("loss", name) for name in plain["grid"]["arms"]]
        kept = {*Tune.model_fields, *(key for name in losses for key in settable(loss[name]))}
        plain["tune"] = {key: value for key, value in plain["tune"].items() if key in kept}
    # Controls plant differences between arms that the derived study does not have.
    plain.pop("controls", None)
    plain["claims"] = _claims(study, plain.get("claims", []), newcomer, against)
    command = f"stability compare --loss FILE.py:{newcomer} --against {','.join(against)} --study {study.name}"
    return f"{DERIVED}{command}\n{toml(plain)}"


def command_of(study: Study) -> str:
    """Return the command by which a study is run, or by which it was derived from another and run."""
    first, _, _ = study.text.partition("\n")
    return first.removeprefix(DERIVED) if first.startswith(DERIVED) else f"stability run {study.name}"


def _claims(study: Study, claims: Sequence[Mapping[str, Any]], newcomer: str, against: Sequence[str]) -> list[Any]:
    measures = study.measures
    by_key: dict[tuple[str, ...], Mapping[str, Any]] = {}
    for claim in sorted(claims, key=lambda claim: not claim.get("primary", False)):
        key = (claim["measure"], claim["contrast"], claim.get("axis", ""), claim.get("against_measure", ""))
        by_key.setdefault(key, claim)
    derived: list[dict[str, Any]] = []
    for claim in by_key.values():
        label = measures[claim["measure"]].label
        if "against_measure" in claim:
            # Two measures of one arm's runs: the claim is about the newcomer alone.
            other = measures[claim["against_measure"]].label
            text = _sentence(claim, label, newcomer, f"its {other}")
            derived.append(_derived_claim(claim, f"{claim['id']}-{newcomer}", text, (newcomer, newcomer), not derived))
            continue
        for other in against:
            text = _sentence(claim, label, newcomer, f"under {other}")
            derived.append(_derived_claim(claim, f"{claim['id']}-{other}", text, (newcomer, other), not derived))
    return derived


def _sentence(claim: Mapping[str, Any], label: str, newcomer: str, other: str) -> str:
    """Return the claim in words, from the phrase of its contrast, its measure and the two sides."""
    expected = claim["expect"]
    says = contrast[claim["contrast"]].traits.says.get(expected, f"has {expected} {claim['contrast']}")
    phrase = says.format(axis=claim.get("axis", "").replace("_", " "), threshold=claim.get("threshold", ""))
    return f"{label} {phrase} under {newcomer} {'as' if expected == 'equal' else 'than'} {other}"


def _derived_claim(
    claim: Mapping[str, Any], name: str, text: str, compare: Sequence[str], primary: bool
) -> dict[str, Any]:
    kept = {key: value for key, value in claim.items() if key not in ("source", "primary")}
    return kept | {"id": name, "text": text, "compare": [*compare]} | ({"primary": True} if primary else {})


def toml(plain: Mapping[str, Any]) -> str:
    """Return plain data as TOML: one key per line, tables inline below the first level.

    >>> print(toml({"title": "x", "grid": {"noise": [0.0, 0.2]}, "claims": [{"id": "a"}]}))
    title = "x"
    <BLANKLINE>
    [grid]
    noise = [0.0, 0.2]
    <BLANKLINE>
    [[claims]]
    id = "a"
    <BLANKLINE>
    """
    tables = {key: value for key, value in plain.items() if isinstance(value, Mapping)}
    lists = {key: value for key, value in plain.items() if _is_table_list(value)}
    lines = [f"{_key(key)} = {_value(value)}" for key, value in plain.items() if key not in tables | lists]
    for key, table in tables.items():
        lines += ["", f"[{_key(key)}]", *(f"{_key(name)} = {_value(value)}" for name, value in table.items())]
    for key, rows in lists.items():
        for row in rows:
            lines += ["", f"[[{_key(key)}]]", *(f"{_key(name)} = {_value(value)}" for name, value in row.items())]
    return "\n".join(lines) + "\n"


def _is_table_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value)
