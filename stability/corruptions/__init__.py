"""Corruptions: a catalogue of noise applied to the training pairs at a level in [0, 1].

Every module of this package is imported, so that a new file is a new corruption. `stability.corruptions.registry`
documents the interface.
"""

from __future__ import annotations

from stability.corruptions.registry import Values, corrupt, corruption
from stability.registry import import_modules

__all__ = ["Values", "corrupt", "corruption"]

import_modules(__name__, __path__)
