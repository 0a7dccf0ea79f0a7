"""Probes: measurements of one replica at one step; each is one decorated function that declares its measures.

Every module of this package is imported, so that a new file is a new probe. `stability.probes.registry` documents the
interface.
"""

from __future__ import annotations

from stability.probes.registry import (
    Batch,
    HeldOut,
    Measure,
    Params,
    Replica,
    embedded,
    in_towers,
    mean_over,
    probe,
)
from stability.probes.step_measures import STEP_MEASURES, measures_of
from stability.registry import import_modules

__all__ = [
    "STEP_MEASURES",
    "Batch",
    "HeldOut",
    "Measure",
    "Params",
    "Replica",
    "embedded",
    "in_towers",
    "mean_over",
    "measures_of",
    "probe",
]

import_modules(__name__, __path__)
