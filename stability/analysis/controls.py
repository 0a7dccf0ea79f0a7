"""Assay sensitivity: whether a claim's measure moves where a difference is planted.

An equivalence shows something only if the same analysis would have seen a difference that is known to be there, as in
non-inferiority trials: ICH E10, Choice of control group and related issues in clinical trials (2000), Sec. 1.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stability import contrasts
from stability.analysis.cells import cells_of
from stability.analysis.findings import ControlFinding
from stability.analysis.pairing import contrast_inputs
from stability.results import Results
from stability.stats import Verdict, margin_region
from stability.stats.cells import cells_beyond
from stability.stats.comparison import Interval
from stability.study import Claim, Control
from stability.vocabulary import NOT_TESTABLE


def controls_of(results: Results, claim: Claim, confidence: float) -> tuple[ControlFinding, ...]:
    """Return the controls of a claim, each compared by the claim's measure, contrast, scale, seeds and cells."""
    return tuple(
        _found(results, claim, control, confidence) for control in results.study.controls if control.applies_to(claim)
    )


def _found(results: Results, claim: Claim, control: Control, confidence: float) -> ControlFinding:
    planted = claim.model_copy(update={"compare": (control.arm, control.against)})
    where = f"controls.{control.id}"
    arms, supplied = contrast_inputs(results, planted, confidence)
    comparison = contrasts.compare(claim.contrast, *arms, supplied=supplied, where=where)
    levels = cells_of(results, planted)
    cells = contrasts.in_each_cell(claim.contrast, *arms, supplied=supplied, cells=levels, where=where)
    region = margin_region(claim.margin, comparison.ratio)
    below, above = cells_beyond(cells, region)
    alone = {"lower": len(below), "higher": len(above), "different": len(below) + len(above)}
    return ControlFinding(
        id=control.id,
        compare=planted.compare,
        expect=control.expect,
        effect=comparison.effect,
        interval=comparison.interval,
        found=comparison.testable and lies_beyond(comparison.interval, region, control.expect),
        ratio=comparison.ratio,
        cells_found=alone[control.expect],
        cells=len(cells),
        problem=comparison.problem,
    )


def lies_beyond(interval: Interval, region: Interval, expect: str) -> bool:
    """Return whether an interval lies beyond a margin, on the side of *expect* or, if "different", on either.

    >>> lies_beyond((1.3, 1.6), (0.8, 1.25), "higher"), lies_beyond((1.3, 1.6), (0.8, 1.25), "lower")
    (True, False)
    >>> lies_beyond((0.5, 0.7), (0.8, 1.25), "different"), lies_beyond((0.5, 0.9), (0.8, 1.25), "different")
    (True, False)
    """
    below, above = interval[1] < region[0], interval[0] > region[1]
    return {"lower": below, "higher": above, "different": below or above}[expect]


def with_sensitivity(verdict: Verdict, claim: Claim, controls: Sequence[ControlFinding]) -> tuple[Verdict, str]:
    """Return a claim's verdict in view of its controls, and its assay sensitivity; only an equivalence has one.

    All controls of the claim must be found: each plants a difference that the measure must move.
    """
    if verdict.verdict != ("supported" if claim.expect == "equal" else "equivalent"):
        return verdict, ""
    if not controls:
        return verdict, "not shown"
    missed = [control for control in controls if not control.found]
    if not missed:
        return verdict, "shown"
    not_found = "; ".join(control.sentence for control in missed)
    why = f"insensitive: the control {not_found}, so that equality would show nothing"
    return replace(
        verdict, verdict=NOT_TESTABLE, reason=why, sentence=f"Not testable: {why}.", seeds_to_settle=None
    ), "insensitive"
