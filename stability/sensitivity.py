"""The same claim under other assumptions: each check beside the primary result, and a disagreement said in words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from stability import contrasts, stats
from stability.contrasts import contrast
from stability.stats import Comparison
from stability.stats.comparison import Array, Estimate, paired_values
from stability.stats.distribution_free import rank_estimate, sign_flip_estimate
from stability.stats.mixed import mixed_model
from stability.stats.verdicts import Expect
from stability.stats.wording import between, number

Outcome = Literal["done", "boundary", "not-converged", "not-applicable"]


@dataclass(frozen=True)
class Check:
    """One claim judged once more: by another method, or without any one of its seeds.

    *effect* and *interval* are on the scale of the primary result; for "leave-one-seed-out" the interval is the range
    of the effects. *verdict* is empty where the check gave none, and *note* says why, or what to bear in mind.
    """

    name: str
    method: str
    effect: float
    interval: tuple[float, float]
    p_value: float
    verdict: str
    outcome: Outcome
    note: str = ""


@dataclass(frozen=True)
class Sensitivity:
    """All checks of a claim, whether each reaches the primary verdict, and a sentence that says so or which do not."""

    agrees: bool
    sentence: str
    checks: tuple[Check, ...] = ()


@dataclass(frozen=True)
class Question:
    """What decides a claim's verdict beside the data: contrast, what it is supplied with, direction and margin."""

    contrast: str
    supplied: Mapping[str, Any]
    expect: Expect
    margin: float

    def verdict(self, comparison: Comparison, min_pairs: int = 2) -> str:
        """Return the verdict on a comparison, whatever seeds are missing (the primary result has seen to those)."""
        return stats.verdict(
            comparison, expect=self.expect, margin=self.margin, min_pairs=min_pairs, failure_limit=1.0
        ).verdict


NOTHING = Sensitivity(True, "Nothing was tested, so there is nothing to check.")


def sensitivity(primary: Comparison, verdict: str, arms: Sequence[Array], question: Question) -> Sensitivity:
    """Return how the verdict on a claim fares under sign flips, ranks, a mixed model, and without each of its seeds.

    *arms* are the (seeds, levels, cells) arrays that the contrast took. A claim that was not testable has no checks.
    """
    if verdict == "not-testable" or not primary.testable:
        return NOTHING
    checks = (
        *_by_other_tests(primary, question),
        _by_mixed_model(primary, arms, question),
        _without_each_seed(primary, verdict, arms, question),
    )
    apart = [sentence for check in checks if (sentence := _disagreement(check, verdict, primary.ratio))]
    judged = [NAMES[check.name] for check in checks if check.verdict]
    agreed = f"The verdict, {verdict}, is the same {_listed(judged)}."
    return Sensitivity(not apart, " ".join(apart) if apart else agreed, checks)


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
        estimate = estimate_of(per_seed, primary.confidence)
        unbounded = math.isinf(estimate.interval[0])
        note = f"{primary.n} seeds are too few for it to exclude anything at this confidence" if unbounded else ""
        yield _check(name, method, estimate, primary, question, "done", note)


def _by_mixed_model(primary: Comparison, arms: Sequence[Array], question: Question) -> Check:
    kind = contrast[question.contrast].traits.get("mixed", "")
    name, method = "mixed-model", "mixed model with variance components (REML)"
    if not kind:
        return _none(name, method, "a mixed model has no term for what this contrast compares")
    left, right = _analysed(arms, question)
    used = np.isfinite(left + right).all(axis=(1, 2))
    left, right = left[used], right[used]
    levels = np.array(question.supplied["levels"], dtype=float) if kind != "level" else None
    if levels is not None and kind == "change":
        ends = [int(levels.argmin()), int(levels.argmax())]
        left, right, levels = left[:, ends], right[:, ends], np.array([0.0, 1.0])
    model = mixed_model(left, right, confidence=primary.confidence, levels=levels)
    if model.estimate is None or model.fit == "not-converged":
        return _none(name, method, model.reason, "not-applicable" if model.fit == "not-applicable" else "not-converged")
    outcome: Outcome = "boundary" if model.fit == "boundary" else "done"
    note = f"{model.reason}, so the interval is likely too narrow" if model.reason else ""
    return _check(name, method, model.estimate, primary, question, outcome, note)


def _analysed(arms: Sequence[Array], question: Question) -> tuple[Array, Array]:
    """Return both arms as (seeds, levels, cells) on the scale of the analysis, NaN where a value is not usable."""
    on, shape = contrast[question.contrast].traits["on"], np.shape(arms[0])
    budget = question.supplied["budget"]
    raw = [np.minimum(arm, budget) if on == "times" else np.asarray(arm, dtype=float) for arm in arms]
    left, right = (side.reshape(shape) for side in paired_values(*raw))
    return (np.log(left), np.log(right)) if on in ("times", "raw") else (left, right)


def _without_each_seed(primary: Comparison, verdict: str, arms: Sequence[Array], question: Question) -> Check:
    name, method = "leave-one-seed-out", "the primary test without each seed in turn"
    flat = [side.reshape(len(side), -1) for side in paired_values(*arms)]
    # A time that never came is infinite, and its seed counts all the same.
    times = contrast[question.contrast].traits["on"] == "times"
    seeds = np.arange(len(flat[0])) if times else np.flatnonzero(np.isfinite(flat[0] + flat[1]).all(axis=1))
    found = {}
    for seed in seeds.tolist():
        kept = [np.delete(np.asarray(arm), seed, axis=0) for arm in arms]
        found[seed] = contrasts.compare(question.contrast, *kept, supplied=question.supplied)
    if not found or not all(each.testable for each in found.values()):
        return _none(name, method, "without one seed nothing could be tested")
    effects = [each.effect for each in found.values()]
    words = {seed: question.verdict(each) for seed, each in found.items()}
    other = {seed: word for seed, word in words.items() if word != verdict}
    note = "; ".join(
        _told([seed for seed, one in other.items() if one == word], word) for word in dict.fromkeys(other.values())
    )
    return Check(
        name=name,
        method=method,
        effect=primary.effect,
        interval=(min(effects), max(effects)),
        p_value=max(each.p_value for each in found.values()),
        verdict=next(iter(other.values()), verdict),
        outcome="done",
        note=note,
    )


def _told(seeds: Sequence[int], word: str) -> str:
    which = f"seed {seeds[0]}" if len(seeds) == 1 else f"any one of the seeds {_listed([str(seed) for seed in seeds])}"
    return f"{word} without {which}"


def _check(
    name: str,
    method: str,
    estimate: Estimate,
    primary: Comparison,
    question: Question,
    outcome: Outcome,
    note: str,
) -> Check:
    shown = _exp if primary.ratio else float
    judged = dataclasses.replace(
        primary,
        effect=shown(estimate.center),
        interval=(shown(estimate.interval[0]), shown(estimate.interval[1])),
        equivalence_interval=(shown(estimate.equivalence_interval[0]), shown(estimate.equivalence_interval[1])),
        p_value=estimate.p_value,
    )
    word = question.verdict(judged)
    return Check(name, method, judged.effect, judged.interval, judged.p_value, word, outcome, note)


def _none(name: str, method: str, note: str, outcome: Outcome = "not-applicable") -> Check:
    return Check(name, method, math.nan, (math.nan, math.nan), math.nan, "", outcome, note)


def _disagreement(check: Check, verdict: str, ratio: bool) -> str:
    if not check.verdict or check.verdict == verdict:
        return ""
    if check.name == "leave-one-seed-out":
        return f"Leaving out one seed changes the verdict, {verdict}: {check.note}."
    told = f"{NAMES[check.name].capitalize()} it is {check.verdict}, not {verdict}"
    shown = f" (effect {number(check.effect)}, interval {between(check.interval, ratio)})"
    return f"{told}{shown}{': ' + check.note if check.note else ''}."


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _exp(x: float) -> float:
    return math.inf if x > 700 else math.exp(x)
