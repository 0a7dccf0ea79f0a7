"""A claim that holds two measures of the same runs against each other: which two can be compared."""

from __future__ import annotations

from collections.abc import Mapping

from stability.probes import Measure
from stability.registry import InputError, Variant
from stability.study.schema import Claim
from stability.study.searching import Locate


def check_against(claim: Claim, found: Variant, known: Mapping[str, Measure], locate: Locate) -> None:
    """Raise `InputError` unless the claim's measure and the one that it is held against can be compared.

    They are two measures of one arm's runs in one unit, on one scale, by a contrast of numbers that runs have.
    """
    where, own, other = locate("against_measure"), known[claim.measure], known[claim.against_measure]
    if claim.compare[0] != claim.compare[1]:
        raise InputError(
            f"{locate('compare')}: got {list(claim.compare)}; allowed with against_measure, which compares two measures of the "
            "same runs: one arm, twice"
        )
    if own.name == other.name:
        raise InputError(f"{where}: {other.name!r} is the claim's own measure; allowed: another one")
    if found.traits["on"] not in ("transform", "raw"):
        raise InputError(f"{where}: contrast {claim.contrast!r} compares arms, not measures; leave it out")
    if own.unit != other.unit:
        units = " and ".join(measure.unit or "no unit" for measure in (own, other))
        raise InputError(f"{where}: {own.name!r} and {other.name!r} are in {units}; allowed: measures of one unit")
    if found.traits["on"] == "transform" and not claim.transform and own.transform != other.transform:
        raise InputError(
            f"{where}: {own.name!r} is on the scale {own.transform} and {other.name!r} on {other.transform}; give the claim a "
            "transform for both"
        )
    if "better" in found.options and own.better != other.better:
        raise InputError(f"{where}: {own.name!r} and {other.name!r} are not good in the same direction")
