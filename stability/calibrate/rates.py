"""Error rates by simulation: how often a contrast finds what is not there, misses what is, and covers the truth."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from stability import contrasts, stats
from stability.calibrate.worlds import BUDGET, LEVELS, YES_NO, NoiseModel, shape, world
from stability.contrasts import contrast
from stability.registry import InputError, nearest
from stability.stats import Comparison
from stability.streams import seed_of

SEEDS = (3, 5, 10, 20)
CORRELATIONS = (0.0, 0.5, 0.9)
TRIALS = 1000

NOMINAL = 0.05
"""The error rate that a verdict on a single claim promises, and all claims of a study together."""

COVERED = 0.93
"""The least share of intervals, 95% each, that must hold the truth from `ENOUGH` seeds on."""

ENOUGH = 10

STUDY_OF_FIVE = ("level", "positive", "trend", "spread_of_one_cell", "time")
"""The worlds that the five claims of a simulated study are drawn from."""


@dataclass(frozen=True)
class Cell:
    """One place of the calibration: a world, the shape of its noise, seeds, and the correlation of the two arms."""

    world: str
    shape: str
    seeds: int
    correlation: float

    def noise_model(self, seed: int, use: str) -> NoiseModel:
        """Return where the cell's numbers come from; no two cells or uses share any."""
        world_name = self.world.replace("_", "-")  # as the committed tables were drawn
        name = f"calibrate/{world_name}/{self.shape}/{self.seeds}/{self.correlation:g}/{use}"
        return NoiseModel(np.random.default_rng(seed_of(seed, name)), self.shape, self.seeds, self.correlation)


@dataclass(frozen=True)
class Rates:
    """What a cell measured, as shares of *trials*; None where there is nothing to measure.

    *wrong*: no effect was planted and the interval excludes none. *covered*: the interval holds the truth, among the
    trials that could be tested (*tested*), with the planted effect and without. *found*: the planted effect was found,
    on its side. *oracle*: the power that is known.
    """

    cell: Cell
    trials: int
    tested: float
    wrong: float
    covered: float | None
    found: float
    oracle: float | None

    @property
    def errs(self) -> bool:
        """Whether false positives lie above the band that chance explains."""
        return self.wrong > upper_band(self.trials)

    @property
    def misses(self) -> bool:
        """Whether enough seeds cover the truth too seldom."""
        return self.cell.seeds >= ENOUGH and self.covered is not None and self.covered < COVERED


@dataclass(frozen=True)
class StudyRates:
    """How many of *trials* simulated studies of five claims, none with an effect, gave any claim a direction."""

    shape: str
    seeds: int
    trials: int
    wrong: float

    @property
    def errs(self) -> bool:
        """Whether wrong directions lie above the band that chance explains."""
        return self.wrong > upper_band(self.trials)


def upper_band(trials: int, rate: float = NOMINAL, level: float = 0.999) -> float:
    """Return the share that a true *rate* exceeds by chance in one of 1,000 simulations: a binomial quantile.

    >>> upper_band(1000), upper_band(200, level=0.99) * 200
    (0.073, 18.0)
    """
    from scipy.stats import binom

    return float(binom.ppf(level, trials, rate) / trials)


def cells_of(names: Iterable[str] = ()) -> tuple[Cell, ...]:
    """Return the cells of the worlds of some contrasts (of all without names).

    Raises `InputError` for a contrast that does not exist or has no world.
    """
    simulated = {variant.traits["contrast"] for variant in world.values()}
    wanted = tuple(names) or tuple(simulated)
    for name in wanted:
        contrast.get_or_explain(name, "--contrast")
        if name not in simulated:
            raise InputError(f"--contrast: no world of known truth for {name!r}{nearest(name, simulated)}")
    return tuple(
        Cell(name, noise, seeds, correlation)
        for name, variant in world.items()
        if variant.traits["contrast"] in wanted
        for noise, seeds, correlation in itertools.product(variant.traits.get("shapes", shape), SEEDS, CORRELATIONS)
    )


def compare(name: str, noise: NoiseModel, effect: float, confidence: float = 1 - NOMINAL) -> Comparison:
    """Return what its contrast makes of one draw from a world."""
    supplied: dict[str, Any] = {
        "confidence": confidence,
        "levels": LEVELS,
        "per": "",
        "better": "higher",
        "log": False,
        "budget": BUDGET,
        "names": ("a", "b"),
        "measure": "value",
    }
    return contrasts.compare(world[name].traits["contrast"], *world[name](noise, effect), supplied=supplied)


def measure(cell: Cell, trials: int, seed: int = 0) -> Rates:
    """Return the rates of one cell, from *trials* draws without effect and as many with one."""
    traits = world[cell.world].traits
    effect, power = traits["effect"], traits["power"]
    noises = {0.0: cell.noise_model(seed, "null"), effect: cell.noise_model(seed, "planted")}
    found = {size: [compare(cell.world, noise, size) for _ in range(trials)] for size, noise in noises.items()}
    truths = {size: traits["truth"](noise, size) for size, noise in noises.items()}
    held = [
        each.interval[0] <= truth <= each.interval[1]
        for size, truth in truths.items()
        if truth is not None
        for each in found[size]
        if each.testable
    ]
    return Rates(
        cell=cell,
        trials=trials,
        tested=_share(each.testable for each in found[0.0]),
        wrong=_share(direction(each) != 0 for each in found[0.0]),
        covered=_share(held) if held else None,
        found=_share(direction(each) > 0 for each in found[effect]),
        oracle=power(cell.seeds, cell.correlation, effect) if power and cell.shape in ("normal", YES_NO) else None,
    )


def measure_study(place: tuple[str, int], trials: int, seed: int = 0) -> StudyRates:
    """Return how often five claims of no effect, at their shared confidence, give any of them a direction.

    The claims are independent draws, which is the worst case for Bonferroni's bound.
    """
    confidence = stats.shared_confidence(len(STUDY_OF_FIVE), 1 - NOMINAL)
    noise, seeds = place
    noises = [Cell(name, noise, seeds, 0.5).noise_model(seed, "study of five") for name in STUDY_OF_FIVE]
    wrong = [
        any(direction(compare(name, noise, 0.0, confidence)) for name, noise in zip(STUDY_OF_FIVE, noises, strict=True))
        for _ in range(trials)
    ]
    return StudyRates(noise, seeds, trials, _share(wrong))


@dataclass(frozen=True)
class Simulated:
    """The rates of all cells, and of studies of five claims where all contrasts were simulated; by *seed*."""

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
    """Return the error rates of the contrasts called *names* (of all, and of studies of five claims, without names).

    Every cell has random streams of its own, so neither order nor workers change a number. *progress* is told the
    jobs done and their total.
    """
    if trials < 1:
        raise InputError(f"--trials: got {trials}; allowed: 1 or more")
    cells = cells_of(names)
    places = () if names else tuple(itertools.product(shape, SEEDS))
    total = len(cells) + len(places)
    spread = executor.map if executor else map
    done = itertools.count(1)

    def counted(results: Iterator[Any]) -> tuple[Any, ...]:
        kept = []
        for result in results:
            kept.append(result)
            progress(next(done), total)
        return tuple(kept)

    # Both are submitted before either is awaited, so that no worker idles in between.
    of_cells = spread(partial(measure, trials=trials, seed=seed), cells)
    of_studies = spread(partial(measure_study, trials=trials, seed=seed), places)
    return Simulated(seed, counted(iter(of_cells)), counted(iter(of_studies)))


def direction(found: Comparison) -> int:
    """Return the side of no difference that an interval lies on: 1 above, -1 below, 0 if it includes none."""
    return int(found.interval[0] > found.no_difference) - int(found.interval[1] < found.no_difference)


def _share(outcomes: Iterable[bool]) -> float:
    return float(np.mean(list(outcomes)))
