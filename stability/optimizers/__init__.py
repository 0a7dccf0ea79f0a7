"""Optimizers: a catalogue of update rules over flat parameters; one decorated function is one optimizer.

Every module of this package is imported, so that a new file is a new optimizer. `stability.optimizers.registry`
documents the interface.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from stability.optimizers.registry import OptimizerTraits, optimizer

__all__ = ["OptimizerTraits", "optimizer"]

for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
