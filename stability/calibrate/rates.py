"""Simulated error rate, coverage and power of each contrast."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from stability import contrasts, stats
from stability.calibrate.scenarios import BUDGET, YES_NO, NoiseModel, shape, world
from stability.contrasts import contrast
from stability.registry import InputError, nearest
from stability.stats import Comparison
from stability.streams import seed_of

SEEDS = (3, 5, 10, 20)
CORRELATIONS = (0.0, 0.5, 0.9)
TRIALS = 1000

NOMINAL = 0.05
"""The nominal error rate of a verdict on a single claim, and of all claims of a study together."""

COVERED = 0.93
"""The smallest acceptable coverage of 95% intervals with at least `ENOUGH` seeds."""

ENOUGH = 10

STUDY_OF_FIVE = ("level", "positive", "trend", "spread_of_one_cell", "time")
"""The worlds that the five claims of a simulated study are drawn from."""


@dataclass(frozen=True)
class Cell:
    """One setting of the calibration: a world, the shape of its noise, seeds, and the correlation of the two arms.

    Attributes:
        world: Name of the world.
        shape: Name of the shape of its noise.
        seeds: Number of seeds.
        correlation: Correlation of the two arms, 0 to 1.
    """

    world: str
    shape: str
    seeds: int
    correlation: float

    def noise_model(self, seed: int, use: str) -> NoiseModel:
        """Return the noise of the cell from its own random stream, one per cell and use."""
        world_name = self.world.replace("_", "-")  # keeps the streams of the committed tables
        name = f"calibrate/{world_name}/{self.shape}/{self.seeds}/{self.correlation:g}/{use}"
        return NoiseModel(np.random.default_rng(seed_of(seed, name)), self.shape, self.seeds, self.correlation)


@dataclass(frozen=True)
class Rates:
    """The results of a cell, as shares of trials.

    Attributes:
        cell: The cell.
        trials: Number of trials, without and with a planted effect.
        tested: Share of trials without effect that could be tested.
        wrong: Share of trials without effect whose interval excludes no difference.
        covered: Share of testable trials, with and without effect, whose interval contains the truth; None if the truth
            has no closed form.
        detected: Share of trials with a planted effect that is detected with the right sign.
        oracle: Known power of an exact test; None if unknown.
    """

    cell: Cell
    trials: int
    tested: float
    wrong: float
    covered: float | None
    detected: float
    oracle: float | None

    @property
    def errs(self) -> bool:
        """Return whether the false positive rate exceeds the nominal rate by more than chance."""
        return self.wrong > upper_band(self.trials)

    @property
    def misses(self) -> bool:
        """Return whether coverage is too low with `ENOUGH` seeds or more."""
        return self.cell.seeds >= ENOUGH and self.covered is not None and self.covered < COVERED


@dataclass(frozen=True)
class StudyRates:
    """The share of simulated studies of five claims without effect in which any claim was given a direction.

    Attributes:
        shape: Name of the shape of the noise.
        seeds: Number of seeds.
        trials: Number of simulated studies.
        wrong: Share of them in which any claim was given a direction.
    """

    shape: str
    seeds: int
    trials: int
    wrong: float

    @property
    def errs(self) -> bool:
        """Return whether the share of wrong directions exceeds the nominal rate by more than chance."""
        return self.wrong > upper_band(self.trials)


def upper_band(trials: int, rate: float = NOMINAL, level: float = 0.999) -> float:
    """Return the binomial quantile that a true *rate* exceeds by chance in a share 1 - *level* of simulations.

    >>> upper_band(1000), upper_band(200, level=0.99) * 200
    (0.073, 18.0)
    """
    from scipy.stats import binom

    return float(binom.ppf(level, trials, rate) / trials)


def cells_of(names: Iterable[str] = ()) -> tuple[Cell, ...]:
    """Return the cells of the worlds of the named contrasts (default: all).

    Raises:
        InputError: A contrast does not exist or has no world.
    """
    simulated = {variant.traits.contrast for variant in world.values()}
    selected = tuple(names) or tuple(simulated)
    for name in selected:
        contrast.get_or_explain(name, "--contrast")
        if name not in simulated:
            raise InputError(f"--contrast: no world of known truth for {name!r}{nearest(name, simulated)}")
    return tuple(
        Cell(name, noise, seeds, correlation)
        for name, variant in world.items()
        if variant.traits.contrast in selected
        for noise, seeds, correlation in itertools.product(variant.traits.shapes or shape, SEEDS, CORRELATIONS)
    )


def compare(name: str, noise: NoiseModel, effect: float, confidence: float = 1 - NOMINAL) -> Comparison:
    """Return the comparison of one draw from a world by its contrast.

    Args:
        name: Name of the world.
        noise: Noise of the two arms.
        effect: The planted effect; 0 for none.
        confidence: 1 - alpha.
    """
    supplied: dict[str, Any] = {
        "confidence": confidence,
        "levels": world[name].traits.levels,
        "per": "",
        "better": "higher",
        "log": False,
        "budget": BUDGET,
        "names": ("a", "b"),
        "measure": "value",
    }
    return contrasts.compare(world[name].traits.contrast, *world[name](noise, effect), supplied=supplied)


def measure(cell: Cell, trials: int, seed: int = 0) -> Rates:
    """Return the rates of one cell, from *trials* draws without effect and as many with effect."""
    traits = world[cell.world].traits
    effect, power = traits.effect, traits.power
    noises = {0.0: cell.noise_model(seed, "null"), effect: cell.noise_model(seed, "planted")}
    comparisons = {size: [compare(cell.world, noise, size) for _ in range(trials)] for size, noise in noises.items()}
    truths = {size: traits.truth(noise, size) for size, noise in noises.items()}
    covered = [
        one.interval[0] <= truth <= one.interval[1]
        for size, truth in truths.items()
        if truth is not None
        for one in comparisons[size]
        if one.testable
    ]
    return Rates(
        cell=cell,
        trials=trials,
        tested=_share(one.testable for one in comparisons[0.0]),
        wrong=_share(direction(one) != 0 for one in comparisons[0.0]),
        covered=_share(covered) if covered else None,
        detected=_share(direction(one) > 0 for one in comparisons[effect]),
        oracle=power(cell.seeds, cell.correlation, effect) if power and cell.shape in ("normal", YES_NO) else None,
    )


def measure_study(cell: tuple[str, int], trials: int, seed: int = 0) -> StudyRates:
    """Return how often any of five claims without effect, at their shared confidence, is given a direction.

    The claims are independent draws, which is the worst case for Bonferroni's bound.
    """
    confidence = stats.shared_confidence(len(STUDY_OF_FIVE), 1 - NOMINAL)
    noise, seeds = cell
    noises = [Cell(name, noise, seeds, 0.5).noise_model(seed, "study of five") for name in STUDY_OF_FIVE]
    wrong = [
        any(direction(compare(name, noise, 0.0, confidence)) for name, noise in zip(STUDY_OF_FIVE, noises, strict=True))
        for _ in range(trials)
    ]
    return StudyRates(noise, seeds, trials, _share(wrong))


@dataclass(frozen=True)
class Simulated:
    """Rates of all cells and, if all contrasts were simulated, of studies of five claims, with their *seed*."""

    seed: int
    cells: tuple[Rates, ...]
    studies: tuple[StudyRates, ...] = ()


def simulate(
    names: Sequence[str] = (),
    trials: int = TRIALS,
    seed: int = 0,
    executor: Executor | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Simulated:
    """Return the error rates of contrasts by simulation.

    Every cell has its own random streams, so the results do not depend on order or workers.

    Args:
        names: Names of contrasts; default all, plus studies of five claims.
        trials: Number of trials per cell.
        seed: Seed of the random streams.
        executor: Runs the cells; default in this process.
        progress: Called with the number of finished jobs and their total.
    """
    if trials < 1:
        raise InputError(f"--trials: got {trials}; allowed: 1 or more")
    cells = cells_of(names)
    study_cells = () if names else tuple(itertools.product(shape, SEEDS))
    total = len(cells) + len(study_cells)
    mapper = executor.map if executor else map
    done = itertools.count(1)

    def counted(results: Iterator[Any]) -> tuple[Any, ...]:
        results_so_far = []
        for result in results:
            results_so_far.append(result)
            progress(next(done), total)
        return tuple(results_so_far)

    # Submit both before waiting for either, so that no worker is idle in between.
    cell_results = mapper(partial(measure, trials=trials, seed=seed), cells)
    study_results = mapper(partial(measure_study, trials=trials, seed=seed), study_cells)
    return Simulated(seed, counted(iter(cell_results)), counted(iter(study_results)))


def direction(comparison: Comparison) -> int:
    """Return 1 if the interval lies above no difference, -1 if below, 0 if it includes no difference."""
    return int(comparison.interval[0] > comparison.no_difference) - int(
        comparison.interval[1] < comparison.no_difference
    )


def _share(outcomes: Iterable[bool]) -> float:
    return float(np.mean(list(outcomes)))
