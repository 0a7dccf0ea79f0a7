"""From a TOML file to a valid study, or to one sentence that says what is wrong. Nothing in a file can run code."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from stability.registry import FORMER_NAMES, InputError, nearest, shortened
from stability.study.checks import check, check_replication
from stability.study.naming import with_canonical_names
from stability.study.overriding import at_scale, in_words, overridden, replication_tables
from stability.study.schema import DEFAULT_SCALE, NAME_PATTERN, Study
from stability.study.searching import Locate

HIDDEN = ("name", "scale", "text", "looks", "replication", "changes")
"""Fields of a study that no file sets."""


def shipped_studies() -> dict[str, Path]:
    """Return the studies that ship with the package, by name."""
    shipped = Path(str(resources.files("stability"))) / "studies"
    beside = Path(__file__).resolve().parents[2] / "studies"
    return _by_name(shipped if shipped.is_dir() else beside)


def study_files() -> dict[str, Path]:
    """Return the predefined studies by name: those in ./studies, else those that ship with the package."""
    return shipped_studies() | _by_name(Path("studies"))


def _by_name(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find_study(name_or_path: str | Path) -> Path:
    """Return the file of a study given by path or by name, or raise `InputError` with the nearest name."""
    path = Path(name_or_path)
    if path.is_file():
        return path
    known = study_files()
    name = str(name_or_path)
    if name in known:
        return known[name]
    if path.suffix == ".toml" or len(path.parts) > 1:
        raise InputError(f"{name_or_path}: there is no such file")
    raise InputError(f"unknown study {name!r}{nearest(name, known)}")


def load_study(name_or_path: str | Path, scale: str | None = None) -> Study:
    """Return the study of that file or name at one scale, validated.

    Raises `InputError` with one sentence: file, key, value, what is allowed, and the nearest name.
    """
    path = find_study(name_or_path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    return parse_study(text, str(path), path.stem, scale)


def parse_study(text: str, where: str, name: str, scale: str | None = None, replication: str = "") -> Study:
    """Return the study that TOML *text* describes at one *scale*, or the *replication* of it that bears that name.

    *where* names the file in errors. Each replication is validated with the study, as the study that it is.
    """
    try:
        plain = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{where}: not valid TOML: {error}") from error
    scale = scale or DEFAULT_SCALE
    plain = with_canonical_names(plain)
    plain, changed = at_scale(plain, scale, where)
    tables = replication_tables(plain, where)
    plain.pop("replications", None)

    def locate(*keys: str | int) -> str:
        prefix = f"scales.{scale}." if keys in changed else ""
        return f"{where}: {prefix}{_dotted(keys)}" if keys else where

    def again(key: str) -> Study:
        return _replication(plain, key, tables[key], where).model_copy(update=identity)

    identity = {"name": name, "scale": scale, "text": text}
    if replication:
        if replication not in tables:
            raise InputError(f"{where}: unknown replication {replication!r}{nearest(replication, tables)}")
        return again(replication)
    study = _valid(plain, locate).model_copy(update=identity)
    replications = tuple(again(key) for key in tables)
    for place, each in enumerate(replications):
        for before in (study, *replications[:place]):
            check_replication(before, each, where)
    return study.model_copy(update={"replications": replications})


def _replication(plain: dict[str, Any], name: str, table: dict[str, Any], where: str) -> Study:
    """Return the study that *plain* is with the overrides of one replication, validated."""
    merged, changed = overridden(plain, table)

    def locate(*keys: str | int) -> str:
        place = f"{where}: replications.{name}"
        names = tuple(key for key in keys if not isinstance(key, int))
        return f"{place}{'.' if names in changed else ': '}{_dotted(keys)}" if keys else place

    if not re.fullmatch(NAME_PATTERN, name):
        raise InputError(f"{where}: replications: got {name!r}; allowed: a name of letters, digits, spaces and . _ + -")
    study = _valid(merged, locate)
    return study.model_copy(update={"replication": name, "changes": in_words(table)})


def _valid(plain: dict[str, Any], locate: Locate) -> Study:
    """Return plain data as a study, or raise `InputError` with one sentence on what is wrong with it."""
    for key in HIDDEN:
        if key in plain:
            raise InputError(f"{locate()}: unknown key '{key}'{nearest(key, _keys(Study))}")
    try:
        # Strict JSON mode takes arrays as tuples and nothing else as anything else.
        study = Study.model_validate_json(json.dumps(plain, default=str))
    except ValidationError as error:
        raise InputError(_sentence(error, locate)) from error
    check(study, locate)
    return study


def with_looks(study: Study, looks: Sequence[int], seeds: int) -> Study:
    """Return *study* at one of its registered *looks*, with so many *seeds*.

    Raises `InputError` where a claim's probe reads too few seeds for the last look.
    """

    def at(count: int) -> Study:
        grid = study.grid.model_copy(update={"seeds": count})
        return study.model_copy(update={"grid": grid, "looks": tuple(looks)})

    check(at(looks[-1]), lambda *keys: f"{study.name} with {looks[-1]} seeds: {_dotted(keys)}")
    return at(seeds)


def _dotted(keys: Sequence[str | int]) -> str:
    dotted = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return dotted.lstrip(".")


def _keys(model: type[BaseModel]) -> list[str]:
    return [key for key in model.model_fields if key not in HIDDEN or model is not Study]


def _model_at(keys: Sequence[str | int]) -> type[BaseModel]:
    """Return the model that holds the value at this place of a study."""
    model: type[BaseModel] = Study
    for key in keys[:-1]:
        if key not in model.model_fields:
            continue
        annotation = model.model_fields[str(key)].annotation
        nested = [part for part in (annotation, *get_args(annotation)) if isinstance(part, type)]
        nested = [part for part in nested if issubclass(part, BaseModel)]
        if nested:
            model = nested[0]
    return model


def _sentence(error: ValidationError, locate: Locate) -> str:
    """Return one complaint as one sentence: an unknown key before all else, since a typo explains a missing one."""
    complaints = error.errors(include_url=False)
    first = next((each for each in complaints if each["type"] == "extra_forbidden"), complaints[0])
    keys, kind = first["loc"], first["type"]
    place = locate(*keys)
    if kind == "extra_forbidden":
        known = _keys(_model_at(keys)) + ["scales"] * (len(keys) == 1)
        return f"{place}: unknown key{nearest(str(keys[-1]), known)}"
    if kind == "tuple_type" and isinstance(first["input"], dict):
        return f"{place}: got one table; allowed: a list of tables, each under [[{keys[-1]}]]"
    if kind in ("missing", "too_long") and isinstance(first["input"], list | tuple):
        items, listed = list(first["input"]), keys[:-1] if kind == "missing" else keys
        return f"{locate(*listed)}: got {shortened(items)}; allowed: a list of two values"
    if kind == "missing":
        odd = [key for key in first["input"] if key not in _model_at(keys).model_fields]
        beside = f" (given, but not known here: {', '.join(odd)})" if odd else ""
        return f"{place}: required, but missing{beside}"
    if kind == "float_type" and isinstance(first["input"], dict):
        dotted = f"{keys[-1]}.{next(iter(first['input']), 0)}"
        return f'{place}: got a table; allowed: a number, its key in quotes where it holds a dot, as "{dotted}"'
    table, many = "a table", "a list"
    plain = {
        "dict_type": table,
        "model_type": table,
        "model_attributes_type": table,
        "list_type": many,
        "tuple_type": many,
        "string_type": "a text, in quotes",
        "too_short": "at least one value",
        "string_too_short": "a text that is not empty",
        "string_pattern_mismatch": "a name of letters, digits, spaces and . _ + -",
    }
    said = first["msg"][:1].lower() + first["msg"][1:]
    if kind == "literal_error" and (now := FORMER_NAMES.get(first["input"])) and f"'{now}'" in said:
        return f"{place}: got {shortened(first['input'])}; did you mean {now!r}? (allowed: {said.removeprefix('input should be ')})"
    return (
        f"{place}: got {shortened(first['input'])}; allowed: {plain.get(kind, said.removeprefix('input should be '))}"
    )
