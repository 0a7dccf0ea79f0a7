"""Validation of claims that compare two measures of the same runs."""

from __future__ import annotations

from collections.abc import Mapping

from stability.probes import Measure
from stability.registry import InputError, Variant
from stability.study.schema import Claim
from stability.study.searching import Locate


def check_against(claim: Claim, variant: Variant, measures: Mapping[str, Measure], locate: Locate) -> None:
    """Raise `InputError` unless the claim's two measures can be compared.

    They must be different measures of one arm in the same unit and on the same scale, and the contrast must compare
    values of runs.
    """
    where, first, second = locate("against_measure"), measures[claim.measure], measures[claim.against_measure]
    if claim.compare[0] != claim.compare[1]:
        raise InputError(
            f"{locate('compare')}: got {list(claim.compare)}; allowed with against_measure, which compares two "
            "measures of the same runs: one arm, twice"
        )
    if first.name == second.name:
        raise InputError(f"{where}: {second.name!r} is the claim's own measure; allowed: another one")
    if variant.traits.on not in ("transform", "raw"):
        raise InputError(f"{where}: contrast {claim.contrast!r} compares arms, not measures; leave it out")
    if first.unit != second.unit:
        units = " and ".join(measure.unit or "no unit" for measure in (first, second))
        raise InputError(f"{where}: {first.name!r} and {second.name!r} are in {units}; allowed: measures of one unit")
    if variant.traits.on == "transform" and not claim.transform and first.transform != second.transform:
        raise InputError(
            f"{where}: {first.name!r} is on the scale {first.transform} and {second.name!r} on {second.transform}; "
            "give the claim a transform for both"
        )
    if "better" in variant.options and first.better != second.better:
        raise InputError(f"{where}: {first.name!r} and {second.name!r} are not good in the same direction")
