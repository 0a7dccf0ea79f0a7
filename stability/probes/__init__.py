"""Probes: measurements of one replica at one step; each is one decorated function that declares its measures.

Every module of this package is imported, so that a new file is a new probe. `stability.probes.registry` documents the
interface.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from stability.probes.registry import (
    Batch,
    HeldOut,
    Measure,
    Params,
    ProbeTraits,
    Replica,
    embedded,
    in_towers,
    mean_over,
    probe,
)
from stability.probes.step_measures import STEP_MEASURES, measures_of

__all__ = [
    "STEP_MEASURES",
    "Batch",
    "HeldOut",
    "Measure",
    "Params",
    "ProbeTraits",
    "Replica",
    "embedded",
    "in_towers",
    "mean_over",
    "measures_of",
    "probe",
]

for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
