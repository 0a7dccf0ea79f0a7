"""What comes of a study: a finding a claim, the rankings, published tables and replications, and all of it as JSON."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Any

from stability import stats
from stability.agreement import Agreement, agreement
from stability.reproductions import Reproduction
from stability.sensitivity import Sensitivity


@dataclass(frozen=True)
class Finding:
    """What came of one claim. *effect* and intervals are on the scale of the contrast (a ratio where *ratio*)."""

    id: str
    primary: bool
    text: str
    source: str
    measure: str
    contrast: str
    compare: tuple[str, str]
    expect: str
    verdict: str
    reason: str
    effect: float
    interval: tuple[float, float]
    equivalence_interval: tuple[float, float]
    confidence: float
    margin: float
    ratio: bool
    n_pairs: int
    p_value: float
    p_adjusted: float
    p_sign_flip: float
    seeds_to_settle: int | None
    sentence: str
    method: str
    assumptions: str
    sensitivity: Sensitivity
    against_measure: str = ""

    @property
    def measures(self) -> tuple[str, str]:
        """Return the measures of both sides, which differ only where one is held against another."""
        return self.measure, self.against_measure or self.measure


@dataclass(frozen=True)
class Ranked:
    """The arms of a study in the order of one measure; means and differences are on the scale of *transform*, logs among them."""

    measure: str
    label: str
    reduction: str
    transform: str
    better: str
    found: stats.Ranking


@dataclass(frozen=True)
class Replication:
    """What came of the claims in a replication of the study; none while its runs are *missing*, in words.

    *data* names its dataset and *other_data* tells whether the study's is another one; *changes* says what else it has
    other than the study, as keys of the file.
    """

    name: str
    data: str
    other_data: bool
    changes: str
    study_hash: str
    missing: str
    counts: dict[str, int]
    claims: tuple[Finding, ...]


@dataclass(frozen=True)
class Findings:
    """All findings of a study, its verdict (the primary claim's), and where they come from.

    *untuned* holds the same claims tested without tuning, where the study asks for that: no part of the verdict, as
    *replications* are none. *looks* says which registered look this is, where there are any.
    """

    study: str
    scale: str
    study_hash: str
    verdict: str
    provenance: dict[str, Any]
    claims: tuple[Finding, ...]
    untuned: tuple[Finding, ...] = ()
    rankings: tuple[Ranked, ...] = ()
    published: tuple[Reproduction, ...] = ()
    looks: dict[str, Any] = field(default_factory=dict)
    replications: tuple[Replication, ...] = ()

    def agreement(self, claim: str) -> Agreement:
        """Return what the replications make of the claim with this id."""
        verdicts = {
            each.name: finding.verdict for each in self.replications for finding in each.claims if finding.id == claim
        }
        own = next(finding.verdict for finding in self.claims if finding.id == claim)
        return agreement(own, verdicts, [each.name for each in self.replications if each.missing])

    def to_json(self) -> dict[str, Any]:
        """Return what findings.json holds: plain data without NaN or infinity (null instead)."""
        keys = ("study", "scale", "study_hash", "verdict", "provenance")
        found = {name: [_as_json(claim) for claim in getattr(self, name)] for name in ("claims", "untuned")}
        plain = {"schema": 1, **{key: getattr(self, key) for key in keys}, **found}
        optional = ("untuned", "rankings", "published", "looks", "replications")
        plain |= {name: [_plain(one) for one in getattr(self, name)] for name in ("rankings", "published")}
        plain |= {"looks": self.looks, "replications": [_replication_as_json(each) for each in self.replications]}
        if self.replications:
            plain["agreement"] = {claim.id: vars(self.agreement(claim.id)) for claim in self.claims}
        return {key: value for key, value in plain.items() if value or key not in optional}

    def _repr_html_(self) -> str:
        """Return a table of the claims and what came of each, for a notebook."""
        rows = "".join(
            f"<tr><td><b>{html.escape(claim.verdict)}</b></td><td>{html.escape(claim.text)}<br>"
            f"<small>{html.escape(claim.sentence)}</small></td></tr>"
            for claim in sorted(self.claims, key=lambda claim: not claim.primary)
        )
        title = f"{html.escape(self.study)} ({html.escape(self.scale)}): {html.escape(self.verdict)}"
        return f"<table><caption>{title}</caption><tbody>{rows}</tbody></table>"


def _as_json(finding: Finding) -> dict[str, Any]:
    return {key: _plain(value) for key, value in vars(finding).items() if key != "against_measure" or value}


REPLICATED = (
    "id",
    "verdict",
    "effect",
    "interval",
    "equivalence_interval",
    "confidence",
    "margin",
    "ratio",
    "n_pairs",
    "p_value",
    "sentence",
)
"""What findings.json says of a claim in a replication; the rest is as in the study, or of the study alone."""


def _replication_as_json(again: Replication) -> dict[str, Any]:
    claims = [{key: value for key, value in _as_json(claim).items() if key in REPLICATED} for claim in again.claims]
    return {key: value for key, value in vars(again).items() if key != "claims"} | {"claims": claims}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if is_dataclass(value):
        return {key: _plain(part) for key, part in vars(value).items()}
    return [_plain(part) for part in value] if isinstance(value, tuple) else value


def look_sentence(looks: Mapping[str, Any]) -> str:
    """Return which registered look findings are of, and the alpha spent by then, in a sentence; nothing without looks.

    >>> look_sentence({"seeds": [5, 10, 20], "at": 10, "alpha_spent": 0.1 / 3})
    'Look 2 of 3 (10 seeds; registered before the first step: 5, 10, 20); .033 of an alpha of .05 is spent.'
    """
    if not looks:
        return ""
    place, registered = looks["seeds"].index(looks["at"]) + 1, ", ".join(map(str, looks["seeds"]))
    spent = f"{looks['alpha_spent']:.2g}".removeprefix("0")
    return (
        f"Look {place} of {len(looks['seeds'])} ({looks['at']} seeds; registered before the first step: {registered}); "
        f"{spent} of an alpha of .05 is spent."
    )


def findings_text(findings: Findings) -> str:
    """Return findings.json as text: sorted as written, two spaces, a newline at the end."""
    return json.dumps(findings.to_json(), indent=2, allow_nan=False) + "\n"
