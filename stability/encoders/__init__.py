"""Encoders: a catalogue of towers that map one modality to embeddings, written for one replica.

Every module of this package is imported, so that a new file is a new encoder. `stability.encoders.registry` documents
the interface.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from stability.encoders.registry import EncoderTraits, Modality, encoder

__all__ = ["EncoderTraits", "Modality", "encoder"]

for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
