"""Imports optional packages when they are needed; the error for a missing one says how to install it."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from stability.registry import InputError


def optional(module: str, use: str, extra: str) -> ModuleType:
    """Import and return an optional module.

    Args:
        module: The module.
        use: What needs it, for the error sentence.
        extra: The extra of this package that installs it.

    Raises:
        InputError: The module's package is not installed; the sentence names *use* and *extra*.

    >>> optional("no_such_module", "the dataset 'webdataset'", "webdataset")
    Traceback (most recent call last):
    stability.registry.InputError: the dataset 'webdataset' needs the package 'no_such_module', which is not installed;
    pip install 'contrastive-stability[webdataset]' brings it
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        # An installed package that lacks one of its dependencies is broken, not missing.
        if error.name != module.split(".")[0]:
            raise
        raise InputError(
            f"{use} needs the package {error.name!r}, which is not installed; "
            f"pip install 'contrastive-stability[{extra}]' brings it"
        ) from error
