"""The criterion for a diverged run: divergence is a result with a step, not a crash."""

from __future__ import annotations

import numpy as np


def diverged_at(loss: np.ndarray, chance: float, warmup: int) -> int | None:
    """Return the step at which a run diverged, or None.

    A run has diverged if its loss became non-finite (at the first such step), or if its smoothed loss (trailing mean
    over a twentieth of the run, at least 10 steps) is at or above chance at the end; it then diverged at the first
    step after warm-up since which it never fell below chance. A spike that recovers is not a divergence.

    Args:
        loss: the training loss (steps,).
        chance: the loss of uninformative embeddings.
        warmup: the number of warm-up steps.

    >>> healthy = np.linspace(5.0, 1.0, 100)
    >>> diverged_at(healthy, 3.0, 10), diverged_at(healthy[::-1], 3.0, 10), diverged_at(np.full(100, 9.0), 3.0, 10)
    (None, 54, 10)
    >>> diverged_at(np.where(np.arange(100) < 40, 1.0, np.nan), 3.0, 10)
    40
    """
    # In float32 one spike would absorb all later terms of the cumulative sum.
    loss = np.asarray(loss, dtype=np.float64)
    finite = np.isfinite(loss)
    if not finite.all():
        return int(np.argmin(finite))
    width = min(len(loss), max(10, len(loss) // 20))
    total = np.cumsum(np.insert(loss, 0, 0.0))
    smooth = (total[width:] - total[:-width]) / width
    below = np.flatnonzero(smooth < chance)
    first = 0 if not len(below) else int(below[-1]) + 1
    if first == len(smooth):
        return None
    return max(first + width - 1 if first else 0, warmup)
