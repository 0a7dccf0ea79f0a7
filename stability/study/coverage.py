"""Whether a study's probes read what it asks of them: every run that a measure is needed of, at the step it is."""

from __future__ import annotations

from stability.probes import probe
from stability.registry import InputError
from stability.study.schema import LATE, Study
from stability.study.searching import Locate


def check_coverage(study: Study, asked: str, key: str, locate: Locate) -> None:
    """A claim pairs every seed over every cell, so the probe that makes its measure must read all of them."""
    for name, schedule in study.probes.items():
        if asked not in {measure.name for measure in probe[name].traits["measures"]}:
            continue
        for axis in ("seeds", "noise", "batch_size", "train_pairs"):
            kept, grid = getattr(schedule, axis), getattr(study.grid, axis)
            if kept is not None and (kept < grid if axis == "seeds" else set(kept) != set(grid)):
                where = locate(key)
                raise InputError(f"{where}: probes.{name}.{axis} leaves out runs that a claim on {asked!r} needs")


def check_first(study: Study, asked: str, reduction: str | None, locate: Locate) -> None:
    """What is read at its first step must be measured there: a probe that never is would answer with a later one."""
    for name in study.probes if reduction == "first" else ():
        made = {measure.name for measure in probe[name].traits["measures"]}
        if asked in made and 0 not in study.due(name):
            where = locate("reduction")
            raise InputError(f"{where}: probes.{name} does not measure before the first step; at = [0.0] there does")


def check_window(study: Study, asked: str, reduction: str, locate: Locate) -> None:
    """The late window must hold a reading; only a probe that forks runs may have none there."""
    for name in study.probes if reduction == "tail_mean" else ():
        made = asked in {measure.name for measure in probe[name].traits["measures"]}
        if made and max(study.due(name)) < (1 - LATE) * study.train.steps:
            raise InputError(
                f"{locate('reduction')}: 'tail_mean' is the last {LATE:.0%} of a run, where probes.{name} reads nothing; "
                "allowed: final, area"
            )
