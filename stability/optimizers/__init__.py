"""Optimizers: a catalogue of update rules over flat parameters; one decorated function is one optimizer.

Every module of this package is imported, so that a new file is a new optimizer. `stability.optimizers.registry`
documents the interface.
"""

from __future__ import annotations

from stability.optimizers.registry import optimizer
from stability.registry import import_modules

__all__ = ["optimizer"]

import_modules(__name__, __path__)
