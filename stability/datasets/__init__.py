"""Datasets: a catalogue of paired data; one decorated function is one dataset.

Every module of this package is imported, so that a new file is a new dataset. `stability.datasets.registry` documents
the interface.
"""

from __future__ import annotations

from stability.datasets.registry import Pairs, dataset, declared_offers, rows, split
from stability.registry import import_modules

__all__ = ["Pairs", "dataset", "declared_offers", "rows", "split"]

import_modules(__name__, __path__)
