"""The search space of ``[tune]``: equally many settings for each arm, and the study that trains them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stability.losses import Scalar, loss, options_of, scalars_of
from stability.probes import probe
from stability.registry import InputError, Variant, nearest
from stability.study.schema import Grid, Options, Tune
from stability.study.study import Study

Locate = Callable[..., str]
"""Function from keys and indices to a location in the file, which starts an error sentence."""

FIRST_TUNING_SEED = 1_000_000
"""First seed of tuning runs. Test runs have lower seeds, so no run belongs to both."""

MOST_TUNING_SEEDS = 1_000
"""Limit of the seeds of a search: far more than a choice needs, and few enough to plan at once."""


@dataclass(frozen=True)
class Setting:
    """One point of a search: a learning rate, and options and initial values that override the arm's own."""

    lr: float
    options: Options = ()

    @property
    def words(self) -> str:
        """Return the setting without its rate, in words.

        >>> Setting(1e-3, (("bias", "-log B"), ("log_scale", 2.3))).words
        'bias -log B, log_scale 2.3'
        """
        return ", ".join(f"{key} {value}" for key, value in self.options)


def settable(variant: Variant) -> set[str]:
    """Return the names of the scalars and options of a loss that a study may set."""
    return {*scalars_of(variant), *options_of(variant)}


def settings_of(study: Study, arm: str) -> tuple[Setting, ...]:
    """Return the settings that the search tries for an arm: equally many for every arm.

    An arm whose loss lacks a scalar or option, or that sets it itself, has fewer values to cross with the rates; it
    gets more rates instead, between those listed (see `refine_grid`). The common number is the smallest that every arm
    can reach without dropping a rate.

    Raises:
        InputError: Only one rate is listed, but an arm needs several.
    """
    assert study.tune is not None
    combinations = {name: _combinations(study, study.tune, name) for name in study.grid.arms}
    counts = [len(values) for values in combinations.values()]
    unit = math.lcm(*counts)
    budget = unit * -(-len(study.tune.lr) * max(counts) // unit)
    rates = refine_grid(study.tune.lr, budget // len(combinations[arm]))
    return tuple(Setting(lr, options) for options in combinations[arm] for lr in rates)


def _combinations(study: Study, tune: Tune, name: str) -> list[Options]:
    arm = study.arm(name)
    searched = {key: values for key, values in tune.options.items() if key in settable(loss[arm.loss]) - {*arm.options}}
    return [tuple(zip(searched, values, strict=True)) for values in itertools.product(*searched.values())]


def refine_grid(rates: Sequence[float], count: int) -> tuple[float, ...]:
    """Return at least *count* increasing rates: those given, and geometric means in the widest gaps, lower gaps first.

    Raises:
        InputError: There is no gap to fill.

    >>> refine_grid([1e-4, 1e-2], 4), refine_grid([3e-3, 1e-3], 2)
    ((0.0001, 0.0003162, 0.001, 0.01), (0.001, 0.003))
    """
    refined = sorted(rates)
    while len(refined) < count:
        if len(refined) < 2:
            raise InputError(
                f"got one rate; allowed: two or more, since an arm with less to search tries {count} of them"
            )
        gaps = [round(math.log(high / low), 3) for low, high in itertools.pairwise(refined)]
        index = gaps.index(max(gaps))
        refined.insert(index + 1, float(f"{math.sqrt(refined[index] * refined[index + 1]):.4g}"))
    return tuple(refined)


def tuning_measure(study: Study) -> str:
    """Return the measure by which settings are chosen: ``tune.measure``, else the primary claim's, else recall_at_1."""
    assert study.tune is not None
    if study.tune.measure:
        return study.tune.measure
    measures, primary = study.measures, study.primary
    directed = primary is not None and primary.measure in measures and bool(measures[primary.measure].better)
    return primary.measure if primary is not None and directed else "recall_at_1"


def search_of(study: Study) -> Study:
    """Return the study of the tuning runs of *study*: with the steps, noise and seeds of ``[tune]``, without claims.

    Only the probes that make the tuning measure run, on every tuning run. If the grid has several numbers of training
    pairs, the search uses the largest; axes over keys of other tables keep the study's own value. The search never sees
    shifted data: what they do to a run is the question, so no setting is chosen for them.
    """
    tune = study.tune
    assert tune is not None
    measure = study.measures[tuning_measure(study)]
    needed = {measure.name, measure.chance, *measure.columns}
    probes = {}
    for name, schedule in study.probes.items():
        reads = needed & {one.name for one in probe[name].traits.measures}
        # Tuning seeds start later, so a probe restricted to the first test seed measures no tuning run.
        seeds = None if reads else 1
        probes[name] = schedule.model_copy(
            update={"seeds": seeds, "noise": None, "batch_size": None, "train_pairs": None}
        )
    noise = min(study.grid.noise) if tune.noise is None else tune.noise
    cells: dict[str, Any] = {name: getattr(study.grid, name) for name in Grid.model_fields}
    cells |= {"corruption": study.grid.corruption[:1], "noise": (noise,), "lr": tune.lr, "seeds": tune.seeds}
    cells |= {"lr_multipliers": (), "train_pairs": study.grid.train_pairs and (max(study.grid.train_pairs),)}
    return study.model_copy(
        update={
            "data": study.data.model_copy(update={"shift": None}),
            "train": study.train.model_copy(update={"steps": tune.steps or study.train.steps}),
            "grid": Grid(**cells),
            "probes": probes,
            "claims": (),
            "controls": (),
            "rankings": (),
            "published": (),
            "tune": None,
        }
    )


def check_tuning(study: Study, tune: Tune, locate: Locate) -> None:
    """Raise `InputError` with one sentence on the first part of ``[tune]`` that cannot be searched."""
    _check_lists(study, tune, locate)
    for key in tune.options:
        _check_searched(study, tune, key, locate)
    _check_criterion(study, locate)
    if tune.seeds > MOST_TUNING_SEEDS:
        raise InputError(
            f"{locate('tune', 'seeds')}: got {tune.seeds}; allowed: at most {MOST_TUNING_SEEDS:,} a setting"
        )
    if len(study.grid.lr) != 1:
        where = locate("grid", "lr")
        raise InputError(f"{where}: got {list(study.grid.lr)}; allowed with [tune]: one rate, that of untuned runs")
    for index, claim in enumerate(study.claims):
        if claim.axis == "lr" and not study.grid.lr_multipliers:
            where = locate("claims", index, "axis")
            raise InputError(f"{where}: the rate is tuned; give grid.lr_multipliers, multiples of what tuning chooses")
    if tune.steps is not None and tune.steps <= study.train.warmup:
        where = locate("tune", "steps")
        raise InputError(f"{where}: got {tune.steps}; allowed: more than train.warmup = {study.train.warmup}")
    try:
        for name in study.grid.arms:
            settings_of(study, name)
    except InputError as error:
        raise InputError(f"{locate('tune', 'lr')}: {error}") from error


def _check_lists(study: Study, tune: Tune, locate: Locate) -> None:
    """Raise `InputError` unless every key is known and lists distinct values."""
    for key in tune.options:
        _check_known(study, tune, key, locate)
    for key in ("lr", *tune.options):
        values = tune.lr if key == "lr" else tune.options[key]
        if not isinstance(values, list | tuple) or not values:
            raise InputError(f"{locate('tune', key)}: got {values!r}; allowed: {_to_try(study, key)}")
        if len(set(map(repr, values))) < len(values):
            raise InputError(f"{locate('tune', key)}: got {list(values)}; allowed: values that differ")


def _to_try(study: Study, key: str) -> str:
    """Return what a key of ``[tune]`` takes; other tables may have a key of the same name."""
    if key == "lr":
        return "a list of rates to try"
    variants = [loss[study.arm(name).loss] for name in study.grid.arms]
    if any(key in scalars_of(variant) for variant in variants):
        return f"a list of initial values of the losses' scalar {key!r} to try"
    return f"a list of values of the losses' option {key!r} to try"


def _check_known(study: Study, tune: Tune, key: str, locate: Locate) -> None:
    tunable = {option for name in study.grid.arms for option in settable(loss[study.arm(name).loss])}
    if key not in tunable:
        hint = nearest(key, {*Tune.model_fields, *tunable})
        raise InputError(f"{locate('tune', key)}: no loss of this study has a {key!r} to tune{hint}")


def _check_searched(study: Study, tune: Tune, key: str, locate: Locate) -> None:
    variants = {name: loss[study.arm(name).loss] for name in study.grid.arms}
    variants_with_key = {name: variant for name, variant in variants.items() if key in settable(variant)}
    if all(key in study.arm(name).options for name in variants_with_key):
        raise InputError(
            f"{locate('tune', key)}: every arm that has a {key!r} sets it itself; there is nothing to tune"
        )
    for index, value in enumerate(tune.options[key]):
        for variant in variants_with_key.values():
            declared, where = scalars_of(variant), locate("tune", key, index)
            if key in declared:
                try:
                    Scalar.read(value, declared[key])
                except InputError as error:
                    raise InputError(f"{where}: {error}") from error
            else:
                replace(variant, options=options_of(variant)).check_options({key: value}, locate("tune"))


def _check_criterion(study: Study, locate: Locate) -> None:
    where, name = locate("tune", "measure"), tuning_measure(study)
    directed = {key for key, measure in study.measures.items() if measure.better and not measure.listed}
    if name in directed:
        return
    if study.tune and study.tune.measure:
        raise InputError(f"{where}: got {name!r}; allowed: a measure with a better direction{nearest(name, directed)}")
    raise InputError(f"{where}: required, since this study has no {name}{nearest('', directed)}")
