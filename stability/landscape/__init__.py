"""Loss landscapes of any objective: slices along lines and planes, their directions, and linear mode connectivity.

Objectives are ``objective(params) -> scalar``, or ``objective(params, batch)`` with *batches*; no argument is modified.
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
