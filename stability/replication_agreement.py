"""Agreement of a claim's verdicts between a study and its replications."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stability.stats.wording import enumerated
from stability.vocabulary import VERDICTS

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

STUDY = "the study itself"


@dataclass(frozen=True)
class Agreement:
    """How the verdicts on one claim agree between a study and its replications.

    Attributes:
        word: The answer by `RULE`.
        clause: A sentence that names the verdict of each replication, to be printed after the study's own verdict.
    """

    word: str
    clause: str


def agreement(verdict: str, others: Mapping[str, str], missing: Sequence[str] = ()) -> Agreement:
    """Return how the verdicts on a claim agree between the study and its replications.

    Args:
        verdict: The claim's verdict in the study.
        others: Its verdict in each finished replication, by the replication's name.
        missing: Names of unfinished replications, which are listed but not counted.

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
    names_by_verdict: dict[str, list[str]] = {}
    for name, other in others.items():
        names_by_verdict.setdefault(other, []).append(name)
    agreeing = names_by_verdict.pop(verdict, [])
    parts = [f"also {_plain(verdict)} on {_join(agreeing)}"] if agreeing else []
    parts += [f"{_plain(other)} on {_join(names)}" for other, names in names_by_verdict.items()]
    parts += [f"{_join(missing)} {'is' if len(missing) == 1 else 'are'} missing"] if missing else []
    clause = "; ".join(parts)
    return Agreement(_word(verdicts), f"{clause[:1].upper()}{clause[1:]}.")


def _word(verdicts: Mapping[str, str]) -> str:
    if len(verdicts) == 1:
        return "not replicated yet"
    if len(distinct := {*verdicts.values()}) == 1:
        return VERDICTS[distinct.pop()].everywhere
    supported = [name for name, verdict in verdicts.items() if verdict == "supported"]
    contradicted = [name for name, verdict in verdicts.items() if verdict == "contradicted"]
    head = f"held on {len(supported)} of {len(verdicts)}" if supported else "" if contradicted else "held nowhere"
    return ", ".join(filter(None, [head, f"contradicted on {_join(contradicted)}" if contradicted else ""]))


def _plain(verdict: str) -> str:
    return verdict.replace("-", " ")


def _join(names: Sequence[str]) -> str:
    return enumerated([_plain(name) for name in names])
