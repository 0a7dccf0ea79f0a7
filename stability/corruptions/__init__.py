"""Corruptions: a catalogue of noise applied to the training pairs at a level in [0, 1].

Every module of this package is imported, so that a new file is a new corruption. `stability.corruptions.registry`
documents the interface.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from stability.corruptions.registry import CorruptionTraits, Values, corrupt, corruption

__all__ = ["CorruptionTraits", "Values", "corrupt", "corruption"]

for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
