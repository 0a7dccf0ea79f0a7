"""The findings of a study: claims, rankings, published tables and replications, and their JSON form."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Any

from stability import stats
from stability.registration import NOT_RECORDED, Status
from stability.replication_agreement import Agreement, agreement
from stability.reproductions import Reproduction
from stability.sensitivity import Sensitivity
from stability.stats.wording import between, signed_effect


@dataclass(frozen=True)
class ControlFinding:
    """A planted difference, compared by the measure, contrast and cells of one claim.

    Attributes:
        id: Identifier of the control.
        compare: The arm with the planted difference, and the arm that it is compared with.
        expect: The planted direction.
        effect: Its effect on the scale of the claim.
        interval: Interval of the effect at the claim's confidence.
        found: Whether the interval lies beyond the claim's margin in the planted direction.
        ratio: Whether the effect is a ratio.
        cells_found: Number of cells that show it alone, at the confidence shared among the cells.
        cells: Number of cells; 0 if there is one.
        problem: Why it could not be tested; empty if it was.
    """

    id: str
    compare: tuple[str, str]
    expect: str
    effect: float
    interval: tuple[float, float]
    found: bool
    ratio: bool
    cells_found: int = 0
    cells: int = 0
    problem: str = ""

    @property
    def sentence(self) -> str:
        """Return the control and its outcome in words, without a full stop."""
        head = f"{self.id} ({' against '.join(self.compare)}"
        if self.problem:
            return f"{head}) could not be tested: {self.problem}"
        size = f"{signed_effect(self.effect, self.ratio)}, {between(self.interval, self.ratio)}"
        alone = f", by {self.cells_found} of {self.cells} cells alone" if self.cells and self.found else ""
        return f"{head}: {size}) is {'found' if self.found else 'not found'} beyond the margin{alone}"


@dataclass(frozen=True)
class Finding:
    """The result of one claim.

    Attributes:
        id: Identifier of the claim.
        primary: Whether it decides the study's verdict.
        text: The claim in words.
        source: Where the claim comes from.
        measure: Name of the measure.
        contrast: Name of the contrast.
        compare: The two arms.
        expect: Expected direction.
        verdict: The verdict.
        reason: Why it is the verdict.
        effect: Effect on the scale of the contrast (a ratio if `ratio`).
        interval: Two-sided interval of the effect at `confidence`.
        equivalence_interval: The 1 - 2 alpha interval.
        confidence: 1 - alpha, shared among claims and looks.
        margin: Smallest effect that matters.
        ratio: Whether the effect is a ratio.
        n_pairs: Number of seed pairs.
        p_value: Two-sided p-value.
        p_adjusted: p-value adjusted for the number of claims and looks.
        p_sign_flip: p-value of the sign-flip test.
        seeds_to_settle: Seeds that would settle an open claim.
        sentence: The result in plain words.
        method: The test, by name.
        assumptions: What the test assumes.
        sensitivity: Results of the sensitivity checks.
        against_measure: Second measure of a claim that compares two measures of one arm; else empty.
        registration: Whether the claim is as it stood before the first step of the runs that test it ("registered"),
            was added or changed after that ("exploratory"), or no record says ("not recorded").
        registration_note: What was changed, if it is exploratory.
        cells: The effect in each cell of the grid over which the claim averages; empty if there is one cell.
        depends_on: The axes on which a mixed claim depends, in words.
        controls: The planted differences that this claim's measure must move, compared as the claim compares its arms.
        assay_sensitivity: For an equivalence, whether its controls show that a difference would have been seen:
            "shown", "not shown" (no control) or "insensitive" (then not testable); empty for other verdicts.
    """

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
    registration: Status = "not recorded"
    registration_note: str = ""
    cells: tuple[stats.CellEffect, ...] = ()
    depends_on: str = ""
    controls: tuple[ControlFinding, ...] = ()
    assay_sensitivity: str = ""

    @property
    def measures(self) -> tuple[str, str]:
        """Return the measures of both sides; they differ only if `against_measure` is set."""
        return self.measure, self.against_measure or self.measure


@dataclass(frozen=True)
class Ranked:
    """The arms of a study ranked by one measure.

    Attributes:
        measure: Name of the measure.
        label: Its label.
        reduction: How the steps of a run become one number.
        transform: The scale of means and differences.
        better: The good direction, higher or lower.
        ranking: The ranking.
        registration: As in `Finding`.
        registration_note: As in `Finding`.
    """

    measure: str
    label: str
    reduction: str
    transform: str
    better: str
    ranking: stats.Ranking
    registration: Status = "not recorded"
    registration_note: str = ""


@dataclass(frozen=True)
class Replication:
    """The claims of a study in one of its replications.

    Attributes:
        name: Name of the replication.
        data: Name of its dataset.
        other_data: Whether its dataset differs from the study's.
        changes: What it overrides, as keys of the study file.
        study_hash: Hash of the replication's study.
        missing: Which runs are missing, in words; empty if none.
        counts: Number of seeds and of planned, finished, diverged and failed runs.
        claims: Findings of the claims; empty while runs are missing.
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
    """All findings of a study, its verdict and their origin.

    Attributes:
        study: Name of the study.
        scale: Scale at which it was run.
        study_hash: Hash of the study.
        verdict: Verdict of the primary claim.
        provenance: Versions, device, seeds, counts and command.
        claims: A finding per claim.
        untuned: The same claims tested without tuning, if the study requests that; not part of the verdict.
        rankings: The rankings.
        published: Published tables next to ours.
        looks: The registered looks and which of them this is; empty without looks.
        replications: The replications; not part of the verdict.
        registration: Whether what was claimed before the runs is recorded, and what was withdrawn after them.
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
    registration: dict[str, Any] = field(default_factory=lambda: {"recorded": False, "note": NOT_RECORDED})

    def agreement(self, claim: str) -> Agreement:
        """Return how the replications agree with the study on the claim with this id."""
        others = {
            replication.name: finding
            for replication in self.replications
            for finding in replication.claims
            if finding.id == claim
        }
        own = next(finding for finding in self.claims if finding.id == claim)
        return agreement(own, others, [one.name for one in self.replications if one.missing])

    def to_json(self) -> dict[str, Any]:
        """Return the content of findings.json: plain data with null for NaN and infinity."""
        keys = ("study", "scale", "study_hash", "verdict", "provenance")
        claims = {name: [_as_json(claim) for claim in getattr(self, name)] for name in ("claims", "untuned")}
        plain = {"schema": 1, **{key: getattr(self, key) for key in keys}, "registration": self.registration, **claims}
        optional = ("untuned", "rankings", "published", "looks", "replications")
        plain |= {name: [_plain(one) for one in getattr(self, name)] for name in ("rankings", "published")}
        plain |= {"looks": self.looks, "replications": [_replication_as_json(one) for one in self.replications]}
        if self.replications:
            plain["agreement"] = {claim.id: _plain(self.agreement(claim.id)) for claim in self.claims}
        return {key: value for key, value in plain.items() if value or key not in optional}

    def _repr_html_(self) -> str:
        """Return an HTML table of the claims and their verdicts, for a notebook."""
        rows = "".join(
            f"<tr><td><b>{html.escape(claim.verdict)}</b></td><td>{html.escape(claim.text)}<br>"
            f"<small>{html.escape(claim.sentence)}</small></td></tr>"
            for claim in sorted(self.claims, key=lambda claim: not claim.primary)
        )
        title = f"{html.escape(self.study)} ({html.escape(self.scale)}): {html.escape(self.verdict)}"
        return f"<table><caption>{title}</caption><tbody>{rows}</tbody></table>"


def _as_json(finding: Finding) -> dict[str, Any]:
    return {key: _plain(value) for key, value in vars(finding).items() if key not in OPTIONAL or value}


OPTIONAL = ("against_measure", "registration_note", "cells", "depends_on", "controls", "assay_sensitivity")
"""Fields of a claim that findings.json leaves out where they are empty."""

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
    "registration",
    "registration_note",
    "cells",
    "depends_on",
)
"""Fields of a replication's claim in findings.json; the others equal the study's or apply to the study alone."""


def _replication_as_json(replication: Replication) -> dict[str, Any]:
    claims = [
        {key: value for key, value in _as_json(claim).items() if key in REPLICATED} for claim in replication.claims
    ]
    return {key: value for key, value in vars(replication).items() if key != "claims"} | {"claims": claims}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if is_dataclass(value):
        return {key: _plain(part) for key, part in vars(value).items()}
    return [_plain(part) for part in value] if isinstance(value, tuple) else value


def assay_sentence(finding: Finding) -> str:
    """Return whether an equivalence could have shown a difference, in a sentence; empty for other verdicts."""
    found = "; ".join(control.sentence for control in finding.controls)
    if finding.assay_sensitivity == "not shown":
        return "Sensitivity not shown: the study plants no known difference that this measure must move."
    return f"Sensitivity {finding.assay_sensitivity}: {found}." if finding.assay_sensitivity == "shown" else ""


def look_sentence(looks: Mapping[str, Any]) -> str:
    """Return the current registered look and the alpha spent so far in a sentence; empty without looks.

    >>> look_sentence({"seeds": [5, 10, 20], "at": 10, "alpha_spent": 0.1 / 3})
    'Look 2 of 3 (10 seeds; registered before the first step: 5, 10, 20); .033 of an alpha of .05 is spent.'
    """
    if not looks:
        return ""
    position, listed = looks["seeds"].index(looks["at"]) + 1, ", ".join(map(str, looks["seeds"]))
    spent = f"{looks['alpha_spent']:.2g}".removeprefix("0")
    return (
        f"Look {position} of {len(looks['seeds'])} ({looks['at']} seeds; registered before the first step: {listed}); "
        f"{spent} of an alpha of .05 is spent."
    )


def findings_text(findings: Findings) -> str:
    """Return findings.json as text: keys in the order of `Findings.to_json`, indented by two spaces."""
    return json.dumps(findings.to_json(), indent=2, allow_nan=False) + "\n"
