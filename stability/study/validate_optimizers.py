"""Validation of optimizers that a study names, and of their options: those of one's own, and of installed packages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stability.optimizers import optimizer, options_of
from stability.optimizers.validation import validate_optimizer
from stability.registry import InputError, UnknownNameError, nearest, shortened
from stability.study.schema import ArmTrain, Train
from stability.study.study import OPTIMIZER_OPTIONS, Study, optimizer_options, own_options
from stability.study.tuning_grid import Locate


def refuse_unknown_keys(plain: Mapping[str, Any], locate: Locate) -> None:
    """Raise `InputError` for a key of ``[train]`` or of an arm's ``train`` that no optimizer takes either."""
    arms = plain.get("arms")
    tables: list[tuple[tuple[str, ...], Any, list[str]]] = [(("train",), plain.get("train"), [*Train.model_fields])]
    for name, arm in arms.items() if isinstance(arms, dict) else ():
        tables.append(
            (("arms", name, "train"), arm.get("train") if isinstance(arm, dict) else None, [*ArmTrain.model_fields])
        )
    for path, table, keys in tables:
        known = {*keys, *own_options()}
        for key in table if isinstance(table, dict) else ():
            if key not in known:
                raise InputError(f"{locate(*path, key)}: unknown key{nearest(key, known)}")


def check_optimizer(name: str, where: str) -> None:
    """Raise `InputError` for an optimizer that does not exist, or whose options ``[train]`` cannot hold."""
    if name not in optimizer:
        hint = nearest(name, optimizer)
        raise UnknownNameError(
            f"{where}: unknown optimizer {name!r}{hint}; the file of one of your own is named by --optimizer",
            optimizer.kind,
        )
    variant = optimizer[name]
    for option, parameter in options_of(variant).items():
        if option not in OPTIMIZER_OPTIONS and (option in Train.model_fields or hasattr(Train, option)):
            raise InputError(
                f"{where}: {name!r} has an option {option!r}, which is something else in [train]; give it another name"
            )
        if option in OPTIMIZER_OPTIONS and not _alike(parameter.default, OPTIMIZER_OPTIONS[option]):
            raise InputError(
                f"{where}: {name!r} has an option {option!r} with the default {shortened(parameter.default)}; allowed: "
                f"one like {OPTIMIZER_OPTIONS[option]!r}, as for other optimizers, or another name"
            )
    if variant.package:
        try:
            validate_optimizer(variant)
        except InputError as error:
            raise InputError(f"package {variant.package}: {error}") from error


def _alike(default: Any, example: Any) -> bool:
    """Return whether a default is of the kind of an *example*: two numbers, a number, or true or false."""
    if isinstance(example, tuple):
        return isinstance(default, tuple) and len(default) == len(example)
    return isinstance(default, bool) == isinstance(example, bool) and isinstance(default, int | float)


def check_own_options(study: Study, locate: Locate) -> None:
    """Raise `InputError` for an option of an optimizer of one's own that nothing takes, or whose value is not allowed.

    A study may set it for those of its optimizers that take it; an arm only for its own.
    """
    places: list[tuple[tuple[str, ...], Mapping[str, Any], set[str]]] = [
        (("train",), study.train.options, study.optimizers)
    ]
    places += [
        (("arms", name, "train"), arm.train.options, {study.train_of(name).optimizer})
        for name, arm in study.arms.items()
        if arm.train
    ]
    for table, options, names in places:
        for key, value in options.items():
            takers = sorted(name for name in names if key in optimizer_options(name))
            if not takers:
                users = ", ".join(repr(name) for name in optimizer if key in optimizer_options(name))
                which = "optimizer of this arm" if len(table) > 1 else "optimizer of this study"
                raise InputError(f"{locate(*table, key)}: no {which} takes it; allowed with {users} only")
            for name in takers:
                optimizer[name].check_options({key: value}, locate(*table))
