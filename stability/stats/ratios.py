"""The interval of a ratio of sums over independent events, such as a pooled noise fraction."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from stability.registry import InputError


def fraction_interval(
    traces: ArrayLike, second_moments: ArrayLike, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Return the pooled noise fraction of independent events and its interval (fraction, low, high).

    The estimate is sum(traces) / sum(second_moments), both (n,), one entry per event (a call of
    `stability.gradient_noise`). The interval is the delete-one jackknife of the ratio of sums with Student quantiles of
    n - 1 degrees of freedom (Efron and Stein 1981); its bounds are NaN for a single event. It holds for one run: across
    runs, the unit is the run.

    Raises:
        InputError: *traces* and *second_moments* are not of the same length.

    >>> fraction_interval([1.0, 1.0, 1.0], [2.0, 2.0, 2.0])
    (0.5, 0.5, 0.5)
    """
    trace, moment = np.asarray(traces, dtype=float), np.asarray(second_moments, dtype=float)
    if trace.shape != moment.shape or trace.ndim != 1 or not len(trace):
        raise InputError(f"got shapes {trace.shape} and {moment.shape}; allowed: two equally long rows of events")
    count, fraction = len(trace), float(trace.sum() / moment.sum())
    if count == 1:
        return fraction, float("nan"), float("nan")
    left_out = (trace.sum() - trace) / (moment.sum() - moment)
    spread = np.sqrt((count - 1) / count * ((left_out - left_out.mean()) ** 2).sum())
    half = float(stdtrit(count - 1, (1 + confidence) / 2) * spread)
    return fraction, fraction - half, fraction + half
