"""Sensitivity analysis of a claim: the same comparison under other assumptions, and whether the verdict holds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from stability import contrasts, stats
from stability.contrasts import contrast
from stability.contrasts.by_cell import Levels
from stability.stats import CellEffect, Comparison
from stability.stats.comparison import Array, Estimate, paired_values
from stability.stats.mixed import mixed_model
from stability.stats.nonparametric import rank_estimate, sign_flip_estimate
from stability.stats.verdicts import Expect
from stability.stats.wording import between, enumerated, number
from stability.vocabulary import NOT_TESTABLE

AnalysisStatus = Literal["done", "boundary", "not-converged", "not-applicable"]


@dataclass(frozen=True)
class Check:
    """One claim tested again by another method, or without each of its seeds.

    Attributes:
        name: Key of the check.
        method: The method in words.
        effect: Effect on the scale of the primary result.
        interval: Interval of the effect; for "leave-one-seed-out" the range of the effects.
        p_value: p-value of the method.
        verdict: Verdict; empty if the check gave none.
        outcome: Whether and how the analysis succeeded.
        note: Why there is no verdict, or a caveat.
    """

    name: str
    method: str
    effect: float
    interval: tuple[float, float]
    p_value: float
    verdict: str
    outcome: AnalysisStatus
    note: str = ""


@dataclass(frozen=True)
class Sensitivity:
    """All checks of a claim, whether all agree with the primary verdict, and a sentence that says which do not."""

    agrees: bool
    sentence: str
    checks: tuple[Check, ...] = ()


@dataclass(frozen=True)
class Question:
    """What determines a claim's verdict in addition to the data.

    Attributes:
        contrast: Name of the contrast.
        supplied: The arguments of the contrast besides the arms.
        expect: The expected direction.
        margin: Smallest effect that matters, on the displayed scale.
        levels: Axes and levels of the claim's cells in words.
        cells: The effects in these cells, by which every method judges them.
    """

    contrast: str
    supplied: Mapping[str, Any]
    expect: Expect
    margin: float
    levels: tuple[Levels, ...] = ()
    cells: tuple[CellEffect, ...] = ()

    def verdict(self, comparison: Comparison, min_pairs: int = 2) -> str:
        """Return the verdict on a comparison without limiting missing seeds (the primary result has checked them)."""
        return stats.verdict(
            comparison,
            expect=self.expect,
            margin=self.margin,
            min_pairs=min_pairs,
            failure_limit=1.0,
            cells=self.cells,
        ).verdict

    def of(self, arms: Sequence[Array]) -> Question:
        """Return the question with the effects in the cells of other data."""
        cells = contrasts.in_each_cell(self.contrast, *arms, supplied=self.supplied, cells=self.levels)
        return dataclasses.replace(self, cells=cells)


NOTHING = Sensitivity(True, "Nothing was tested, so there is nothing to check.")


def sensitivity(primary: Comparison, verdict: str, arms: Sequence[Array], question: Question) -> Sensitivity:
    """Return the verdict on a claim by sign flips, by ranks, by a mixed model, and without each of its seeds.

    A claim that was not testable has no checks.

    Args:
        primary: The primary comparison.
        verdict: The primary verdict.
        arms: The (seeds, levels, cells) arrays passed to the contrast.
        question: What determines the verdict.
    """
    if verdict == NOT_TESTABLE or not primary.testable:
        return NOTHING
    checks = (
        *_by_other_tests(primary, question),
        _by_mixed_model(primary, arms, question),
        _without_each_seed(primary, verdict, arms, question),
    )
    disagreements = [sentence for check in checks if (sentence := _disagreement(check, verdict, primary.ratio))]
    checked = [NAMES[check.name] for check in checks if check.verdict]
    agreement = f"The verdict, {verdict}, is the same {enumerated(checked)}."
    return Sensitivity(not disagreements, " ".join(disagreements) if disagreements else agreement, checks)


NAMES = {
    "sign-flips": "by sign flips",
    "ranks": "by ranks",
    "mixed-model": "by a mixed model",
    "leave-one-seed-out": "without any one seed",
}


def _by_other_tests(primary: Comparison, question: Question) -> Iterator[Check]:
    per_seed = np.array(primary.per_seed)
    for name, method, estimate_of in (
        ("sign-flips", "sign-flip test of the mean", sign_flip_estimate),
        ("ranks", "Wilcoxon signed-rank test, Hodges-Lehmann estimate", rank_estimate),
    ):
        estimate = _widened(estimate_of(per_seed, primary.confidence), primary.allowance)
        unbounded = math.isinf(estimate.interval[0])
        note = f"{primary.n} seeds are too few for it to exclude anything at this confidence" if unbounded else ""
        yield _check(name, method, estimate, primary, question, "done", note)


def _widened(estimate: Estimate, allowance: float) -> Estimate:
    (low, high), (narrow_low, narrow_high) = estimate.interval, estimate.equivalence_interval
    return dataclasses.replace(
        estimate,
        interval=(low - allowance, high + allowance),
        equivalence_interval=(narrow_low - allowance, narrow_high + allowance),
    )


def _by_mixed_model(primary: Comparison, arms: Sequence[Array], question: Question) -> Check:
    kind = contrast[question.contrast].traits.mixed
    name, method = "mixed-model", "mixed model with variance components (REML)"
    if not kind:
        return _none(name, method, "a mixed model has no term for what this contrast compares")
    left, right = _on_analysis_scale(arms, question)
    used = np.isfinite(left + right).all(axis=(1, 2))
    left, right = left[used], right[used]
    levels = np.array(question.supplied["levels"], dtype=float) if kind != "level" else None
    if levels is not None and kind == "change":
        extremes = [int(levels.argmin()), int(levels.argmax())]
        left, right, levels = left[:, extremes], right[:, extremes], np.array([0.0, 1.0])
    model = mixed_model(left, right, confidence=primary.confidence, levels=levels)
    if model.estimate is None or model.fit == "not-converged":
        return _none(name, method, model.reason, "not-applicable" if model.fit == "not-applicable" else "not-converged")
    outcome: AnalysisStatus = "boundary" if model.fit == "boundary" else "done"
    note = f"{model.reason}, so the interval is likely too narrow" if model.reason else ""
    return _check(name, method, model.estimate, primary, question, outcome, note)


def _on_analysis_scale(arms: Sequence[Array], question: Question) -> tuple[Array, Array]:
    """Return both arms as (seeds, levels, cells) on the scale of the analysis, with NaN for unusable values."""
    on, shape = contrast[question.contrast].traits.on, np.shape(arms[0])
    budget = question.supplied["budget"]
    raw = [np.minimum(arm, budget) if on == "times" else np.asarray(arm, dtype=float) for arm in arms]
    left, right = (side.reshape(shape) for side in paired_values(*raw))
    return (np.log(left), np.log(right)) if on in ("times", "raw") else (left, right)


def _without_each_seed(primary: Comparison, verdict: str, arms: Sequence[Array], question: Question) -> Check:
    name, method = "leave-one-seed-out", "the primary test without each seed in turn"
    flat = [side.reshape(len(side), -1) for side in paired_values(*arms)]
    # The time of an event that did not happen is infinite; its seed still counts.
    times = contrast[question.contrast].traits.on == "times"
    seeds = np.arange(len(flat[0])) if times else np.flatnonzero(np.isfinite(flat[0] + flat[1]).all(axis=1))
    comparisons, without = {}, {}
    for seed in seeds.tolist():
        kept = [np.delete(np.asarray(arm), seed, axis=0) for arm in arms]
        comparisons[seed] = contrasts.compare(question.contrast, *kept, supplied=question.supplied)
        without[seed] = question.of(kept)
    if not comparisons or not all(one.testable for one in comparisons.values()):
        return _none(name, method, "without one seed nothing could be tested")
    effects = [one.effect for one in comparisons.values()]
    verdicts = {seed: without[seed].verdict(one) for seed, one in comparisons.items()}
    changed = {seed: word for seed, word in verdicts.items() if word != verdict}
    note = "; ".join(
        _without_seeds([seed for seed, one in changed.items() if one == word], word)
        for word in dict.fromkeys(changed.values())
    )
    return Check(
        name=name,
        method=method,
        effect=primary.effect,
        interval=(min(effects), max(effects)),
        p_value=max(one.p_value for one in comparisons.values()),
        verdict=next(iter(changed.values()), verdict),
        outcome="done",
        note=note,
    )


def _without_seeds(seeds: Sequence[int], word: str) -> str:
    which = (
        f"seed {seeds[0]}" if len(seeds) == 1 else f"any one of the seeds {enumerated([str(seed) for seed in seeds])}"
    )
    return f"{word} without {which}"


def _check(
    name: str,
    method: str,
    estimate: Estimate,
    primary: Comparison,
    question: Question,
    outcome: AnalysisStatus,
    note: str,
) -> Check:
    shown = estimate.displayed(primary.ratio)
    comparison = dataclasses.replace(
        primary,
        effect=shown.center,
        interval=shown.interval,
        equivalence_interval=shown.equivalence_interval,
        p_value=shown.p_value,
    )
    word = question.verdict(comparison)
    return Check(name, method, comparison.effect, comparison.interval, comparison.p_value, word, outcome, note)


def _none(name: str, method: str, note: str, outcome: AnalysisStatus = "not-applicable") -> Check:
    return Check(name, method, math.nan, (math.nan, math.nan), math.nan, "", outcome, note)


def _disagreement(check: Check, verdict: str, ratio: bool) -> str:
    if not check.verdict or check.verdict == verdict:
        return ""
    if check.name == "leave-one-seed-out":
        return f"Leaving out one seed changes the verdict, {verdict}: {check.note}."
    statement = f"{NAMES[check.name].capitalize()} it is {check.verdict}, not {verdict}"
    numbers = f" (effect {number(check.effect)}, interval {between(check.interval, ratio)})"
    return f"{statement}{numbers}{': ' + check.note if check.note else ''}."
