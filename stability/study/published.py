"""Validation of the published figures of a study."""

from __future__ import annotations

import math

from stability.registry import InputError, nearest, shortened
from stability.study.coverage import check_first
from stability.study.schema import Published, Study
from stability.study.searching import Locate
from stability.vocabulary import AXES, CLAIM_AXES


def check_published(study: Study, published: Published, locate: Locate) -> None:
    """Raise `InputError` unless the study has the measure and the arms or axis of the published figures."""
    measures = [name for name, measure in study.measures.items() if not measure.listed]
    if published.measure not in measures:
        where, hint = locate("measure"), nearest(published.measure, measures)
        raise InputError(f"{where}: got {published.measure!r}; allowed: a measure of this study{hint}")
    if not published.factor:
        raise InputError(f"{locate('factor')}: got 0; allowed: what turns our unit into the published one")
    check_first(study, published.measure, published.reduction, locate)
    if bool(published.axis) != bool(published.compare):
        raise InputError(f"{locate('axis')}: axis and compare are given together, or neither")
    if published.axis and (published.axis not in CLAIM_AXES or published.statistic == "sd"):
        where = locate("axis")
        raise InputError(f'{where}: got {published.axis!r}; allowed: {", ".join(CLAIM_AXES)}, with statistic = "mean"')
    if published.axis and len(set(study.grid.values(published.axis))) < 2:
        raise InputError(f"{locate('axis')}: grid.{published.axis} has one value; a slope needs two or more")
    _check_values(study, published, locate)


def _check_values(study: Study, published: Published, locate: Locate) -> None:
    """Raise `InputError` unless the figures belong to two or more valid arms or levels."""
    if published.compare and published.compare[0] == published.compare[1]:
        where = locate("compare")
        raise InputError(f"{where}: got {published.compare[0]!r} twice; allowed: two arms that differ")
    named = {"compare": published.compare} if published.compare else {"values": tuple(published.values)}
    for key, arms in named.items():
        for arm in arms:
            if arm not in study.grid.arms:
                raise InputError(f"{locate(key)}: {arm!r} is not in grid.arms{nearest(arm, study.grid.arms)}")
    for level in published.values if published.axis else ():
        if not _is_level(level, above_zero=AXES[published.axis].doubling):
            raise InputError(f"{locate('values')}: got {level!r}; allowed: values of {published.axis}, as numbers")
    if len(published.values) < 2:
        where, kind = locate("values"), f"levels of {published.axis}" if published.axis else "arms"
        raise InputError(f"{where}: got {shortened(published.values)}; allowed: the figures of two or more {kind}")


def _is_level(text: str, above_zero: bool) -> bool:
    try:
        level = float(text)
    except ValueError:
        return False
    return math.isfinite(level) and (level > 0 if above_zero else level >= 0)
