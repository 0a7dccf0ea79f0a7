"""Simulated verdicts on claims over several cells of the grid, whose true effects are known."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from stability import contrasts, stats
from stability.calibrate.scenarios import Array, shape
from stability.stats.verdicts import Expect
from stability.streams import seed_of


def verdict_shares(
    effects: Sequence[float],
    *,
    seeds: int,
    margin: float,
    expect: Expect = "higher",
    correlation: float = 0.5,
    noise: str = "normal",
    confidence: float = 0.95,
    trials: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """Return the share of simulated claims with each verdict.

    A seed's difference between the arms in a cell is the cell's effect plus noise of standard deviation 1.

    Args:
        effects: The true effect in each cell, in standard deviations of the seeds' differences.
        seeds: Number of seeds.
        margin: Margin of the claim, in the same unit.
        expect: Expected direction.
        correlation: Correlation of the differences of one seed between cells, 0 to 1.
        noise: Name of the shape of the noise, as registered by `shape`.
        confidence: Confidence of the claim's interval.
        trials: Number of simulated claims.
        seed: Seed of the simulation.
    """
    name = f"calibrate/cells/{','.join(f'{effect:g}' for effect in effects)}/{noise}/{seeds}/{correlation:g}"
    rng = np.random.default_rng(seed_of(seed, name))
    words = Counter(
        verdict_of(differences(rng, effects, seeds, correlation, noise), margin, expect, confidence)
        for _ in range(trials)
    )
    return {word: count / trials for word, count in words.items()}


def differences(
    rng: np.random.Generator, effects: Sequence[float], seeds: int, correlation: float, noise: str
) -> Array:
    """Return the differences of the arms by seed and cell, as `verdict_shares` draws them, (seeds, 1, cells).

    Args:
        rng: Random generator of all draws.
        effects: The true effect in each cell.
        seeds: Number of seeds.
        correlation: Correlation of the differences of one seed between cells, 0 to 1.
        noise: Name of the shape of the noise.
    """
    sampler = shape[noise]
    shared, own = sampler(rng, (seeds, 1, 1)), sampler(rng, (seeds, 1, len(effects)))
    drawn = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own
    return np.asarray(effects, dtype=np.float64) + drawn


def verdict_of(differences: Array, margin: float, expect: Expect, confidence: float) -> str:
    """Return the verdict on differences of the arms by seed and cell.

    Args:
        differences: The differences, (seeds, 1, cells).
        margin: Margin of the claim.
        expect: Expected direction.
        confidence: Confidence of the claim's interval.
    """
    zero = np.zeros_like(differences)
    cells = [(("cell", f"cell {index}"),) for index in range(differences.shape[2])]
    supplied = {"confidence": confidence}
    return stats.verdict(
        contrasts.compare("difference", differences, zero, supplied=supplied),
        expect=expect,
        margin=margin,
        cells=contrasts.in_each_cell("difference", differences, zero, supplied=supplied, cells=cells),
    ).verdict
