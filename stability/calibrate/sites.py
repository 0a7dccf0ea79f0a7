"""Error rates of joining replications and of the words about each, simulated under known truth.

Each site has seeds whose differences are normal; effects are in margins. All numbers of docs/statistics.md on
replications come from here: ``python -m stability.calibrate.sites``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from stability import stats
from stability.replication_agreement import WORDS, agreement
from stability.stats.comparison import Comparison
from stability.stats.sites import joined, site_of
from stability.streams import seed_of

CONFIDENCE, MARGIN = 0.95, 1.0
SEEDS = 8
NOISE = 1.0
"""Standard deviation of a seed's difference, in margins."""


@dataclass(frozen=True)
class JoinedRates:
    """How the random-effects mean does, as shares of trials.

    Attributes:
        covered: How often its interval contains the mean of all possible sites' true effects.
        covered_unadjusted: The same without the lower bound of the interval's length (`stats.joined`).
        covered_normal: The same of mean +- z / sqrt(sum of weights), the interval of DerSimonian and Laird's kind.
        tau: The median of the estimated tau.
    """

    covered: float
    covered_unadjusted: float
    covered_normal: float
    tau: float


@dataclass(frozen=True)
class _Found:
    """A comparison as `agreement` reads a finding."""

    verdict: str
    effect: float
    interval: tuple[float, float]
    confidence: float
    margin: float
    ratio: bool
    n_pairs: int


def _tested(rng: np.random.Generator, effect: float, seeds: int) -> Comparison:
    values = effect + NOISE * rng.standard_normal(seeds)
    return stats.paired_difference(values, np.zeros(seeds), confidence=CONFIDENCE)


def joined_rates(
    sites: int, tau: float, trials: int = 2000, seed: int = 0, seeds: tuple[int, ...] = (8, 8, 4, 8, 16)
) -> JoinedRates:
    """Return how the joined effect of *sites* does whose true effects are normal around 0 with deviation *tau*.

    Args:
        sites: Number of sites.
        tau: Standard deviation of the true effects, in margins.
        trials: Number of trials.
        seed: Seed of the random stream.
        seeds: Numbers of seeds of the sites, the first of which are used.
    """
    rng = np.random.default_rng(seed_of(seed, f"calibrate/joined/{sites}/{tau:g}"))
    held = np.zeros((trials, 3), dtype=bool)
    taus = np.zeros(trials)
    for trial in range(trials):
        found = []
        for count in seeds[:sites]:
            one = _tested(rng, tau * float(rng.standard_normal()), count)
            site = site_of(one.effect, one.interval, one.n, CONFIDENCE, ratio=False)
            assert site is not None
            found.append(site)
        intervals = [joined(found, CONFIDENCE, at_least_fixed=bound) for bound in (True, False)]
        taus[trial] = intervals[0].tau
        weight = sum(1 / (site.error**2 + intervals[0].tau ** 2) for site in found)
        normal = 1.959964 / weight**0.5
        held[trial] = (
            *(one.interval[0] <= 0 <= one.interval[1] for one in intervals),
            abs(intervals[0].effect) <= normal,
        )
    covered, unadjusted, normal_covered = held.mean(axis=0).tolist()
    return JoinedRates(covered, unadjusted, normal_covered, float(np.median(taus)))


def word_rates(
    difference: float, effect: float = 3.0, trials: int = 2000, seed: int = 0, seeds: int = SEEDS
) -> dict[str, float]:
    """Return how often a replication gets each word, whose true effect is the study's plus *difference*.

    Args:
        difference: True difference of the two effects, in margins.
        effect: True effect of the study, in margins.
        trials: Number of trials.
        seed: Seed of the random stream.
        seeds: Number of seeds of each of the two.
    """
    rng = np.random.default_rng(seed_of(seed, f"calibrate/words/{difference:g}/{effect:g}/{seeds}"))
    counts: Counter[str] = Counter()
    for _ in range(trials):
        own, other = (
            _Found("supported", one.effect, one.interval, CONFIDENCE, MARGIN, ratio=False, n_pairs=seeds)
            for one in (_tested(rng, effect, seeds), _tested(rng, effect + difference, seeds))
        )
        counts[agreement(own, {"site": other}).sites[0].word] += 1
    return {word: counts[word] / trials for word in WORDS}


def _print_all(trials: int = 4000) -> None:
    for sites in (2, 3, 4, 5):
        for tau in (0.0, 1.0):
            print(sites, tau, joined_rates(sites, tau, trials))  # noqa: T201
    for seeds in (8, 32):
        for effect, difference in ((3.0, 0.0), (3.0, 1.0), (3.0, 2.0), (3.0, -6.0), (0.0, 0.0), (0.5, -1.0)):
            print(seeds, effect, difference, word_rates(difference, effect, trials, seeds=seeds))  # noqa: T201


if __name__ == "__main__":
    _print_all()
