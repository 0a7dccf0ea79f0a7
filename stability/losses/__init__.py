"""Losses: a catalogue of contrastive objectives, each a plain function written for one replica.

Every module of this package is imported, so that a new file is a new loss. Each registered loss is an attribute of the
package by its name: ``from stability.losses import clip``. `stability.losses.registry` documents the interface.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any

from stability.losses.registry import (
    RESERVED,
    LossTraits,
    Scalar,
    loss,
    options_of,
    reserved_of,
    scalars_of,
    scalars_with,
)

__all__ = ["RESERVED", "LossTraits", "Scalar", "loss", "options_of", "reserved_of", "scalars_of", "scalars_with"]


def __getattr__(name: str) -> Any:
    """Return the function of the registered loss called *name*."""
    if name not in loss:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return loss[name].function


for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
