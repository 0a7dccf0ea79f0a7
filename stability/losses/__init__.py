"""Losses: a catalogue of contrastive objectives, each a plain function written for one replica.

Every module of this package is imported, so that a new file is a new loss. Each registered loss is an attribute of the
package by its name: ``from stability.losses import clip``. `stability.losses.registry` documents the interface.
"""

from __future__ import annotations

from typing import Any

from stability.losses.registry import RESERVED, Scalar, loss, options_of, reserved_of, scalars_of, scalars_with
from stability.registry import import_modules

__all__ = ["RESERVED", "Scalar", "loss", "options_of", "reserved_of", "scalars_of", "scalars_with"]


def __getattr__(name: str) -> Any:
    """Return the function of the registered loss called *name*."""
    if name not in loss:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return loss[name].function


import_modules(__name__, __path__)
