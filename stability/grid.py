"""The grid of a study unrolled into runs, and runs of equal shapes gathered into groups."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from stability.losses import loss, scalars_of, scalars_with
from stability.study import FIRST_TUNING_SEED, Options, Setting, Study, digest, search_of, settings_of

SCHEMA = 1

Chosen = Mapping[tuple[str, int], Setting]
"""The setting that tuning chose for each arm and batch size."""


@dataclass(frozen=True)
class Run:
    """One cell of a study's grid, *options* being what tuning sets of the arm's loss beside the rate.

    *train_pairs* is the number of training pairs, 0 for all; *lr_multiplier* the multiple that *lr* is of the rate chosen.
    """

    arm: str
    batch_size: int
    corruption: str
    noise: float
    lr: float
    seed: int
    id: str
    options: Options = ()
    rng_stream: str = ""
    train_pairs: int = 0
    lr_multiplier: float = 1.0

    @property
    def tuning(self) -> bool:
        """Whether it is a run of the search, not of the test."""
        return self.seed >= FIRST_TUNING_SEED

    @property
    def rng_seed(self) -> int | str:
        """What its random streams start from: its seed, and its arm's stream where that has one of its own."""
        return f"{self.seed}:{self.rng_stream}" if self.rng_stream else self.seed


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

    @property
    def tuning(self) -> bool:
        """Whether its runs are of the search, not of the test."""
        return self.runs[0].tuning


def study_of(study: Study, group: Group) -> Study:
    """Return the study by which a group's runs are trained: *study* or the search that belongs to it, as its arm."""
    return (search_of(study) if group.tuning else study).trained_as(group.arm, group.batch_size)


def run_configuration(study: Study, options: Options = (), **cell: Any) -> dict[str, Any]:
    """Return everything that decides the numbers of one run, as plain data without defaults.

    *options* are those of the loss that tuning sets; it does not matter whether a value comes from there or the arm.

    Titles, claims and the rest of the grid are not in it, so editing them keeps stored runs valid.
    """
    return _configuration(study, study.canonical(), options, cell)


def _configuration(study: Study, plain: dict[str, Any], options: Options, cell: dict[str, Any]) -> dict[str, Any]:
    arm = study.arm(cell["arm"], options)
    variant = loss[arm.loss]
    declared = scalars_of(variant)
    scalars = {
        name: asdict(scalar) for name, scalar in scalars_with(variant, arm.options).items() if scalar != declared[name]
    }
    set_options = {
        name: value
        for name, value in arm.options.items()
        if name not in declared and value != variant.options[name].default
    }
    kept = {key: plain.get(key, {}) for key in ("data", "model", "train", "probes")}
    trained = study.trained_as(cell["arm"], cell["batch_size"]).train
    if trained != study.train:
        kept["train"] = trained.model_dump(mode="json", exclude_defaults=True)
    source = {key: variant.traits[key] for key in ("source",) if key in variant.traits}
    if arm.rng_stream:
        kept["rng_stream"] = arm.rng_stream
    return {"schema": SCHEMA, **kept, **cell, "loss": {"name": arm.loss, **source, **scalars, **set_options}}


def runs_of(study: Study, chosen: Chosen | None = None) -> tuple[Run, ...]:
    """Return every run of the study's test grid, seeds innermost: as tuning chose, else at the rates of the grid."""
    grid = study.grid
    settings = {
        (arm, size): [chosen[arm, size]] if chosen else [Setting(lr) for lr in grid.lr]
        for arm, size in itertools.product(grid.arms, grid.batch_size)
    }
    return _unrolled(study, settings, study.grid.first_seed)


def tuning_runs_of(study: Study) -> tuple[Run, ...]:
    """Return every run of the study's search, in the order of `settings_of`, on seeds of its own; none without one."""
    if study.tune is None:
        return ()
    settings = {(arm, size): settings_of(study, arm) for arm in study.grid.arms for size in study.grid.batch_size}
    return _unrolled(search_of(study), settings, FIRST_TUNING_SEED + study.grid.first_seed)


def _unrolled(study: Study, settings: Mapping[tuple[str, int], Iterable[Setting]], first: int) -> tuple[Run, ...]:
    grid = study.grid
    seeds = range(first, first + grid.seeds)
    plain = study.canonical()
    axes = (grid.arms, grid.batch_size, grid.values("train_pairs"), grid.corruption, grid.noise)
    factors = grid.lr_multipliers or (1.0,)
    runs = []
    for arm, size, pairs, corruption, noise in itertools.product(*axes):
        for setting, factor, seed in itertools.product(settings[arm, size], factors, seeds):
            cell = {"arm": arm, "batch_size": size, "corruption": corruption, "noise": noise}
            cell |= {"lr": _times(setting.lr, factor), "seed": seed}
            told = _configuration(study, plain, setting.options, cell | ({"train_pairs": pairs} if pairs else {}))
            runs.append(
                Run(
                    **cell,
                    id=digest(told),
                    options=setting.options,
                    rng_stream=study.arm(arm).rng_stream,
                    train_pairs=pairs,
                    lr_multiplier=factor,
                )
            )
    return tuple(runs)


def _times(lr: float, factor: float) -> float:
    """Return a multiple of a rate, without the last digits that a product of decimals leaves.

    >>> _times(1e-3, 0.1), _times(3e-4, 3.0), _times(1 / 3, 1.0)
    (0.0001, 0.0009, 0.3333333333333333)
    """
    return lr if factor == 1.0 else float(f"{lr * factor:.12g}")


def groups_of(runs: Iterable[Run], width: dict[tuple[str, int], int]) -> tuple[Group, ...]:
    """Return the runs gathered by arm and batch size, in even parts of at most ``width[arm, batch_size]`` runs.

    Runs of the search lie apart from those of the test, and so do runs with other options of the loss or other numbers
    of pairs. A group's id is the digest of its runs' ids, so the same runs always make the same group.
    """

    def shape(run: Run) -> tuple[str, int, bool, str, int]:
        return run.arm, run.batch_size, run.tuning, repr(run.options), run.train_pairs

    groups = []
    for (arm, batch_size, *_), members in itertools.groupby(sorted(runs, key=shape), key=shape):
        alike = list(members)
        parts = -(-len(alike) // width[arm, batch_size])
        size = -(-len(alike) // parts)
        groups += [tuple(alike[start : start + size]) for start in range(0, len(alike), size)]
    return tuple(Group(digest([run.id for run in group]), group) for group in groups)


def halves(group: Group) -> tuple[Group, Group]:
    """Return the first and the second half of a group's runs, as groups."""
    middle = -(-len(group.runs) // 2)
    first, second = group.runs[:middle], group.runs[middle:]
    return Group(digest([run.id for run in first]), first), Group(digest([run.id for run in second]), second)


def run_table(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Return one plain row per run, for a data frame; what few runs have (options, a stream...) only where they do."""
    rows = [{("run" if key == "id" else key): value for key, value in asdict(run).items()} for run in runs]
    rare = {"options": (), "rng_stream": "", "train_pairs": 0, "lr_multiplier": 1.0}
    return [{key: value for key, value in row.items() if key not in rare or value != rare[key]} for row in rows]
