"""Corruptions: a catalogue of noise injected into the training pairs, at a level in [0, 1].

A corruption is ``(image, text, *, caption, level, generator, <its options>) -> (image, text)`` on n pairs, written
for one replica. It draws from the run's own "corruption" stream only, so every loss meets the same noise at one seed.
"""

from __future__ import annotations

from stability.registry import Registry

corruption = Registry("corruption")

from stability.corruptions import pairs  # noqa: E402  (variants register on import)

__all__ = ["corruption", "pairs"]
