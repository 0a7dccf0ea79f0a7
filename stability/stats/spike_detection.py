"""Spikes in a logged series, counted by scale-free rules and by published rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from stability.registry import InputError

WINDOW = 100
"""Number of preceding steps that a value is compared with."""

THRESHOLD = 8.0
"""A spike lies this many robust standard deviations above the running median."""

MERGE = 10
"""Exceedances at most this many steps apart count as one spike (as in Wortsman et al. 2023)."""

LASTING = 5
"""A spike of the gradient's norm is one of the median of so many consecutive steps, so it lasts three of five."""

LASTING_THRESHOLD = 5.0
"""Such a spike lies this many robust standard deviations of the single steps above the running median."""

HEALING_WINDOW = 20
"""Number of preceding readings of a fixed batch that a reading is compared with."""

HEALING_THRESHOLD = 8.0
"""A rise of a fixed batch's loss is this many robust standard deviations, and at least `LEAST_RISE` of the median."""

LEAST_RISE = 0.1

HEALS_WITHIN = 20
"""Number of readings within which the loss of a fixed batch must be back."""

HEALED = 0.25
"""It is back when at most this share of the rise is left."""

_TO_SD = 1.4826  # of a median absolute deviation, for a normal series
_RESOLUTION = 1e-5  # of the running median: less than this is rounding of a series stored in single precision


@dataclass(frozen=True)
class Spikes:
    """The first step of each spike of a series, and the number of steps that were tested."""

    steps: tuple[int, ...]
    counted: int

    @property
    def rate(self) -> float:
        """Return the spikes per 1,000 tested steps; NaN if no step was tested."""
        return 1000 * len(self.steps) / self.counted if self.counted else float("nan")


def spikes(
    series: ArrayLike,
    *,
    start: int = 0,
    window: int = WINDOW,
    threshold: float = THRESHOLD,
    merge: int = MERGE,
    lasting: int = 1,
) -> Spikes:
    """Return the spikes of a *series* (steps,) from step *start* on: values far above the preceding ones.

    x_s is a spike if x_s - m > threshold * 1.4826 MAD, with m the median and MAD the median absolute deviation of the
    *window* values before it. The result does not change if the series is multiplied by a constant or shifted, so
    losses of different scale can be compared; pass the logarithm of quantities that vary by factors, such as norms.
    Simulated at the defaults over 40,000 steps of independent noise around a constant, per 1,000 steps: normal 0.0,
    Student t with 4 degrees of freedom 0.5, lognormal (sd 1 of the log) 16. So compare rates between runs; a single
    rate is not a number of incidents. The rule needs long runs (5,000 steps or more) to detect rare events.

    Args:
        series: One value per step, (steps,). Steps with a non-finite value are not tested.
        start: First step used, at the end of warm-up.
        window: Number of preceding values that each value is compared with.
        threshold: Robust standard deviations above the median that make a spike.
        merge: Exceedances at most this many steps apart count as one spike; so does a jump to a new level.
        lasting: Number of consecutive values whose median is compared, odd.

    Raises:
        InputError: *series* is not one-dimensional, *window* is below 10, or *lasting* is not odd.

    >>> calm = np.exp(-np.arange(400) / 100)
    >>> spikes(calm).steps, spikes(calm + 5 * (np.arange(400) == 250)).steps
    ((), (250,))
    """
    values = _row(series)
    if window < 10:
        raise InputError(f"window is {window}; allowed: 10 steps or more")
    if lasting < 1 or lasting % 2 == 0:
        raise InputError(f"lasting is {lasting}; allowed: an odd number of steps")
    half = lasting // 2
    first = start + window + half
    if len(values) <= first + half:
        return Spikes((), 0)
    tested = np.median(np.lib.stride_tricks.sliding_window_view(values[first - half :], lasting), axis=1)
    before = np.lib.stride_tricks.sliding_window_view(values[start:-1], window)[: len(tested)]
    with np.errstate(invalid="ignore"):
        middle = np.median(before, axis=1)
        deviation = np.median(np.abs(before - middle[:, None]), axis=1)
        bound = middle + np.maximum(threshold * _TO_SD * deviation, _RESOLUTION * np.abs(middle))
        above = tested > bound
    seen = np.isfinite(tested) & np.isfinite(bound)
    return Spikes(_merged(first + np.flatnonzero(above & seen), merge), int(seen.sum()))


def healing_spikes(
    readings: ArrayLike,
    *,
    window: int = HEALING_WINDOW,
    threshold: float = HEALING_THRESHOLD,
    within: int = HEALS_WITHIN,
) -> Spikes:
    """Return the spikes of the loss of a fixed batch: rises that heal. Their steps are indices of *readings* (k,).

    A reading is the begin of a spike if it exceeds the median m of the *window* readings before it by more than
    *threshold* robust standard deviations of these and by `LEAST_RISE` of |m|, and if within as many readings as
    *within* says the loss is back: at most `HEALED` of the highest rise so far above m is left. What never comes back
    is a collapse or a new level and does not count. Since the batch is always the same, no reading is high because its
    pairs are hard: only the parameters move. The rule is free of the loss's scale.

    In 50,000 simulated readings each of normal noise around a constant, of a standard deviation of 1% of the loss and
    with an autocorrelation of 0, .5 and .8, none is a spike; `docs/measures.md` has the rates of heavy tails.

    Args:
        readings: The losses, one per reading, (k,). A reading that is not finite is not tested.
        window: Number of preceding readings that each is compared with.
        threshold: Robust standard deviations above the median that make a rise.
        within: Number of readings in which it must heal.

    >>> calm = 2 + 0.01 * np.sin(np.arange(100.0))
    >>> healed, lasting = calm.copy(), calm.copy()
    >>> healed[[50, 51]] += [3, 1]
    >>> lasting[50:] += 3
    >>> healing_spikes(healed).steps, healing_spikes(lasting).steps
    ((50,), ())
    """
    values = _row(readings)
    found, counted, place = [], 0, window
    while place < len(values):
        before = values[place - window : place]
        before = before[np.isfinite(before)]
        if not math.isfinite(values[place]) or 2 * len(before) < window:
            place += 1
            continue
        middle = float(np.median(before))
        rise = max(threshold * _TO_SD * float(np.median(np.abs(before - middle))), LEAST_RISE * abs(middle))
        last = place
        if values[place] - middle > rise:
            later = values[place : place + within + 1] - middle
            # A reading that is not finite is neither high nor back.
            healed = later <= HEALED * np.fmax.accumulate(later)
            if healed.any():
                found.append(place)
            # What is left of a rise is no second one, whether it healed or not.
            calm = np.flatnonzero(later <= rise)
            last += int(max(calm[0], np.argmax(healed))) if len(calm) and healed.any() else len(later) - 1
        counted += int(np.isfinite(values[place : last + 1]).sum())
        place = last + 1
    return Spikes(tuple(found), counted)


SpikeRule = Literal["steps", "lasting", "healing"]

SPIKE_RULES: Mapping[SpikeRule, Callable[[ArrayLike], Spikes]] = {
    "steps": spikes,
    "lasting": partial(spikes, lasting=LASTING, threshold=LASTING_THRESHOLD),
    "healing": healing_spikes,
}
"""The rules that measures count spikes by, by name: `Measure.spike_rule`."""


def loss_spikes_by_deviation(
    loss: ArrayLike, *, deviations: float = 3.2, window: int = WINDOW, start: int = 1000, merge: int = MERGE
) -> Spikes:
    """Return loss spikes as Wortsman et al. (2023) count them: above a running mean by 3.2 running deviations.

    The first 1,000 steps are left out, and spikes within 10 steps count as one. Their text, arXiv:2304.13013, does not
    specify the running window; here it is the preceding *window* values. One large spike inflates the deviation and
    hides the next, and normal noise exceeds 3.2 deviations about once in 1,000 steps. Use this for comparison with
    published rates, not for verdicts.

    Args:
        loss: Loss at each step, (steps,).
        deviations: Height of a spike above the running mean, in running standard deviations.
        window: Number of preceding values of the running mean.
        start: First step that is examined.
        merge: Spikes at most this many steps apart count as one.
    """
    values = _row(loss)
    first = max(start, window)
    if len(values) <= first:
        return Spikes((), 0)
    before = np.lib.stride_tricks.sliding_window_view(values[:-1], window)[first - window :]
    bound = before.mean(axis=1) + deviations * before.std(axis=1)
    seen = np.isfinite(values[first:]) & np.isfinite(bound)
    return Spikes(_merged(first + np.flatnonzero(seen & (values[first:] > bound)), merge), int(seen.sum()))


def loss_spikes_by_height(loss: ArrayLike, *, height: float = 0.1, window: int = 201, start: int = 0) -> Spikes:
    """Return the steps whose loss lies more than 0.1 nats above a 201-step rolling median, without merging.

    This is the operational rule of the Qwen3.8-Next report (arXiv:2608.30320), which gives the rate per 10,000 steps.
    The median is that of the *window* steps that end with the step itself. The rule depends on the scale of the loss,
    so it cannot compare losses. Use it only for comparison with published rates.

    Args:
        loss: Loss at each step in nats, (steps,).
        height: Height of a spike above the median, in nats.
        window: Number of values of the median.
        start: First step that is used.
    """
    values = _row(loss)
    first = start + window - 1
    if len(values) <= first:
        return Spikes((), 0)
    middle = np.median(np.lib.stride_tricks.sliding_window_view(values[start:], window), axis=1)
    seen = np.isfinite(values[first:]) & np.isfinite(middle)
    above = first + np.flatnonzero(seen & (values[first:] > middle + height))
    return Spikes(tuple(int(step) for step in above), int(seen.sum()))


def update_spikes_by_level(rms: ArrayLike, *, level: float = 2.3, start: int = 1000, merge: int = MERGE) -> Spikes:
    """Return where the RMS of g / sqrt(v) of one weight matrix reaches 2.3, which indicates an outdated second moment.

    RMS_t = sqrt(mean(g_t^2 / max(v_t, eps^2))) with Adam's bias-corrected v; it is 1 if v is accurate. Wortsman et al.
    (2023), arXiv:2304.13013. The meaning of the level depends on beta2, and trained scalars exceed it almost always:
    pass weight matrices, and compare at equal beta2.

    Args:
        rms: RMS at each step, (steps,).
        level: The RMS that counts as a spike.
        start: First step that is examined.
        merge: Spikes at most this many steps apart count as one.
    """
    values = _row(rms)[start:]
    seen = np.isfinite(values)
    return Spikes(_merged(start + np.flatnonzero(seen & (values >= level)), merge), int(seen.sum()))


def _row(series: ArrayLike) -> np.ndarray:
    values = np.asarray(series, dtype=np.float64)
    if values.ndim != 1:
        raise InputError(f"the series has shape {values.shape}; allowed: one value a step")
    return values


def _merged(steps: np.ndarray, merge: int) -> tuple[int, ...]:
    """Return the first of each group of *steps* whose neighbors differ by at most *merge*."""
    first = np.diff(steps, prepend=-merge - 1) > merge
    return tuple(int(step) for step in steps[first])
