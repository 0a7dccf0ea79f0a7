"""Contrasts: decorated functions that compare two arms over the same seeds.

Every module of this package is imported, so that a new file is a new contrast. `stability.contrasts.registry` documents
the interface.
"""

from __future__ import annotations

from stability.contrasts.by_cell import in_each_cell
from stability.contrasts.registry import SUPPLIED, compare, contrast
from stability.registry import import_modules

__all__ = ["SUPPLIED", "compare", "contrast", "in_each_cell"]

import_modules(__name__, __path__)
