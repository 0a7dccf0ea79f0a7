"""Expands the grid of a study into runs, and collects runs of equal shapes into groups."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

from stability.losses import loss, scalars_of, scalars_with
from stability.optimizers import optimizer
from stability.study import (
    FIRST_TUNING_SEED,
    Options,
    Setting,
    Settings,
    Study,
    Train,
    combinations,
    digest,
    identity_of_start,
    search_of,
    settings_of,
    train_table,
)
from stability.vocabulary import AXES

SCHEMA = 1

PER_REPLICA = {
    f"train.{name}"
    for name in (
        "warmup",
        "lr_schedule",
        "betas",
        "eps",
        "momentum",
        "nesterov",
        "weight_decay",
        "clip_norm",
        "scalar_lr_multiplier",
    )
}
"""Setting axes whose levels are trained side by side in one population."""

RARE = {name: axis.default for name, axis in AXES.items() if axis.default is not None}
"""Axes that a table of runs names only where they are used, by the level that stands for "not used"."""

Chosen = Mapping[tuple[str, int], Setting]
"""The setting that tuning chose for each arm and batch size."""


@dataclass(frozen=True)
class Run:
    """One run: a cell of a study's grid with one seed.

    Attributes:
        arm: Name of the loss, or of the arm with options.
        batch_size: Pairs in a batch.
        corruption: Name of the corruption of the training pairs.
        noise: Share of the training pairs that are corrupted.
        lr: Learning rate.
        seed: Seed of weights, batches and noise.
        id: Digest of everything that determines the run's numbers.
        options: Options of the arm's loss that tuning sets in addition to the learning rate.
        rng_stream: Name of the arm's separate random stream; "" if it shares that of the other arms.
        train_pairs: Number of training pairs; 0 for all.
        lr_multiplier: Ratio of *lr* to the tuned or configured learning rate.
        settings: Values of the grid's axes over keys of other tables.
        levels: The same as columns of a table hold them (see `level_of`).
        shared: Those of *settings* that all runs trained together must share.
        train: Keys of ``[train]`` in which it may differ from the runs trained with it.
        scalars: Initial values of the loss's scalars in which it may differ from them.
        parent: The run from which it starts: that of another arm in the same cell at the same seed.
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
    settings: Settings = ()
    levels: Settings = ()
    shared: Settings = ()
    train: Settings = ()
    scalars: Settings = ()
    parent: Run | None = None

    @property
    def depth(self) -> int:
        """How many other runs it builds on, one after another; 0 if it starts from fresh weights or a file."""
        return 0 if self.parent is None else self.parent.depth + 1

    @property
    def tuning(self) -> bool:
        """Whether the run belongs to the tuning search, not to the test."""
        return self.seed >= FIRST_TUNING_SEED

    @property
    def rng_seed(self) -> int | str:
        """The seed of its random streams: its seed, combined with its arm's `rng_stream` if there is one."""
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
        """Whether its runs belong to the tuning search, not to the test."""
        return self.runs[0].tuning

    @property
    def depth(self) -> int:
        """How many other groups have to be trained before it, one after another."""
        return self.runs[0].depth

    @property
    def settings(self) -> Settings:
        """The values of setting axes that all its runs share."""
        return self.runs[0].shared


def study_of(study: Study, group: Group) -> Study:
    """Return the study with which a group's runs are trained: *study* or its tuning search, as the group's arm."""
    return (search_of(study) if group.tuning else study.at(group.settings)).trained_as(group.arm, group.batch_size)


def _configuration(
    study: Study, plain: dict[str, Any], options: Options, cell: dict[str, Any], parent: Run | None = None
) -> dict[str, Any]:
    """Return everything that determines the numbers of one run, as plain data without defaults.

    Titles, claims and the rest of the grid are not included, so stored runs stay valid when these are edited.

    Args:
        study: The study.
        plain: The study as plain data (`Study.canonical`).
        options: Options of the loss that tuning sets; the result is the same if the arm sets an equal value.
        cell: The values of the grid's axes.
        parent: The run from which it starts.
    """
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
    kept = {key: plain.get(key, {}) for key in ("data", "model", "probes")}
    trained = study.trained_as(cell["arm"], cell["batch_size"])
    kept["train"] = train_table(trained.train, {trained.train.optimizer})
    if optimizer[trained.train.optimizer].source:
        kept["optimizer_source"] = optimizer[trained.train.optimizer].source
    if trained.data.shift:
        kept["data"] = {**kept["data"], "shift": {**kept["data"]["shift"], "step": trained.data.shift.step}}
    source = {"source": variant.source} if variant.source else {}
    if arm.rng_stream:
        kept["rng_stream"] = arm.rng_stream
    if arm.start:
        kept["start"] = identity_of_start(study, cell["arm"], cell["batch_size"])
    if parent:
        kept["start"]["parent"] = parent.id
    return {"schema": SCHEMA, **kept, **cell, "loss": {"name": arm.loss, **source, **scalars, **set_options}}


def train_of(study: Study, run: Run) -> Train:
    """Return how a run of a group is trained: as *study*, which is that of the group, but for its own values."""
    return study.train.model_copy(update=dict(run.train)) if run.train else study.train


def runs_of(study: Study, chosen: Chosen | None = None) -> tuple[Run, ...]:
    """Return every run of the test grid, seeds innermost, with the *chosen* settings or the rates of the grid."""
    grid = study.grid
    settings = {
        (arm, size): [chosen[arm, size]] if chosen else [Setting(lr) for lr in grid.lr]
        for arm, size in itertools.product(grid.arms, grid.batch_size)
    }
    return _expand(study, settings, study.grid.first_seed)


def tuning_runs_of(study: Study) -> tuple[Run, ...]:
    """Return every run of the tuning search, on separate seeds, in the order of `settings_of`; none without one."""
    if study.tune is None:
        return ()
    settings = {(arm, size): settings_of(study, arm) for arm in study.grid.arms for size in study.grid.batch_size}
    return _expand(search_of(study), settings, FIRST_TUNING_SEED + study.grid.first_seed)


def _expand(study: Study, settings: Mapping[tuple[str, int], Iterable[Setting]], first: int) -> tuple[Run, ...]:
    axes = study.grid.settings
    return tuple(
        replace(run, levels=tuple((key, level_of(value, axes[key])) for key, value in values))
        for values in combinations(axes)
        for run in _expand_at(study.at(values), values, settings, first)
    )


def level_of(value: Any, axis: Sequence[Any]) -> Any:
    """Return a value of a setting axis as tables hold it: as text if the axis has values that are not numbers.

    >>> level_of(0.1, (0.0, 0.1)), level_of((0.9, 0.95), ((0.9, 0.95), (0.9, 0.999))), level_of(1.0, (1.0, "none"))
    (0.1, '0.9, 0.95', '1')
    """
    if all(isinstance(each, int | float) and not isinstance(each, bool) for each in axis):
        return value
    parts = value if isinstance(value, tuple) else (value,)
    return ", ".join(f"{part:g}" if isinstance(part, float) else f"{part}" for part in parts)


def _expand_at(
    study: Study, values: Settings, settings: Mapping[tuple[str, int], Iterable[Setting]], first: int
) -> Iterator[Run]:
    """Yield the runs at one combination of the *values* of setting axes; *study* has them already."""
    grid = study.grid
    seeds = range(first, first + grid.seeds)
    plain = study.canonical()
    axes = (grid.arms, grid.batch_size, grid.values("train_pairs"), grid.corruption, grid.noise)
    multipliers = grid.lr_multipliers or (1.0,)
    parts = cache(lambda arm, size: _parts(study, arm, size, values))

    def run_of(arm: str, size: int, pairs: int, cell: dict[str, Any], setting: Setting, multiplier: float) -> Run:
        start = study.arm(arm).start
        parent = run_of(start.arm, size, pairs, cell, setting, multiplier) if start and start.arm else None
        cell = {"arm": arm, "batch_size": size, **cell}
        axis = {"train_pairs": pairs} if pairs else {}
        configuration = _configuration(study, plain, setting.options, cell | axis, parent)
        shared, train, scalars = parts(arm, size)
        return Run(
            **cell,
            id=digest(configuration),
            options=setting.options,
            rng_stream=study.arm(arm).rng_stream,
            train_pairs=pairs,
            lr_multiplier=multiplier,
            settings=values,
            shared=shared,
            train=train,
            scalars=scalars,
            parent=parent,
        )

    for arm, size, pairs, corruption, noise in itertools.product(*axes):
        for setting, multiplier, seed in itertools.product(settings[arm, size], multipliers, seeds):
            cell = {"corruption": corruption, "noise": noise, "lr": _multiply(setting.lr, multiplier), "seed": seed}
            yield run_of(arm, size, pairs, cell, setting, multiplier)


def _parts(study: Study, arm: str, batch_size: int, values: Settings) -> tuple[Settings, Settings, Settings]:
    """Split the values of setting axes by who has them.

    Args:
        study: The study, with the values in its tables.
        arm: The arm.
        batch_size: The batch size.
        values: The values by dotted key.

    Returns:
        Those that all runs of a group share; keys of ``[train]`` that each run can have for itself; initial values of
        scalars that each run can have for itself.
    """
    trained = study.trained_as(arm, batch_size).train
    declared = scalars_with(loss[study.arm(arm).loss], study.arm(arm).options)
    shared, train, scalars = {}, {}, {}
    for key, value in values:
        name = key.rpartition(".")[2]
        if key in PER_REPLICA or (key.startswith("train.") and name in trained.options):
            train[name] = getattr(trained, name)
        elif key.startswith("arms.*.") and name in declared and declared[name].trained:
            scalars[name] = declared[name].at(batch_size // trained.shards)
        else:
            shared[key] = value
    return tuple(shared.items()), tuple(train.items()), tuple(scalars.items())


def _multiply(lr: float, multiplier: float) -> float:
    """Return a multiple of a learning rate, rounded to 12 digits to remove floating-point error.

    >>> _multiply(1e-3, 0.1), _multiply(3e-4, 3.0), _multiply(1 / 3, 1.0)
    (0.0001, 0.0009, 0.3333333333333333)
    """
    return lr if multiplier == 1.0 else float(f"{lr * multiplier:.12g}")


PARTS = ("settings", "levels", "shared", "train", "scalars", "parent")


def shape_of(run: Run) -> str:
    """Return in words what determines the bytes of a run's replica: arm, batch size, and settings.

    >>> shape_of(Run("clip", 8, "mismatch", 0.0, 1e-3, 0, "", shared=(("model.*.width", 16),)))
    'clip 8 model.*.width=16'
    """
    return " ".join([run.arm, f"{run.batch_size}", *(f"{key}={value}" for key, value in run.shared)])


def groups_of(runs: Iterable[Run], width: Callable[[Run], int]) -> tuple[Group, ...]:
    """Return the runs grouped by `shape_of`, in even parts of at most ``width(run)`` runs.

    Runs of the tuning search and of the test are in separate groups, and so are runs with different options of the loss
    or numbers of training pairs. A group's id is the digest of its runs' ids, so the same runs always form the same
    group.
    """

    def key(run: Run) -> tuple[Any, ...]:
        return run.arm, run.batch_size, repr(run.shared), run.tuning, repr(run.options), run.train_pairs

    groups = []
    for _, members in itertools.groupby(sorted(runs, key=key), key=key):
        equal_shape = list(members)
        parts = -(-len(equal_shape) // width(equal_shape[0]))
        size = -(-len(equal_shape) // parts)
        groups += [tuple(equal_shape[start : start + size]) for start in range(0, len(equal_shape), size)]
    return tuple(Group(digest([run.id for run in group]), group) for group in groups)


def halves(group: Group) -> tuple[Group, Group]:
    """Return the first and the second half of a group's runs, as groups."""
    middle = -(-len(group.runs) // 2)
    first, second = group.runs[:middle], group.runs[middle:]
    return Group(digest([run.id for run in first]), first), Group(digest([run.id for run in second]), second)


def run_table(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Return one plain row per run, for a data frame; rare fields (options, a stream...) only if they are set."""
    rows = [
        {("run" if key == "id" else key): value for key, value in vars(run).items() if key not in PARTS}
        | dict(run.levels)
        | ({"parent": run.parent.id} if run.parent else {})
        for run in runs
    ]
    rare = {"options": (), "rng_stream": "", **RARE}
    return [{key: value for key, value in row.items() if key not in rare or value != rare[key]} for row in rows]
