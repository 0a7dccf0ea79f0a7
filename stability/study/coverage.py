"""Checks that the probes of a study measure every run and step that its claims need."""

from __future__ import annotations

from stability.probes import probe
from stability.registry import InputError
from stability.study.schema import LATE, Study
from stability.study.searching import Locate


def check_coverage(study: Study, measure_name: str, key: str, locate: Locate) -> None:
    """Raise `InputError` if the probe that makes a claim's measure skips runs: a claim needs every seed and cell."""
    for name, schedule in study.probes.items():
        if measure_name not in {measure.name for measure in probe[name].traits.measures}:
            continue
        for axis in ("seeds", "noise", "batch_size", "train_pairs"):
            kept, grid = getattr(schedule, axis), getattr(study.grid, axis)
            if kept is not None and (kept < grid if axis == "seeds" else set(kept) != set(grid)):
                where = locate(key)
                raise InputError(
                    f"{where}: probes.{name}.{axis} leaves out runs that a claim on {measure_name!r} needs"
                )


def check_first(study: Study, measure_name: str, reduction: str | None, locate: Locate) -> None:
    """Raise `InputError` if a probe does not measure before the first step, where the reduction "first" reads."""
    for name in study.probes if reduction == "first" else ():
        produced = {measure.name for measure in probe[name].traits.measures}
        if measure_name in produced and 0 not in study.due(name):
            where = locate("reduction")
            raise InputError(f"{where}: probes.{name} does not measure before the first step; at = [0.0] there does")


def check_window(study: Study, measure_name: str, reduction: str, locate: Locate) -> None:
    """Raise `InputError` if the late window has no measurement, as can happen for a probe that forks runs."""
    for name in study.probes if reduction == "tail_mean" else ():
        produces_measure = measure_name in {measure.name for measure in probe[name].traits.measures}
        if produces_measure and max(study.due(name)) < (1 - LATE) * study.train.steps:
            raise InputError(
                f"{locate('reduction')}: 'tail_mean' is the last {LATE:.0%} of a run, where probes.{name} reads "
                "nothing; allowed: final, mean_after_warmup"
            )
