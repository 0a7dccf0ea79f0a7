"""Optimizers: a catalogue of update rules over flat parameters; one decorated function is one optimizer.

Every module of this package is imported, so that a new file is a new optimizer. `stability.optimizers.registry`
documents the interface.
"""

from __future__ import annotations

from stability.optimizers.registry import Layout, Segment, buffer_widths, inputs_of, optimizer, options_of
from stability.registry import import_modules

__all__ = ["Layout", "Segment", "buffer_widths", "inputs_of", "optimizer", "options_of"]

import_modules(__name__, __path__)
