"""Agreement of a claim's effects between a study and its replications, read from the differences of the effects."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from stability.stats.comparison import Interval, margin_region
from stability.stats.sites import Site, joined, site_difference, site_of
from stability.stats.wording import between, confidence_in_percent, enumerated, number
from stability.vocabulary import NOT_TESTABLE

RULE = (
    "A replication tests the claims of the study again, with its own runs and its own tuning, at the same margins and "
    "confidence. It is compared with the study by the difference of the two effects, which are independent: its "
    "standard error follows from both intervals, its degrees of freedom from Welch and Satterthwaite. Asked in this "
    "order, the effect there is: the same, if the interval of two one-sided tests of the difference lies inside the "
    "claim's margin; opposite, if both intervals exclude no difference, on different sides; stronger or weaker, if the "
    "interval of the difference excludes 0, and it leads away from no difference or towards and beyond it; else open. "
    "Verdicts are not compared: two effects that differ by nothing can lie on different sides of a margin. The joined "
    "effect is the random-effects mean of all sites, with tau² by Paule and Mandel and the interval of Hartung and "
    "Knapp, never shorter than the sites' own errors allow. With few sites tau is hardly known, and with two the "
    "interval is very wide. Each word has the error rate of one claim; they are not adjusted for the number of sites, "
    "and decide nothing."
)
"""The rule in words, for the method of a report."""

Word = Literal["same", "weaker", "stronger", "opposite", "open", "not testable"]
WORDS: tuple[Word, ...] = ("same", "stronger", "weaker", "opposite", "open", "not testable")


class Effect(Protocol):
    """What is needed of a finding: its verdict, and its effect with interval, margin and number of seeds."""

    @property
    def verdict(self) -> str:
        """The verdict."""

    @property
    def effect(self) -> float:
        """The effect, a ratio if `ratio`."""

    @property
    def interval(self) -> Interval:
        """Its interval."""

    @property
    def confidence(self) -> float:
        """Confidence of the interval."""

    @property
    def margin(self) -> float:
        """Smallest effect that matters."""

    @property
    def ratio(self) -> bool:
        """Whether the effect is a ratio."""

    @property
    def n_pairs(self) -> int:
        """Number of seeds."""


@dataclass(frozen=True)
class SiteAgreement:
    """How the effect in one replication compares with that of the study.

    Attributes:
        name: The replication.
        word: The word by `RULE`.
        difference: Its effect minus the study's; of ratios, their ratio. NaN if one of them was not tested.
        interval: Interval of the difference at the claim's confidence.
    """

    name: str
    word: Word
    difference: float
    interval: Interval


@dataclass(frozen=True)
class JoinedEffect:
    """The random-effects mean of the study and its replications.

    Attributes:
        effect: The mean; a ratio if the claim's effect is one.
        interval: Its interval at the claim's confidence (Hartung and Knapp).
        tau: Standard deviation of the true effects between sites; of logarithms if the effect is a ratio.
        sites: Number of sites.
    """

    effect: float
    interval: Interval
    tau: float
    sites: int


@dataclass(frozen=True)
class Agreement:
    """How the effects of one claim agree between a study and its replications.

    Attributes:
        word: The words of all replications in short.
        clause: A sentence that names the word of each replication and the joined effect.
        sites: Each finished replication.
        joined: The joined effect; None if fewer than two sites have an interval.
    """

    word: str
    clause: str
    sites: tuple[SiteAgreement, ...] = ()
    joined: JoinedEffect | None = None


def agreement(own: Effect, others: Mapping[str, Effect], missing: Sequence[str] = ()) -> Agreement:
    """Return how the effects of a claim agree between the study and its replications.

    Args:
        own: The claim's finding in the study.
        others: Its finding in each finished replication, by the replication's name.
        missing: Names of unfinished replications, which are listed but not counted.
    """
    sites = tuple(_compared(name, own, other) for name, other in others.items())
    mean = _joined([own, *others.values()], own)
    by_word = {word: [_plain(site.name) for site in sites if site.word == word] for word in WORDS}
    parts = [f"{word} on {enumerated(names)}" for word, names in by_word.items() if names]
    if missing:
        parts.append(f"{enumerated([_plain(name) for name in missing])} {'is' if len(missing) == 1 else 'are'} missing")
    clause = "; ".join(parts)
    return Agreement(_summary(by_word, len(sites)), f"{_capital(clause)}.{_told(mean, own)}", sites, mean)


def _summary(by_word: Mapping[Word, Sequence[str]], count: int) -> str:
    """Return the words of all replications in short.

    >>> _summary({"same": ["a"], "opposite": ["b"]}, 2), _summary({"same": ["a", "b"]}, 2), _summary({}, 0)
    ('same on 1 of 2, opposite on b', 'same everywhere', 'not replicated yet')
    """
    if not count:
        return "not replicated yet"
    for word, names in by_word.items():
        if len(names) == count:
            return f"{word} everywhere"
    same = [f"same on {len(by_word['same'])} of {count}"] if by_word.get("same") else []
    return ", ".join(
        [*same, *(f"{word} on {enumerated(names)}" for word, names in by_word.items() if names and word != "same")]
    )


def _compared(name: str, own: Effect, other: Effect) -> SiteAgreement:
    """Return how a replication's effect compares with the study's, by `RULE`."""
    here, there = _site(own), _site(other)
    if here is None or there is None:
        untested = NOT_TESTABLE in (own.verdict, other.verdict)
        return SiteAgreement(name, "not testable" if untested else "open", math.nan, (-math.inf, math.inf))
    if not here.error and not there.error:
        difference = there.effect - here.effect
        return SiteAgreement(name, "open", _shown(difference, own.ratio), (-math.inf, math.inf))
    estimate = site_difference(there, here, own.confidence)
    low, high = (_shown(end, own.ratio) for end in estimate.interval)
    margin = margin_region(own.margin, own.ratio)
    narrow = [_shown(end, own.ratio) for end in estimate.equivalence_interval]
    word: Word = "open"
    if margin[0] < narrow[0] and narrow[1] < margin[1]:
        word = "same"
    elif _side(own) * _side(other) < 0:
        word = "opposite"
    elif estimate.interval[0] > 0 or estimate.interval[1] < 0:
        word = "stronger" if estimate.center * here.effect > 0 else "weaker"
    return SiteAgreement(name, word, _shown(estimate.center, own.ratio), (low, high))


def _joined(findings: Sequence[Effect], own: Effect) -> JoinedEffect | None:
    sites = [site for finding in findings if (site := _site(finding)) is not None and site.error > 0]
    if len(sites) < 2:
        return None
    mean = joined(sites, own.confidence)
    low, high = (_shown(end, own.ratio) for end in mean.interval)
    return JoinedEffect(_shown(mean.effect, own.ratio), (low, high), mean.tau, mean.sites)


def _site(finding: Effect) -> Site | None:
    if finding.verdict == NOT_TESTABLE:
        return None
    return site_of(finding.effect, finding.interval, finding.n_pairs, finding.confidence, finding.ratio)


def _side(finding: Effect) -> int:
    """Return 1 if the interval lies above no difference, -1 if below, 0 if it includes it."""
    none = 1.0 if finding.ratio else 0.0
    return int(finding.interval[0] > none) - int(finding.interval[1] < none)


def _shown(value: float, ratio: bool) -> float:
    """Return a value of the analysis as it is displayed: the exponential of a logarithm."""
    if not ratio:
        return value
    return math.inf if value > 700 else math.exp(value)


def _told(mean: JoinedEffect | None, own: Effect) -> str:
    if mean is None:
        return ""
    logs = " of logarithms" if own.ratio else ""
    head = f" The {mean.sites} sites joined: {number(mean.effect)}{'×' if own.ratio else ''}"
    if mean.sites == 2:
        return f"{head} (from two sites no useful interval follows)."
    return (
        f"{head} ({confidence_in_percent(own.confidence)} interval {between(mean.interval, own.ratio)}; tau "
        f"{number(mean.tau)}{logs})."
    )


def _capital(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}"


def _plain(name: str) -> str:
    return name.replace("-", " ")
