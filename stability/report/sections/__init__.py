"""The sections of a report; one decorated function is one section.

Every module of this package is imported, so that a new file is a new section, in both renderings.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from stability.report.sections.registry import Section, section, sections_of

__all__ = ["Section", "section", "sections_of"]

for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
