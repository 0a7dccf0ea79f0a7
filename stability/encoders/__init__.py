"""Encoders: a catalogue of towers that map one modality to embeddings, written for one replica.

Every module of this package is imported, so that a new file is a new encoder. `stability.encoders.registry` documents
the interface.
"""

from __future__ import annotations

from stability.encoders.registry import Modality, encoder
from stability.registry import import_modules

__all__ = ["Modality", "encoder"]

import_modules(__name__, __path__)
