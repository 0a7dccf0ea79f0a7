"""Named random streams: the only source of randomness in the suite."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def seed_of(seed: int | str, use: str) -> int:
    """Return the 63-bit seed of the random stream of a *seed* for one *use*.

    The bits are the first of the SHA-256 of ``"seed/use"``, so streams that differ in seed or use are independent.

    >>> seed_of(0, "weights") == seed_of(0, "weights"), seed_of(0, "weights") == seed_of(0, "batches")
    (True, False)
    """
    digest = hashlib.sha256(f"{seed}/{use}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stream(seed: int | str, use: str) -> torch.Generator:
    """Return a CPU generator for one *use* of a run's *seed*, independent of anything else that runs.

    Numbers are drawn on the CPU and copied, so a seed gives the same numbers on every device. Draw outside ``vmap``.

    >>> import torch
    >>> torch.equal(torch.rand(3, generator=stream(7, "batches")), torch.rand(3, generator=stream(7, "batches")))
    True
    """
    import torch

    return torch.Generator().manual_seed(seed_of(seed, use))
