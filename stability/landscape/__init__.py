"""Landscapes of any objective: slices along lines and planes, directions to look along, and the way between two points.

``objective(params) -> scalar``, or ``objective(params, batch)`` with *batches*; no argument is ever changed.
"""

from __future__ import annotations

from stability.landscape.directions import Direction, coordinates, direction, directions, explained_shares
from stability.landscape.paths import Connectivity, connectivity
from stability.landscape.slices import Slice1D, Slice2D, slice1d, slice2d

__all__ = [
    "Connectivity",
    "Direction",
    "Slice1D",
    "Slice2D",
    "connectivity",
    "coordinates",
    "direction",
    "directions",
    "explained_shares",
    "slice1d",
    "slice2d",
]
