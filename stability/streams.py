"""Named random streams: the only source of randomness in the suite."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def seed_of(seed: int | str, use: str) -> int:
    """Return the 63-bit seed of the stream that one *seed* keeps for one *use*.

    The bits are the head of SHA-256 over ``"seed/use"``, so two uses of one seed, and one use of two seeds,
    share nothing.

    >>> seed_of(0, "weights") == seed_of(0, "weights"), seed_of(0, "weights") == seed_of(0, "batches")
    (True, False)
    """
    digest = hashlib.sha256(f"{seed}/{use}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stream(seed: int | str, use: str) -> torch.Generator:
    """Return a CPU generator for one *use* of a run's *seed*, the same whatever else runs, in whatever order.

    Numbers are drawn on the CPU and moved, so a seed means the same on every device. Draw outside ``vmap``.

    >>> import torch
    >>> torch.equal(torch.rand(3, generator=stream(7, "batches")), torch.rand(3, generator=stream(7, "batches")))
    True
    """
    import torch

    return torch.Generator().manual_seed(seed_of(seed, use))
