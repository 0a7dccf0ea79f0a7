"""What a study's replications make of its claims, by a rule on the words of their verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

RULE = (
    "A replication tests the claims of the study again, with its own runs and its own tuning, at the same margins and "
    "confidence. If the study and all finished replications have the same verdict, the claim has it everywhere (if "
    "supported: held everywhere). Otherwise “held on N of M” means supported in N of the M studies (the original plus "
    "its finished replications); contradictions are listed. Verdicts are compared side by side and nothing is pooled, "
    "so there is no further p-value. A claim is held everywhere by mistake only if every test errs, so this word needs "
    "no correction for the number of tests; one contradiction among several replications is weaker evidence than one "
    "that stands alone."
)
"""The rule in words, for the method of a report."""

UNANIMOUS = {
    "supported": "held everywhere",
    "contradicted": "contradicted everywhere",
    "equivalent": "equivalent everywhere",
    "inconclusive": "inconclusive everywhere",
    "not-testable": "tested nowhere",
}
"""What is said where all verdicts are the same."""

STUDY = "the study itself"


@dataclass(frozen=True)
class Agreement:
    """What came of one claim over a study and its replications.

    *word* is the answer by `RULE`, *clause* says it beside the study's own verdict, replication by replication.
    """

    word: str
    clause: str


def agreement(verdict: str, others: Mapping[str, str], missing: Sequence[str] = ()) -> Agreement:
    """Return what replications make of a claim, from its *verdict* in the study and in *others*, by replication.

    *missing* are the replications that are not finished, which are named and not counted.

    >>> agreement("supported", {"digits": "supported", "other-seeds": "inconclusive"}).word
    'held on 2 of 3'
    >>> agreement("supported", {"digits": "supported", "other-seeds": "inconclusive"}).clause
    'Also supported on digits; inconclusive on other seeds.'
    >>> agreement("supported", {"digits": "contradicted"}, ["shapes"]).word
    'held on 1 of 2, contradicted on digits'
    >>> agreement("supported", {"digits": "contradicted"}, ["shapes"]).clause
    'Contradicted on digits; shapes is missing.'
    """
    verdicts = {STUDY: verdict, **others}
    groups: dict[str, list[str]] = {}
    for name, word in others.items():
        groups.setdefault(word, []).append(name)
    same = groups.pop(verdict, [])
    parts = [f"also {_plain(verdict)} on {_listed(same)}"] if same else []
    parts += [f"{_plain(word)} on {_listed(names)}" for word, names in groups.items()]
    parts += [f"{_listed(missing)} {'is' if len(missing) == 1 else 'are'} missing"] if missing else []
    clause = "; ".join(parts)
    return Agreement(_word(verdicts), f"{clause[:1].upper()}{clause[1:]}.")


def _word(verdicts: Mapping[str, str]) -> str:
    if len(verdicts) == 1:
        return "not replicated yet"
    if len(different := {*verdicts.values()}) == 1:
        return UNANIMOUS[different.pop()]
    held = [name for name, verdict in verdicts.items() if verdict == "supported"]
    against = [name for name, verdict in verdicts.items() if verdict == "contradicted"]
    head = f"held on {len(held)} of {len(verdicts)}" if held else "" if against else "held nowhere"
    return ", ".join(filter(None, [head, f"contradicted on {_listed(against)}" if against else ""]))


def _plain(verdict: str) -> str:
    return verdict.replace("-", " ")


def _listed(names: Sequence[str]) -> str:
    plain = [name.replace("-", " ") for name in names]
    return " and ".join(filter(None, [", ".join(plain[:-1]), plain[-1]]))
