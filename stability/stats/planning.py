"""Sample size planning: power of paired t and equivalence tests, registered looks, seeds that settle a claim."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import chdtri, gammaincinv, nctdtr, ndtr, ndtri, stdtrit

from stability.registry import InputError
from stability.stats.comparison import check_confidence, margin_region

MOST_SEEDS = 1_000_000


def power(n: int, effect: float, sd: float = 1.0, *, confidence: float = 0.95) -> float:
    """Return the power of the two-sided paired t test for a true mean difference *effect* with n seeds.

    1 - F(t; n - 1, d sqrt(n)) + F(-t; n - 1, d sqrt(n)), F the noncentral t distribution, d = effect / sd
    in standard deviations of the paired differences.

    Args:
        n: Number of seeds.
        effect: True mean difference.
        sd: Standard deviation of the paired differences, in the same unit.
        confidence: 1 - alpha.

    >>> round(power(10, 1.0), 2), round(power(16, 1.0, confidence=0.99), 2)
    (0.8, 0.83)
    """
    check_confidence(confidence)
    if n < 2:
        return 0.0
    shift = _in_sds(effect, sd) * math.sqrt(n)
    critical = float(stdtrit(n - 1, 1 - (1 - confidence) / 2))
    # Here the power is 1 to the last bit, and the series for the tail no longer converges.
    if shift > 30 + 2 * critical:
        return 1.0
    # The opposite tail is negligible here (below that of the normal), and scipy returns NaN for it.
    wrong = float(nctdtr(n - 1, shift, -critical)) if shift < 6 else 0.0
    return float(1 - nctdtr(n - 1, shift, critical)) + wrong


def equivalence_power(
    n: int, margin: float, sd: float = 1.0, *, effect: float = 0.0, confidence: float = 0.95, cells: int = 1
) -> float:
    """Return the power of TOST with n seeds to place a true difference *effect* within [-margin, margin].

    Given the sample SD s, the test rejects if |mean| < margin - t s / sqrt(n). This function averages that
    probability over the chi-square distribution of s, at 500 equally likely values. With several *cells*, all of which
    have to pass, the power is that of one cell to the power of their number: exact if the cells' differences are
    independent, and too low if they are positively correlated.

    Args:
        n: Number of seeds.
        margin: Half the width of the region of equality.
        sd: Standard deviation of the paired differences, in the same unit.
        effect: True mean difference.
        confidence: 1 - alpha.
        cells: Number of cells with this standard deviation and effect.

    >>> [round(equivalence_power(20, 1.0, cells=cells), 2) for cells in (1, 2, 4)]
    [0.99, 0.98, 0.97]
    """
    check_confidence(confidence)
    if n < 2:
        return 0.0
    df = n - 1
    equally_likely = (np.arange(500) + 0.5) / 500
    spread = np.sqrt(2 * gammaincinv(df / 2, equally_likely) / df)
    room = _in_sds(margin, sd) * math.sqrt(n) - float(stdtrit(df, confidence)) * spread
    shift = _in_sds(effect, sd) * math.sqrt(n)
    chance = np.where(room > 0, ndtr(room - shift) - ndtr(-room - shift), 0.0)
    return float(np.mean(chance)) ** cells


def seeds_needed(effect: float, sd: float = 1.0, *, confidence: float = 0.95, target: float = 0.8) -> int:
    """Return the smallest number of seeds whose power to detect *effect* reaches *target*.

    Args:
        effect: True mean difference.
        sd: Standard deviation of the paired differences, in the same unit.
        confidence: 1 - alpha.
        target: Power to reach.

    >>> [seeds_needed(d, confidence=c) for d in (1.0, 1.5) for c in (0.95, 0.99)]
    [10, 16, 6, 9]
    """
    _check_target(target)
    check_confidence(confidence)
    guess = _normal_guess(effect, sd, (1 - confidence) / 2, 1 - target)
    return _fewest(lambda n: power(n, effect, sd, confidence=confidence), target, guess)


def seeds_for_equivalence(
    margin: float, sd: float = 1.0, *, confidence: float = 0.95, target: float = 0.8, cells: int = 1
) -> int:
    """Return the smallest number of seeds whose power to show equivalence of equal arms reaches *target*.

    Args:
        margin: Half the width of the region of equality.
        sd: Standard deviation of the paired differences, in the same unit.
        confidence: 1 - alpha.
        target: Power to reach.
        cells: Number of cells with this standard deviation, all of which have to pass.

    >>> seeds_for_equivalence(1.0), seeds_for_equivalence(0.5), seeds_for_equivalence(0.5, confidence=0.99)
    (11, 36, 55)
    """
    _check_target(target)
    check_confidence(confidence)
    guess = _normal_guess(margin, sd, 1 - confidence, (1 - target ** (1 / cells)) / 2)
    return _fewest(lambda n: equivalence_power(n, margin, sd, confidence=confidence, cells=cells), target, guess)


def seeds_to_settle(
    sd: float,
    n: int,
    *,
    margin: float,
    ratio: bool = False,
    confidence: float = 0.95,
    target: float = 0.8,
    cell_sds: Sequence[float] = (),
) -> int | None:
    """Return the seeds that settle a claim: enough to detect a difference of the margin, and to show equality.

    The observed effect is not used, since plans based on it are underpowered half of the time.

    Args:
        sd: Standard deviation of the paired differences (of log ratios if *ratio*). It is itself uncertain, so its
            upper 80% bound sd sqrt((n - 1) / chi2_{0.2, n-1}) is used.
        n: Number of pairs that *sd* was estimated from.
        margin: Smallest effect that matters.
        ratio: Whether the effect is a ratio.
        confidence: 1 - alpha.
        target: Power to reach.
        cell_sds: The same in each cell of the grid, where equality has to hold in every one; all are taken to be as
            large as the largest.

    Returns:
        The number of seeds, or None if the SD is unknown or its bound exceeds the margin a hundredfold.
    """
    check_confidence(confidence)
    high = margin_region(margin, ratio)[1]
    if n < 2 or not math.isfinite(sd):
        return None
    # With fewer seeds even constant differences settle nothing (exact sign interval).
    fewest = math.ceil(1 - math.log2(1 - confidence))
    largest = max((value for value in cell_sds if math.isfinite(value)), default=sd)
    if sd == 0 and largest == 0:
        return fewest
    bound, cell_bound = upper_sd(sd, n), upper_sd(largest, n)
    width = math.log(high) if ratio else high
    if max(bound, cell_bound) > 100 * width:
        return None
    cells = max(1, len(cell_sds))
    return seeds_for_both(width, bound, confidence=confidence, target=target, cells=cells, cell_sd=cell_bound)


def upper_sd(sd: float, n: int) -> float:
    """Return the upper 80% bound of a standard deviation that was estimated from *n* pairs."""
    # chdtri inverts the upper tail: 80% of the distribution lies above the 0.2 quantile.
    return sd * math.sqrt((n - 1) / float(chdtri(n - 1, 0.8)))


def seeds_for_both(
    margin: float,
    sd: float,
    *,
    confidence: float = 0.95,
    target: float = 0.8,
    cells: int = 1,
    cell_sd: float | None = None,
) -> int:
    """Return the seeds that detect a difference of the margin and show equality of equal arms.

    Args:
        margin: The margin on the scale of the test.
        sd: Standard deviation of the paired differences, on the same scale.
        confidence: 1 - alpha.
        target: Power of either test to reach.
        cells: Number of cells in each of which equality has to be shown.
        cell_sd: Standard deviation in a cell; None: *sd*.
    """
    spread = sd if cell_sd is None else cell_sd
    to_detect = seeds_needed(margin, sd, confidence=confidence, target=target) if sd > 0 else 2
    if spread == 0:
        return to_detect
    return max(to_detect, seeds_for_equivalence(margin, spread, confidence=confidence, target=target, cells=cells))


def looks(at: Sequence[int] = (5, 10, 20), *, alpha: float = 0.05) -> dict[int, float]:
    """Return the alpha spent at each registered look: equal shares, whose total error is at most alpha.

    >>> {n: round(share, 4) for n, share in looks().items()}
    {5: 0.0167, 10: 0.0167, 20: 0.0167}
    """
    if not at or list(at) != sorted(set(at)) or min(at) < 2:
        raise InputError(f"looks at {list(at)} seeds; allowed: growing numbers from 2 up")
    if not 0 < alpha < 0.5:
        raise InputError(f"alpha {alpha!r}; allowed: above 0 and below 0.5")
    return {n: alpha / len(at) for n in at}


def _in_sds(effect: float, sd: float) -> float:
    if not (sd > 0 and math.isfinite(sd) and math.isfinite(effect)):
        raise InputError(f"effect {effect!r} with standard deviation {sd!r}; allowed: finite, and a deviation above 0")
    return abs(effect) / sd


def _fewest(power_at: Callable[[int], float], target: float, guess: float) -> int:
    """Return the smallest number of seeds whose power reaches *target*, searched outward from *guess*."""
    if not guess < MOST_SEEDS:
        raise InputError(f"a power of {target} needs more than {MOST_SEEDS:,} seeds; declare a larger effect or margin")
    low = high = max(2, round(guess))
    step = 1
    while power_at(high) < target:
        low, high, step = high, high + step, 2 * step
    while low > 1 and power_at(low) >= target:
        low, high, step = max(1, low - step), low, 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if power_at(middle) < target else (low, middle)
    return high


def _normal_guess(effect: float, sd: float, one_sided: float, miss: float) -> float:
    """Return ((z_(1 - one_sided) + z_(1 - miss)) sd / effect)^2, the number of seeds for a known SD."""
    size = _in_sds(effect, sd)
    return ((float(ndtri(one_sided)) + float(ndtri(miss))) / size) ** 2 if size else math.inf


def _check_target(target: float) -> None:
    if not 0 < target < 1:
        raise InputError(f"target power {target!r}; allowed: above 0 and below 1")
