"""Optional packages: imported when something needs them; where one is missing, what installs it is said."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from stability.registry import InputError


def optional(module: str, use: str, extra: str) -> ModuleType:
    """Return an optional *module*, imported now.

    Raises `InputError` that names what needs it (*use*) and the *extra* of this package that installs it.

    >>> optional("no_such_module", "the dataset 'webdataset'", "webdataset")
    Traceback (most recent call last):
    stability.registry.InputError: the dataset 'webdataset' needs the package 'no_such_module', which is not installed;
    pip install 'contrastive-stability[webdataset]' brings it
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        # A package that is there but lacks one of its own is broken, not missing.
        if error.name != module.split(".")[0]:
            raise
        raise InputError(
            f"{use} needs the package {error.name!r}, which is not installed; "
            f"pip install 'contrastive-stability[{extra}]' brings it"
        ) from error
