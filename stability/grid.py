"""The grid of a study unrolled into runs, and runs of equal shapes gathered into groups."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from stability.losses import loss, scalars_of, scalars_with
from stability.study import Study, digest

SCHEMA = 1


@dataclass(frozen=True)
class Run:
    """One cell of a study's grid."""

    arm: str
    batch_size: int
    corruption: str
    noise: float
    lr: float
    seed: int
    id: str


@dataclass(frozen=True)
class Group:
    """Runs of equal shapes, trained as one population."""

    id: str
    runs: tuple[Run, ...]

    @property
    def arm(self) -> str:
        """The arm that all its runs share."""
        return self.runs[0].arm

    @property
    def batch_size(self) -> int:
        """The batch size that all its runs share."""
        return self.runs[0].batch_size


def run_configuration(study: Study, **cell: Any) -> dict[str, Any]:
    """Return everything that decides the numbers of one run, as plain data without defaults.

    Titles, claims and the rest of the grid are not in it, so editing them keeps stored runs valid.
    """
    return _configuration(study, study.canonical(), cell)


def _configuration(study: Study, plain: dict[str, Any], cell: dict[str, Any]) -> dict[str, Any]:
    arm = study.arm(cell["arm"])
    variant = loss[arm.loss]
    declared = scalars_of(variant)
    scalars = {
        name: asdict(scalar) for name, scalar in scalars_with(variant, arm.options).items() if scalar != declared[name]
    }
    options = {
        name: value
        for name, value in arm.options.items()
        if name not in declared and value != variant.options[name].default
    }
    kept = {key: plain.get(key, {}) for key in ("data", "model", "train", "probes")}
    source = {key: variant.traits[key] for key in ("source",) if key in variant.traits}
    return {"schema": SCHEMA, **kept, **cell, "loss": {"name": arm.loss, **source, **scalars, **options}}


def runs_of(study: Study) -> tuple[Run, ...]:
    """Return every run of the study's grid, seeds innermost."""
    grid = study.grid
    axes = itertools.product(grid.loss, grid.batch_size, grid.corruption, grid.noise, grid.lr, range(grid.seeds))
    names = ("arm", "batch_size", "corruption", "noise", "lr", "seed")
    plain = study.canonical()
    return tuple(
        Run(*cell, id=digest(_configuration(study, plain, dict(zip(names, cell, strict=True))))) for cell in axes
    )


def groups_of(runs: Iterable[Run], width: dict[tuple[str, int], int]) -> tuple[Group, ...]:
    """Return the runs gathered by arm and batch size, in even parts of at most ``width[arm, batch_size]`` runs.

    A group's id is the digest of its runs' ids, so the same runs always make the same group.
    """
    groups = []
    ordered = sorted(runs, key=lambda run: (run.arm, run.batch_size))
    for shape, members in itertools.groupby(ordered, key=lambda run: (run.arm, run.batch_size)):
        alike = list(members)
        parts = -(-len(alike) // width[shape])
        size = -(-len(alike) // parts)
        groups += [tuple(alike[start : start + size]) for start in range(0, len(alike), size)]
    return tuple(Group(digest([run.id for run in group]), group) for group in groups)


def run_table(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Return one plain row per run, for a data frame."""
    return [{("run" if key == "id" else key): value for key, value in asdict(run).items()} for run in runs]
