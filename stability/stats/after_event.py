"""The course of a measure after an event in a run, such as a change of the loss, in one number."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

AfterEvent = Literal["retained", "recovery", "jump"]
"""How a course is summed up: see the functions of these names."""


def retained(steps: np.ndarray, values: np.ndarray, event: int, last: int, higher: bool = True) -> float:
    """Return the worst value after the event as a share of the value at the event, w / v(event).

    The worst is the lowest if *higher* is better, else the highest. NaN if the value at the event is missing or 0, or
    nothing was measured afterwards.

    Args:
        steps: Measured steps, ascending, (n,).
        values: The value at each, (n,).
        event: The step of the event; its value was measured before the event had an effect.
        last: The end of the run, which does not matter here.
        higher: Whether a higher value is better.

    >>> retained(np.array([4, 6, 8]), np.array([0.5, 0.1, 0.4]), 4, 8)
    0.2
    """
    before, after = _split(steps, values, event)
    if not len(after) or not before:
        return math.nan
    return float(after.min() if higher else after.max()) / before


def recovery(steps: np.ndarray, values: np.ndarray, event: int, last: int, higher: bool = True) -> float:
    """Return the steps from the event until a value, having become worse than at the event, is again at least as good.

    0 if no value is worse. If it never recovers, the steps from the event to the end of the run: a lower bound. NaN if
    the value at the event is missing, or nothing was measured afterwards.

    Args:
        steps: Measured steps, ascending, (n,).
        values: The value at each, (n,).
        event: The step of the event; its value was measured before the event had an effect.
        last: The end of the run.
        higher: Whether a higher value is better.

    >>> course = np.array([4, 6, 8]), np.array([0.5, 0.1, 0.5])
    >>> recovery(*course, 4, 8), recovery(*course, 6, 8), recovery(np.array([4, 6]), np.array([0.5, 0.1]), 4, 9)
    (4.0, 0.0, 5.0)
    """
    before, after = _split(steps, values, event)
    if not len(after) or math.isnan(before):
        return math.nan
    good = after >= before if higher else after <= before
    if good.all():
        return 0.0
    later = steps[steps > event][int(np.argmin(good)) :]
    recovered = good[int(np.argmin(good)) :]
    return float((later[int(np.argmax(recovered))] if recovered.any() else last) - event)


def jump(steps: np.ndarray, values: np.ndarray, event: int, last: int, higher: bool = True) -> float:
    """Return the largest value after the event minus the value at the event.

    NaN if the value at the event is missing or nothing was measured afterwards.

    Args:
        steps: Measured steps, ascending, (n,).
        values: The value at each, (n,).
        event: The step of the event; its value was measured before the event had an effect.
        last: The end of the run, which does not matter here.
        higher: Whether a higher value is better, which does not matter here.

    >>> jump(np.array([4, 6, 8]), np.array([1.0, 5.0, 2.0]), 4, 8)
    4.0
    """
    before, after = _split(steps, values, event)
    return float(after.max()) - before if len(after) else math.nan


SUMMARIES = {"retained": retained, "recovery": recovery, "jump": jump}
"""The functions by name."""


def _split(steps: np.ndarray, values: np.ndarray, event: int) -> tuple[float, np.ndarray]:
    """Return the value at the event, NaN if there is none, and those after it."""
    at = values[steps == event]
    return float(at[0]) if len(at) else math.nan, values[steps > event]
