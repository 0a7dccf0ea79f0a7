"""Whether a study's probes read what it asks of them: every run that a measure is needed of, at the step it is."""

from __future__ import annotations

from stability.probes import probe
from stability.registry import InputError
from stability.study.schema import Study
from stability.study.searching import Locate


def check_coverage(study: Study, asked: str, key: str, locate: Locate) -> None:
    """A claim pairs every seed over every cell, so the probe that makes its measure must read all of them."""
    for name, schedule in study.probes.items():
        if asked not in {measure.name for measure in probe[name].traits["measures"]}:
            continue
        for axis in ("seeds", "noise", "batch_size", "pairs"):
            kept, grid = getattr(schedule, axis), getattr(study.grid, axis)
            if kept is not None and (kept < grid if axis == "seeds" else set(kept) != set(grid)):
                where = locate(key)
                raise InputError(f"{where}: probes.{name}.{axis} leaves out runs that a claim on {asked!r} needs")


def check_first(study: Study, asked: str, reduction: str | None, locate: Locate) -> None:
    """What is read at its first step must be measured there: a probe that never is would answer with a later one."""
    for name, schedule in study.probes.items() if reduction == "first" else ():
        made = {measure.name for measure in probe[name].traits["measures"]}
        if asked in made and 0 not in schedule.steps(study.train.steps):
            where = locate("reduction")
            raise InputError(f"{where}: probes.{name} does not measure before the first step; at = [0.0] there does")
