"""The result type of every comparison of two arms, and the t interval over seeds that most of them use."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

from stability.registry import InputError
from stability.stats.wording import Clause, between, confidence_in_percent, number, seeds

Array = NDArray[np.float64]
Interval = tuple[float, float]
ComparisonStatus = Literal[
    "tested", "constant", "too-few-pairs", "not-positive", "no-spread", "all-censored", "nothing-happened"
]

# Magnitudes above LARGEST count as infinite, because their square overflows; magnitudes below SMALLEST count as 0.
LARGEST = 1e150
SMALLEST = 1e-150
# Numbers whose relative difference is at most this are treated as equal.
ROUNDING = 16 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Comparison:
    """The comparison of two arms over the same seeds: effect, intervals, p-value and a sentence.

    Attributes:
        effect: a / b if `ratio` (equal arms give 1), else a - b (equal arms give 0).
        interval: Two-sided interval at `confidence`.
        equivalence_interval: The 1 - 2 alpha interval. It lies inside a margin exactly when two one-sided tests at
            alpha (TOST) both reject.
        p_value: Two-sided p-value; NaN if nothing could be tested.
        n: Number of seed pairs used.
        method: The test or interval, by name.
        assumptions: What the method assumes.
        sentence: The result in plain words.
        confidence: 1 - alpha.
        ratio: Whether the effect is a ratio.
        sd: Standard deviation of `per_seed`.
        per_seed: The tested numbers, one per seed, on the scale of the analysis (logs if `ratio`).
        left_out: Number of pairs without a finite value.
        outcome: "tested"; "constant" (the differences do not vary, so an exact sign interval replaces the t interval);
            otherwise the reason why nothing could be tested. The intervals are then unbounded.
        problem: That reason in words; empty if a test was possible.
        allowance: What both ends of the intervals were moved by, on the scale of the analysis, because the numbers are
            known only up to the steps of a grid.
    """

    effect: float
    interval: Interval
    equivalence_interval: Interval
    p_value: float
    n: int
    method: str
    assumptions: str
    sentence: str
    confidence: float
    ratio: bool = False
    sd: float = math.nan
    per_seed: tuple[float, ...] = ()
    left_out: int = 0
    outcome: ComparisonStatus = "tested"
    problem: str = ""
    allowance: float = 0.0

    @property
    def testable(self) -> bool:
        """Return whether the intervals and the p-value come from a test."""
        return self.outcome in ("tested", "constant")

    @property
    def no_difference(self) -> float:
        """Return the effect of two equal arms: 1 for a ratio, 0 for a difference."""
        return 1.0 if self.ratio else 0.0


@dataclass(frozen=True)
class Account:
    """The words of a comparison.

    Attributes:
        method: The test or interval, by name.
        assumptions: What the method assumes.
        quantity: Name of the effect, such as ``ratio of steps``.
        clause: Returns the clause that states an effect.
        ratio: Whether the effect is a ratio.
    """

    method: str
    assumptions: str
    quantity: str
    clause: Clause
    ratio: bool


@dataclass(frozen=True)
class Estimate:
    """An effect with its intervals on the scale of the analysis (logs are not yet converted to ratios).

    Attributes:
        center: The effect.
        interval: Two-sided interval at 1 - alpha.
        equivalence_interval: Interval at 1 - 2 alpha.
        p_value: Two-sided p-value.
        sd: Standard deviation of one number per seed.
        outcome: Whether a test was made, or the numbers are constant.
    """

    center: float
    interval: Interval
    equivalence_interval: Interval
    p_value: float
    sd: float
    outcome: ComparisonStatus = "tested"

    def displayed(self, ratio: bool) -> Estimate:
        """Return the estimate on the displayed scale: with *ratio*, the exponentials of logs."""
        if not ratio:
            return self
        (low, high), (narrow_low, narrow_high) = self.interval, self.equivalence_interval
        interval, equivalence_interval = (_exp(low), _exp(high)), (_exp(narrow_low), _exp(narrow_high))
        return replace(self, center=_exp(self.center), interval=interval, equivalence_interval=equivalence_interval)


UNBOUNDED: Interval = (-math.inf, math.inf)
# The phrase of a sentence whose interval includes no difference.
OPEN = "the direction is not settled"


def build_comparison(
    estimate: Estimate,
    account: Account,
    per_seed: Array,
    confidence: float,
    left_out: int = 0,
    note: str = "",
) -> Comparison:
    """Return an estimate as a comparison on the displayed scale, with its sentence.

    Args:
        estimate: Effect and intervals on the scale of the analysis.
        account: Words of the comparison.
        per_seed: The tested numbers, one per seed.
        confidence: 1 - alpha.
        left_out: Number of pairs without a finite value.
        note: Text appended to the sentence.
    """
    shown = estimate.displayed(account.ratio)
    effect, interval, n = shown.center, shown.interval, len(per_seed)
    sentence = (
        f"{account.clause(effect)} ({account.quantity} {number(effect)}, "
        f"{confidence_in_percent(confidence)} CI {between(interval, account.ratio)}, n = {seeds(n)})"
    )
    if estimate.outcome == "constant":
        sentence += f"; all {seeds(n)} give the same"
    elif interval[0] <= (1.0 if account.ratio else 0.0) <= interval[1]:
        sentence += f"; {OPEN}"
    return Comparison(
        effect=effect,
        interval=interval,
        equivalence_interval=shown.equivalence_interval,
        p_value=estimate.p_value,
        n=n,
        method=account.method if estimate.outcome == "tested" else "exact sign interval of the median",
        assumptions=account.assumptions,
        sentence=sentence + note + _left_out(left_out, n) + ".",
        confidence=confidence,
        ratio=account.ratio,
        sd=estimate.sd,
        per_seed=tuple(per_seed.tolist()),
        left_out=left_out,
        outcome=estimate.outcome,
    )


def untestable(
    outcome: ComparisonStatus,
    problem: str,
    account: Account,
    confidence: float,
    *,
    per_seed: Array | None = None,
    n: int | None = None,
    left_out: int = 0,
) -> Comparison:
    """Return the comparison of data that allow no test, with unbounded intervals.

    Args:
        outcome: Why no test is possible.
        problem: The same in words.
        account: Words of the comparison.
        confidence: 1 - alpha.
        per_seed: Numbers that exist, one per seed.
        n: Number of pairs that exist; default ``len(per_seed)``.
        left_out: Number of pairs without a finite value.
    """
    per_seed = np.empty(0) if per_seed is None else per_seed
    n = len(per_seed) if n is None else n
    mean = float(np.mean(per_seed)) if per_seed.size else math.nan
    shown = Estimate(mean, UNBOUNDED, UNBOUNDED, math.nan, math.nan).displayed(account.ratio)
    return Comparison(
        effect=shown.center,
        interval=shown.interval,
        equivalence_interval=shown.equivalence_interval,
        p_value=math.nan,
        n=n,
        method=account.method,
        assumptions=account.assumptions,
        sentence=f"Nothing could be tested: {problem}{_left_out(left_out, n)}.",
        confidence=confidence,
        ratio=account.ratio,
        per_seed=tuple(per_seed.tolist()),
        left_out=left_out,
        outcome=outcome,
        problem=problem,
    )


def compare_seeds(per_seed: Array, account: Account, confidence: float, resolution: float) -> Comparison:
    """Return the paired t comparison of one number per seed, NaN for a seed without one.

    Args:
        per_seed: The numbers, (seeds,).
        account: Words of the comparison.
        confidence: 1 - alpha.
        resolution: Magnitude of the values from which the numbers were computed: numbers that differ only by its
            rounding error are equal.
    """
    check_confidence(confidence)
    used = per_seed[np.isfinite(per_seed)]
    left_out = len(per_seed) - len(used)
    if len(used) < 2:
        problem = f"{len(used)} usable pair{'s' if len(used) != 1 else ''}, and a test needs at least 2"
        return untestable("too-few-pairs", problem, account, confidence, per_seed=used, left_out=left_out)
    return build_comparison(estimate_mean(used, confidence, resolution), account, used, confidence, left_out)


def estimate_mean(per_seed: Array, confidence: float, resolution: float) -> Estimate:
    """Return the t estimate of the mean, or the sign estimate if the numbers are equal up to rounding."""
    tolerance = max(ROUNDING * resolution, SMALLEST)
    if np.std(per_seed, ddof=1) <= tolerance:
        return sign_estimate(per_seed, confidence, tolerance)
    return t_estimate(per_seed, confidence)


def t_estimate(per_seed: Array, confidence: float) -> Estimate:
    """Return mean +- t SD / sqrt(n) with n - 1 degrees of freedom, at 1 - alpha and at 1 - 2 alpha."""
    center, sd = float(np.mean(per_seed)), float(np.std(per_seed, ddof=1))
    return student_estimate(center, sd / math.sqrt(len(per_seed)), sd, len(per_seed) - 1, confidence)


def student_estimate(center: float, error: float, sd: float, df: float, confidence: float) -> Estimate:
    """Return *center* with t intervals of *df* degrees of freedom.

    Args:
        center: The effect.
        error: Standard error of the effect.
        sd: Standard deviation of one number per seed.
        df: Degrees of freedom.
        confidence: 1 - alpha.
    """
    alpha = 1 - confidence
    wide, narrow = (float(stdtrit(df, 1 - tail)) * error for tail in (alpha / 2, alpha))
    p_value = 2 * float(stdtr(df, -abs(center) / error))
    return Estimate(center, (center - wide, center + wide), (center - narrow, center + narrow), p_value, sd)


def sign_estimate(per_seed: Array, confidence: float, tolerance: float) -> Estimate:
    """Return the exact sign interval of the median of constant differences: a single point, or unbounded.

    All n values lie on one side of any other point with probability at most 2^(1-n). The interval is therefore a point
    if 2^(1-n) <= alpha (n = 6 at 5%); a one-sided bound needs 2^-n <= alpha.
    """
    n, alpha = len(per_seed), 1 - confidence
    center = float(np.median(per_seed))
    center = 0.0 if abs(center) <= tolerance else center
    point = (center, center)
    return Estimate(
        center=center,
        interval=point if 2.0 ** (1 - n) <= alpha else UNBOUNDED,
        equivalence_interval=point if 2.0**-n <= alpha else UNBOUNDED,
        p_value=1.0 if center == 0 else 2.0 ** (1 - n),
        sd=0.0,
        outcome="constant",
    )


def paired_values(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    """Return two arms as (seeds, cells) arrays aligned by seed on axis 0, with NaN for values that are not finite.

    Raises:
        InputError: The shapes differ or there is no seed axis.
    """
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.shape != right.shape or left.ndim == 0:
        raise InputError(f"arms of shapes {left.shape} and {right.shape}; allowed: equal shapes with seeds on axis 0")
    if 0 in left.shape[1:]:
        raise InputError(f"arms of shape {left.shape}; allowed: at least one value a seed")
    flat = (len(left), math.prod(left.shape[1:]))
    return _finite(left).reshape(flat), _finite(right).reshape(flat)


def check_confidence(confidence: float) -> None:
    """Raise `InputError` unless 0.5 < confidence < 1, so that the 1 - 2 alpha interval exists."""
    if not 0.5 < confidence < 1:
        raise InputError(f"confidence {confidence!r}; allowed: above 0.5 and below 1")


def margin_region(margin: float, ratio: bool) -> Interval:
    """Return the range of effects that count as equal: [1 / (1 + m), 1 + m] for ratios, [-m, m] for differences.

    >>> margin_region(0.25, ratio=True), margin_region(0.25, ratio=False)
    ((0.8, 1.25), (-0.25, 0.25))
    """
    if not (0 < margin < math.inf):
        raise InputError(f"margin {margin!r}; allowed: a finite number above 0")
    return (1 / (1 + margin), 1 + margin) if ratio else (-margin, margin)


def size_of(*values: Array) -> float:
    """Return the largest finite magnitude among the values, or 0 if there is none."""
    return max((float(np.nanmax(np.abs(v))) for v in values if np.isfinite(v).any()), default=0.0)


def _finite(values: Array) -> Array:
    usable = np.isfinite(values) & (np.abs(values) <= LARGEST)
    return np.where(usable, values, np.nan)


def _left_out(left_out: int, n: int) -> str:
    if not left_out:
        return ""
    verb = "is" if left_out == 1 else "are"
    return f"; {left_out} of {seeds(left_out + n)} had no finite value and {verb} left out"


def _exp(x: float) -> float:
    return math.inf if x > 700 else math.exp(x)
