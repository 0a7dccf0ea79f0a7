"""Parsing and validation of study files; errors are one sentence. Nothing in a file can run code."""

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
from stability.study.canonical_names import with_canonical_names
from stability.study.overrides import at_scale, in_words, overridden, replication_tables
from stability.study.schema import DEFAULT_SCALE, NAME_PATTERN
from stability.study.setting_axes import Settings, combinations, flattened, with_settings
from stability.study.study import Study
from stability.study.tuning_grid import Locate
from stability.study.validate import check, check_replication
from stability.study.validate_optimizers import refuse_unknown_keys
from stability.study.validate_shift import check_change

CLAIMING = ("claims", "controls", "rankings", "published", "looks")
"""Keys that say what the runs of a study decide."""

HIDDEN = ("name", "scale", "text", "looks", "replication", "changes", "base")
"""Fields of a study that a file cannot set."""


def shipped_studies() -> dict[str, Path]:
    """Return the studies that ship with the package, by name."""
    shipped = Path(str(resources.files("stability"))) / "studies"
    checkout = Path(__file__).resolve().parents[2] / "studies"
    return _by_name(shipped if shipped.is_dir() else checkout)


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
    """Return the validated study of a file or name at one scale.

    Raises:
        InputError: The study is invalid. The sentence names file, key, value, what is allowed, and the nearest name.
    """
    path = find_study(name_or_path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    return parse_study(text, str(path), path.stem, scale)


def parse_study(text: str, where: str, name: str, scale: str | None = None, replication: str = "") -> Study:
    """Return the study that TOML *text* describes, or one of its replications.

    Args:
        text: The TOML.
        where: Name of the file in errors.
        name: Name of the study.
        scale: Scale whose overrides are applied.
        replication: Name of the replication to return instead of the study.

    Raises:
        InputError: The study or one of its replications is invalid.
    """
    try:
        plain = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{where}: not valid TOML: {error}") from error
    scale = scale or DEFAULT_SCALE
    plain = with_canonical_names(plain)
    plain, changed = at_scale(plain, scale, where)
    _flatten_grid(plain)
    tables = replication_tables(plain, where)
    plain.pop("replications", None)

    def locate(*keys: str | int) -> str:
        prefix = f"scales.{scale}." if keys in changed else ""
        return f"{where}: {prefix}{_dotted(keys)}" if keys else where

    def replication_of(key: str) -> Study:
        return _replication(plain, key, tables[key], where).model_copy(update=identity)

    identity = {"name": name, "scale": scale, "text": text}
    if replication:
        if replication not in tables:
            raise InputError(f"{where}: unknown replication {replication!r}{nearest(replication, tables)}")
        return replication_of(replication)
    study = _valid(plain, locate).model_copy(update=identity)
    replications = tuple(replication_of(key) for key in tables)
    for index, current in enumerate(replications):
        for earlier in (study, *replications[:index]):
            check_replication(earlier, current, where)
    return study.model_copy(update={"replications": replications})


def _replication(plain: dict[str, Any], name: str, table: dict[str, Any], where: str) -> Study:
    """Return the validated study *plain* with the overrides of one replication."""
    merged, changed = overridden(plain, table)
    _flatten_grid(merged)

    def locate(*keys: str | int) -> str:
        location = f"{where}: replications.{name}"
        names = tuple(key for key in keys if not isinstance(key, int))
        return f"{location}{'.' if names in changed else ': '}{_dotted(keys)}" if keys else location

    if not re.fullmatch(NAME_PATTERN, name):
        raise InputError(f"{where}: replications: got {name!r}; allowed: a name of letters, digits, spaces and . _ + -")
    study = _valid(merged, locate)
    return study.model_copy(update={"replication": name, "changes": in_words(table)})


def _valid(plain: dict[str, Any], locate: Locate) -> Study:
    """Return plain data as a study, or raise `InputError` with one sentence on what is wrong with it."""
    study = _checked(plain, locate)
    check_change(study, locate)
    for settings in combinations(study.grid.settings) if study.grid.settings else ():
        _check_settings(study, plain, settings, locate)
    return study


def _checked(plain: dict[str, Any], locate: Locate) -> Study:
    """Return plain data as a study at its own values of setting axes, or raise `InputError`."""
    for key in HIDDEN:
        if key in plain:
            raise InputError(f"{locate()}: unknown key '{key}'{nearest(key, _keys(Study))}")
    refuse_unknown_keys(plain, locate)
    try:
        # Strict JSON mode reads arrays as tuples and makes no other conversion.
        study = Study.model_validate_json(json.dumps(plain, default=str))
    except ValidationError as error:
        raise InputError(_sentence(error, locate)) from error
    check(study, locate)
    return study


def _check_settings(study: Study, plain: dict[str, Any], settings: Settings, locate: Locate) -> None:
    """Raise `InputError` unless the study is valid with one combination of the values of its setting axes."""
    levels = dict(settings)

    def locate_setting(*keys: str | int) -> str:
        dotted = _dotted(keys)
        axis = next((key for key in levels if dotted and _stands_for(key, dotted)), None)
        if axis is not None:
            return f"{locate('grid', axis)}[{study.grid.settings[axis].index(levels[axis])}]"
        values = ", ".join(f"{key} = {shortened(value)}" for key, value in levels.items())
        return f"{locate()} (where {values}): {dotted}"

    try:
        merged = with_settings(plain, settings)
    except InputError as error:
        raise InputError(f"{locate('grid')}: {error}") from error
    # Claims and rankings are about all settings together.
    _checked({key: value for key, value in merged.items() if key not in CLAIMING}, locate_setting)


def _stands_for(axis: str, dotted: str) -> bool:
    """Return whether an axis of settings sets the key at a path of a study.

    >>> _stands_for("model.*.width", "model.image.width"), _stands_for("train.betas", "train.betas[1]")
    (True, True)
    """
    pattern = re.escape(axis).replace(r"\*", r"[^.]+")
    return re.match(rf"{pattern}($|[.\[])", dotted) is not None


def with_looks(study: Study, looks: Sequence[int], seeds: int) -> Study:
    """Return *study* at one of its registered *looks*, with this number of *seeds*.

    Raises:
        InputError: A claim's probe measures too few seeds for the last look.
    """

    def at(count: int) -> Study:
        grid = study.grid.model_copy(update={"seeds": count})
        return study.model_copy(update={"grid": grid, "looks": tuple(looks)})

    check(at(looks[-1]), lambda *keys: f"{study.name} with {looks[-1]} seeds: {_dotted(keys)}")
    return at(seeds)


def _flatten_grid(plain: dict[str, Any]) -> None:
    if isinstance(plain.get("grid"), dict):
        plain["grid"] = flattened(plain["grid"])


def _dotted(keys: Sequence[str | int]) -> str:
    dotted = "".join(f"[{key}]" if isinstance(key, int) else f'."{key}"' if "." in key else f".{key}" for key in keys)
    return dotted.lstrip(".")


def _keys(model: type[BaseModel]) -> list[str]:
    return [key for key in model.model_fields if key not in HIDDEN or model is not Study]


def _model_at(keys: Sequence[str | int]) -> type[BaseModel]:
    """Return the model that contains the value at this path of a study."""
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
    """Return one validation error as a sentence; unknown keys come first, since a typo explains a missing key."""
    complaints = error.errors(include_url=False)
    first = next((complaint for complaint in complaints if complaint["type"] == "extra_forbidden"), complaints[0])
    keys, kind = first["loc"], first["type"]
    location = locate(*keys)
    if kind == "extra_forbidden":
        valid_keys = _keys(_model_at(keys)) + ["scales"] * (len(keys) == 1)
        return f"{location}: unknown key{nearest(str(keys[-1]), valid_keys)}"
    if kind == "tuple_type" and isinstance(first["input"], dict):
        return f"{location}: got one table; allowed: a list of tables, each under [[{keys[-1]}]]"
    if kind in ("missing", "too_long") and isinstance(first["input"], list | tuple):
        items, listed = list(first["input"]), keys[:-1] if kind == "missing" else keys
        return f"{locate(*listed)}: got {shortened(items)}; allowed: a list of two values"
    if kind == "missing":
        unknown_keys = [key for key in first["input"] if key not in _model_at(keys).model_fields]
        unknown_note = f" (given, but not known here: {', '.join(unknown_keys)})" if unknown_keys else ""
        return f"{location}: required, but missing{unknown_note}"
    if kind == "float_type" and isinstance(first["input"], dict):
        dotted = f"{keys[-1]}.{next(iter(first['input']), 0)}"
        return f'{location}: got a table; allowed: a number, its key in quotes where it holds a dot, as "{dotted}"'
    a_table, a_list = "a table", "a list"
    kinds = {
        "dict_type": a_table,
        "model_type": a_table,
        "model_attributes_type": a_table,
        "list_type": a_list,
        "tuple_type": a_list,
        "string_type": "a text, in quotes",
        "too_short": "at least one value",
        "string_too_short": "a text that is not empty",
        "string_pattern_mismatch": "a name of letters, digits, spaces and . _ + -",
    }
    got = shortened(first["input"])
    expected = (first["msg"][:1].lower() + first["msg"][1:]).removeprefix("input should be ")
    if kind == "literal_error" and (new_name := FORMER_NAMES.get(str(first["input"]))) and f"'{new_name}'" in expected:
        return f"{location}: got {got}; did you mean {new_name!r}? (allowed: {expected})"
    return f"{location}: got {got}; allowed: {kinds.get(kind, expected)}"
