"""Datasets: a catalogue of paired data; one decorated function is one dataset.

Every module of this package is imported, so that a new file is a new dataset. `stability.datasets.registry` documents
the interface.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from stability.datasets.registry import DatasetTraits, Pairs, dataset, declared_offers, rows, split

__all__ = ["DatasetTraits", "Pairs", "dataset", "declared_offers", "rows", "split"]

for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
