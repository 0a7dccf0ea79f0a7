"""Effects from independent sites: the interval of the difference of two, and their random-effects mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtrit

from stability.registry import InputError
from stability.stats.comparison import Array, Estimate, Interval, check_confidence, student_estimate


@dataclass(frozen=True)
class Site:
    """An estimate of one effect on the scale of the analysis (a logarithm for a ratio).

    Attributes:
        effect: The estimate.
        error: Its standard error.
        df: Degrees of freedom of the error.
    """

    effect: float
    error: float
    df: float


@dataclass(frozen=True)
class Joined:
    """The random-effects mean of sites, on the scale of the analysis.

    Attributes:
        effect: The mean.
        interval: Its two-sided interval.
        tau: Standard deviation of true effects between sites.
        sites: Number of sites.
    """

    effect: float
    interval: Interval
    tau: float
    sites: int


def site_of(effect: float, interval: Interval, n: int, confidence: float, ratio: bool) -> Site | None:
    """Return a site from a displayed effect and its interval over *n* seeds; None if the interval is not bounded.

    The standard error is half the length of the interval on the scale of the analysis over t(1 - alpha/2, n - 1), which
    is exact for t intervals and approximate for others.

    Args:
        effect: The effect, a ratio if *ratio*.
        interval: Its interval.
        n: Number of seeds.
        confidence: 1 - alpha of the interval.
        ratio: Whether effect and interval are of a ratio.

    >>> site_of(1.0, (0.5, 2.0), 9, 0.95, ratio=True).error * 2.306 == __import__("pytest").approx(0.6931, 1e-3)
    True
    """
    check_confidence(confidence)
    values = (effect, *interval)
    if n < 2 or not all(map(math.isfinite, values)) or (ratio and min(values) <= 0):
        return None
    center, low, high = map(math.log, values) if ratio else values
    return Site(center, (high - low) / 2 / float(stdtrit(n - 1, (1 + confidence) / 2)), n - 1)


def site_difference(site: Site, other: Site, confidence: float) -> Estimate:
    """Return the difference *site* - *other* of two independent sites with its intervals.

    The standard error is sqrt(s1^2 + s2^2), with (s1^2 + s2^2)^2 / (s1^4 / df1 + s2^4 / df2) degrees of freedom
    (Welch 1947, doi:10.1093/biomet/34.1-2.28).

    Args:
        site: A site.
        other: The site that is subtracted.
        confidence: 1 - alpha.

    Raises:
        InputError: Neither of the two varies.
    """
    check_confidence(confidence)
    variances = (site.error**2, other.error**2)
    total = sum(variances)
    if not total > 0:
        raise InputError(f"sites with standard errors {site.error} and {other.error}; allowed: one above 0 at least")
    # Shares instead of powers of four, which would underflow.
    shares = [variance / total for variance in variances]
    df = 1 / sum(share**2 / one.df for share, one in zip(shares, (site, other), strict=True))
    error = math.sqrt(total)
    return student_estimate(site.effect - other.effect, error, error, df, confidence)


def paule_mandel(effects: Array, variances: Array) -> float:
    """Return the variance tau^2 of true effects between sites (Paule and Mandel 1982, doi:10.6028/jres.087.022).

    It solves Q(tau^2) = sum_i w_i (y_i - mu)^2 = k - 1 with w_i = 1 / (v_i + tau^2) and mu the mean by these weights,
    and is 0 if Q(0) is smaller already. Q falls in tau^2, so the solution is unique.

    Args:
        effects: Estimates y_i, (k,).
        variances: Their squared standard errors v_i, (k,), above 0.
    """

    def excess(tau2: float) -> float:
        weights = 1 / (variances + tau2)
        mean = float(np.sum(weights * effects) / np.sum(weights))
        return float(np.sum(weights * (effects - mean) ** 2)) - (len(effects) - 1)

    if len(effects) < 2 or excess(0.0) <= 0:
        return 0.0
    # Q(tau^2) <= sum (y - mean)^2 / tau^2, so that here it is at most k - 1.
    top = float(np.sum((effects - effects.mean()) ** 2)) / (len(effects) - 1)
    return float(brentq(excess, 0.0, top, xtol=1e-15 * top, rtol=1e-12)) if excess(top) < 0 else top


def joined(sites: Sequence[Site], confidence: float, *, at_least_fixed: bool = True) -> Joined:
    """Return the random-effects mean of independent sites with the interval of Hartung and Knapp.

    mu = sum w_i y_i / sum w_i with w_i = 1 / (s_i^2 + tau^2) and tau^2 by `paule_mandel`. The interval is
    mu +- t(1 - alpha/2, k - 1) sqrt(q / sum w_i) with q = sum w_i (y_i - mu)^2 / (k - 1) (Hartung and Knapp 2001,
    doi:10.1002/sim.791). With *at_least_fixed* q is at least 1: otherwise k estimates that happen to agree give an
    interval shorter than their own errors allow (Roever, Knapp and Friede 2015, doi:10.1186/s12874-015-0091-1; Jackson
    et al. 2017, doi:10.1002/sim.7411). With few sites it is far better than a normal interval (IntHout et al. 2014,
    doi:10.1186/1471-2288-14-25).

    Args:
        sites: Two sites or more, whose standard errors are above 0.
        confidence: 1 - alpha.
        at_least_fixed: Whether q is at least 1.

    Raises:
        InputError: There are fewer than two sites, or one has no standard error above 0.
    """
    check_confidence(confidence)
    if len(sites) < 2 or not all(site.error > 0 for site in sites):
        raise InputError(f"{len(sites)} sites; allowed: two or more, with standard errors above 0")
    effects, variances = (np.array(values) for values in zip(*((s.effect, s.error**2) for s in sites), strict=True))
    tau2, k = paule_mandel(effects, variances), len(sites)
    weights = 1 / (variances + tau2)
    mean = float(np.sum(weights * effects) / np.sum(weights))
    q = float(np.sum(weights * (effects - mean) ** 2)) / (k - 1)
    error = math.sqrt((max(1.0, q) if at_least_fixed else q) / float(np.sum(weights)))
    half = float(stdtrit(k - 1, (1 + confidence) / 2)) * error
    return Joined(mean, (mean - half, mean + half), math.sqrt(tau2), k)
