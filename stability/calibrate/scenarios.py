"""Simulated worlds with a known truth: noise distributions, and for each contrast two arms with a known effect.

A *shape* is ``(rng, size) -> array``: independent noise of mean 0 and variance 1. A *world* is ``(noise, effect) ->
(a, b)``: the arrays of two arms as its contrast takes them, (seeds, levels, cells), with the same distribution if
*effect* is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stability import stats
from stability.registry import Registry, Traits

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ShapeTraits(Traits):
    """What a shape declares.

    Attributes:
        other: The shape of the second arm's noise; empty if both arms have the same.
    """

    other: str = ""


@dataclass(frozen=True)
class WorldTraits(Traits):
    """What a world declares.

    Attributes:
        contrast: The contrast that tests it.
        effect: The planted effect of simulations with one.
        truth: ``(noise, effect) -> float``: the true effect; None if there is no closed form.
        power: ``(seeds, correlation, effect) -> float``: the power of an exact test with normal noise; None if unknown.
        shapes: The shapes that are simulated; empty: all.
        levels: The axis of its arrays.
    """

    contrast: str
    effect: float
    truth: Callable[[NoiseModel, float], float | None]
    power: Callable[[int, float, float], float] | None
    shapes: tuple[str, ...] = ()
    levels: tuple[float, ...] = (0.0, 0.2, 0.4)


shape = Registry("shape", ShapeTraits)
world = Registry("world", WorldTraits)

LEVELS = WorldTraits.levels
"""The axis of slopes and interactions."""

DOUBLINGS = tuple(float(step) for step in range(-5, 6))
"""The grid of critical rates: base-2 logarithms of eleven learning rates, a factor of 2 apart."""

RATE_SD = 0.5
"""The standard deviation of critical rates over seeds, in doublings."""

BUDGET = 60.0
"""The step budget to reach a threshold; with equal arms a quarter of the runs take longer."""

YES_NO = "yes or no"
"""The shape of a world of binary outcomes instead of noise."""


@shape
def normal(rng: np.random.Generator, size: tuple[int, ...]) -> Array:
    """Return normal noise."""
    return rng.standard_normal(size)


@shape
def t4(rng: np.random.Generator, size: tuple[int, ...]) -> Array:
    """Return noise with heavy tails: Student's t with 4 degrees of freedom, which has no fourth moment."""
    return rng.standard_t(4, size) / math.sqrt(2)


@shape
def skewed(rng: np.random.Generator, size: tuple[int, ...]) -> Array:
    """Return noise with one long tail: exponential, of skewness 2."""
    return rng.exponential(size=size) - 1


@shape
def ties(rng: np.random.Generator, size: tuple[int, ...]) -> Array:
    """Return normal noise rounded to multiples of half a standard deviation, so that values repeat."""
    return np.round(2 * rng.standard_normal(size)) / 2


@shape(other="normal")
def lopsided(rng: np.random.Generator, size: tuple[int, ...]) -> Array:
    """Return noise with one long tail for the first arm; the second arm's is normal, so differences are skewed too.

    Differences of equal shapes are symmetric even if the shape is skewed. This shape models an arm that fails at times.
    """
    return rng.exponential(size=size) - 1


@dataclass(frozen=True)
class NoiseModel:
    """The noise of a world: its shape, the number of seeds, and the correlation between the two arms.

    Attributes:
        rng: Random generator of all draws.
        shape: Name of the shape, as registered by `shape`.
        seeds: Number of seeds.
        correlation: Correlation between the two arms, 0 to 1.
    """

    rng: np.random.Generator
    shape: str
    seeds: int
    correlation: float

    def arms(self, levels: int = 1, cells: int = 1) -> tuple[Array, Array]:
        """Return noise for both arms, (seeds, levels, cells) each, of variance 1 and the correlation between arms."""
        sampler, size = shape[self.shape], (self.seeds, levels, cells)
        other_sampler = shape[sampler.traits.other or self.shape]
        shared = math.sqrt(self.correlation) * sampler(self.rng, size)
        own_weight = math.sqrt(1 - self.correlation)
        return shared + own_weight * sampler(self.rng, size), shared + own_weight * other_sampler(self.rng, size)

    @property
    def gap(self) -> float:
        """Return the standard deviation of the difference of the two arms' noise."""
        return math.sqrt(2 * (1 - self.correlation))


def noncentral_t(seeds: int, correlation: float, effect: float) -> float:
    """Return the power of the paired t test for an effect in standard deviations of the differences."""
    return stats.power(seeds, effect)


SIGMA = 0.3
"""Standard deviation of the logarithm of a positive quantity, such as a time."""

Sample = tuple[Array, Array]


@world(contrast="difference", effect=1.0, truth=lambda noise, d: d * noise.gap, power=noncentral_t)
def level(noise: NoiseModel, effect: float) -> Sample:
    """Return levels that lie *effect* standard deviations of their differences apart."""
    a, b = noise.arms()
    return a + effect * noise.gap, b


@world(
    contrast="ratio",
    effect=1.0,
    truth=lambda noise, d: math.exp(SIGMA * d * noise.gap),
    power=noncentral_t,
)
def positive(noise: NoiseModel, effect: float) -> Sample:
    """Return positive quantities whose logarithms lie *effect* standard deviations of their differences apart."""
    a, b = level(noise, effect)
    return np.exp(SIGMA * a), np.exp(SIGMA * b)


def _slope_gap(noise: NoiseModel) -> float:
    return noise.gap / math.sqrt(float(np.square(np.array(LEVELS) - np.mean(LEVELS)).sum()))


@world(contrast="slope", effect=1.0, truth=lambda noise, d: d * _slope_gap(noise), power=noncentral_t)
def trend(noise: NoiseModel, effect: float) -> Sample:
    """Return lines over the levels whose slopes lie *effect* standard deviations of their differences apart."""
    a, b = noise.arms(levels=len(LEVELS))
    return a + effect * _slope_gap(noise) * np.array(LEVELS)[:, None], b


@world(
    contrast="interaction",
    effect=1.0,
    truth=lambda noise, d: d * math.sqrt(2) * noise.gap,
    power=noncentral_t,
)
def change(noise: NoiseModel, effect: float) -> Sample:
    """Return numbers whose changes from first to last level lie *effect* SDs of their differences apart."""
    a, b = noise.arms(levels=len(LEVELS))
    a[:, -1] += effect * math.sqrt(2) * noise.gap
    return a, b


PEAK = 20.0
"""Height of the best level above the others, large enough that noise never changes which is best."""


@world(
    contrast="lr_sensitivity",
    effect=1.0,
    truth=lambda noise, d: d * math.sqrt(2 / 3) * noise.gap,
    power=noncentral_t,
)
def peak(noise: NoiseModel, effect: float) -> Sample:
    """Return three levels with the best in the middle, their falls from it *effect* SDs of their differences apart."""
    a, b = noise.arms(levels=len(LEVELS))
    # best - mean is 2/3 of the peak: its noise has variance 2/3, and raising the peak by 1 raises it by 2/3.
    a[:, 1] += PEAK + effect * math.sqrt(3 / 2) * noise.gap
    b[:, 1] += PEAK
    return a, b


@world(contrast="spread", effect=math.log(3), truth=lambda noise, d: math.exp(d), power=None)
def spread_of_one_cell(noise: NoiseModel, effect: float) -> Sample:
    """Return numbers whose standard deviations over seeds have the logarithm of their ratio *effect*."""
    a, b = noise.arms()
    return math.exp(effect) * a, b


@world(contrast="spread", effect=math.log(1.5), truth=lambda noise, d: math.exp(d), power=None)
def spread_of_six_cells(noise: NoiseModel, effect: float) -> Sample:
    """Return six cells of numbers whose standard deviations over seeds have the log ratio *effect*."""
    a, b = noise.arms(cells=6)
    return math.exp(effect) * a, b


@world(
    contrast="time_to_threshold",
    effect=1.0,
    truth=lambda noise, d: None if d else 1.0,
    power=noncentral_t,
)
def time(noise: NoiseModel, effect: float) -> Sample:
    """Return times to a threshold, read every fifth step, whose logarithms lie *effect* SDs apart; some never come.

    Times above the budget are censored, which biases the ratio toward 1. Its truth then has no closed form, and the
    power of the uncensored test is an upper bound.
    """
    b, a = positive(noise, -effect)
    return 5 * np.ceil(10 * a), 5 * np.ceil(10 * b)


def _rates(effect: float) -> tuple[float, float]:
    return 0.4 + effect / 2, 0.4 - effect / 2


def mcnemar(seeds: int, correlation: float, effect: float) -> float:
    """Return the power of the exact McNemar test, summed over all rejecting discordant counts."""
    from scipy.stats import binom

    high, low = _rates(effect)
    only_a = correlation * (high - low) + (1 - correlation) * high * (1 - low)
    only_b = (1 - correlation) * low * (1 - high)
    discordant = np.arange(1, seeds + 1)[:, None]
    n_only_a = np.arange(seeds + 1)[None, :]
    tail = binom.cdf(np.minimum(n_only_a, discordant - n_only_a), discordant, 0.5)
    chance = binom.pmf(discordant, seeds, only_a + only_b) * binom.pmf(n_only_a, discordant, only_a / (only_a + only_b))
    return float(chance[(2 * tail <= 0.05) & (n_only_a <= discordant)].sum())


def _outcomes(noise: NoiseModel, effect: float, cells: int) -> Sample:
    """Return which runs diverged. Arms share their draw with probability *correlation*, a seed's cells with 1/2."""
    shared = noise.rng.random((noise.seeds, 1, 1)) < noise.correlation
    same_in_all_cells = (
        noise.rng.random((noise.seeds, 1, 1)) < 0.5 if cells > 1 else np.zeros((noise.seeds, 1, 1), bool)
    )
    cell_draws, run_draws = (
        noise.rng.random((3, noise.seeds, 1, cells)),
        noise.rng.random((3, noise.seeds, 1, 1)),
    )
    shared_draw, *arm_draws = np.where(same_in_all_cells, run_draws, cell_draws)
    a, b = (np.where(shared, shared_draw, draws) < rate for draws, rate in zip(arm_draws, _rates(effect), strict=True))
    return a.astype(float), b.astype(float)


@world(contrast="divergence", effect=0.6, shapes=(YES_NO,), truth=lambda noise, d: d, power=mcnemar)
def divergence_of_one_cell(noise: NoiseModel, effect: float) -> Sample:
    """Return which runs diverged, at rates *effect* apart around 40%."""
    return _outcomes(noise, effect, cells=1)


@world(contrast="divergence", effect=0.6, shapes=(YES_NO,), truth=lambda noise, d: d, power=None)
def divergence_of_six_cells(noise: NoiseModel, effect: float) -> Sample:
    """Return which of a seed's six runs diverged, at rates *effect* apart around 40%."""
    return _outcomes(noise, effect, cells=6)


@world(contrast="collapse", effect=0.6, shapes=(YES_NO,), truth=lambda noise, d: d, power=mcnemar)
def collapse_of_one_cell(noise: NoiseModel, effect: float) -> Sample:
    """Return which runs collapsed, at rates *effect* apart around 40%."""
    return _outcomes(noise, effect, cells=1)


@world(
    contrast="critical_rate",
    effect=2.0,
    truth=lambda noise, d: 2.0**d,
    power=None,
    levels=DOUBLINGS,
)
def rates_apart(noise: NoiseModel, effect: float) -> Sample:
    """Return which runs collapse on a grid of rates of factor 2, with critical rates *effect* doublings apart.

    Over the seeds the logarithm of a critical rate has a standard deviation of half a doubling. Where the grid lies
    relative to the critical rates is random.
    """
    a, b = noise.arms()
    place = noise.rng.random() - 0.5
    grid = np.array(DOUBLINGS)[:, None]
    return tuple(  # type: ignore[return-value]
        (grid >= place + RATE_SD * arm + shift).astype(float) for arm, shift in ((a, effect / 2), (b, -effect / 2))
    )
