"""Contrasts: decorated functions that compare two arms over the same seeds.

Every module of this package is imported, so that a new file is a new contrast. `stability.contrasts.registry` documents
the interface.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from stability.contrasts.registry import SUPPLIED, ContrastTraits, compare, contrast

__all__ = ["SUPPLIED", "ContrastTraits", "compare", "contrast"]

for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
