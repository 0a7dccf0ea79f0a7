"""Validation of a study beyond its types: known names, claims that its runs can decide, batch sizes that fit."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from stability.check import validate_loss
from stability.corruptions import corruption
from stability.datasets import Pairs, dataset
from stability.devices import host_memory
from stability.encoders import Modality, encoder
from stability.encoders.limits import TowerTooLargeError, check_size, limited_size
from stability.encoders.validation import check_tower
from stability.losses import RESERVED, Scalar, loss, reserved_of, scalars_of
from stability.optimizers import optimizer
from stability.optimizers.validation import error_message
from stability.precision import check_products
from stability.probes import probe
from stability.registry import InputError, UnknownNameError, Variant, nearest
from stability.study.schema import (
    Arm,
    Grid,
    Schedule,
    Train,
)
from stability.study.setting_axes import check_keys
from stability.study.study import OPTIMIZER_OPTIONS, SHARED_OPTIONS, Study, modalities, optimizer_options
from stability.study.tuning_grid import FIRST_TUNING_SEED, Locate, check_tuning
from stability.study.validate_claims import check_claim, check_control, check_ids, check_published, check_ranking
from stability.study.validate_optimizers import check_optimizer, check_own_options
from stability.study.validate_shift import check_shift
from stability.study.validate_starts import check_starts


def check(study: Study, locate: Locate) -> None:
    """Raise `InputError` with one sentence on the first part of *study* that cannot be run or decided."""
    pairs = _check_data(study, locate)
    if study.data.shift:
        check_shift(study, study.data.shift, pairs, locate)
    towers = _check_towers(study, pairs, locate)
    _check_grid(study, len(pairs.train), locate)
    _check_training(study, locate)
    _check_shards(study, locate)
    _check_linear_maps(study, towers, locate)
    _check_products(study, towers, locate)
    check_starts(study, _shapes(pairs, towers), locate)
    for name, schedule in study.probes.items():
        _check_probe(study, name, schedule, pairs, locate)
    for index, claim in enumerate(study.claims):
        check_claim(study, claim, lambda *keys, index=index: locate("claims", index, *keys))
    check_ids(study, locate)
    for index, control in enumerate(study.controls):
        check_control(study, control, lambda *keys, index=index: locate("controls", index, *keys))
    for index, ranking in enumerate(study.rankings):
        check_ranking(study, ranking, lambda *keys, index=index: locate("rankings", index, *keys))
    for index, published in enumerate(study.published):
        check_published(study, published, lambda *keys, index=index: locate("published", index, *keys))
    if study.tune:
        check_tuning(study, study.tune, locate)


def check_replication(study: Study, replication: Study, where: str) -> None:
    """Raise `InputError` if *replication* equals *study* or shares runs with it, which would then count twice."""
    location = f"{where}: replications.{replication.replication}"
    owner = f"replications.{study.replication}" if study.replication else "the study"
    if replication.hash == study.hash:
        raise InputError(f"{location}: is {owner} itself; allowed: other data, or other seeds by grid.first_seed")
    canonical, other_canonical = study.canonical(), replication.canonical()
    same_setup = all(canonical.get(key) == other_canonical.get(key) for key in ("data", "model", "train", "arms"))
    axes = ("arms", "batch_size", "train_pairs", "corruption", "noise")
    same_setup = same_setup and all({*study.grid.values(axis)} & {*replication.grid.values(axis)} for axis in axes)
    shared = {*_seeds(study)} & {*_seeds(replication)}
    if same_setup and shared:
        raise InputError(
            f"{location}: has the runs of {owner} at {len(shared)} of its {replication.grid.seeds} seeds; "
            f"allowed: other data, or grid.first_seed from {study.grid.first_seed + study.grid.seeds} on"
        )


def _seeds(study: Study) -> range:
    return range(study.grid.first_seed, study.grid.first_seed + study.grid.seeds)


def _check_data(study: Study, locate: Locate) -> Pairs:
    variant = dataset.get_or_explain(study.data.name, locate("data", "name"))
    variant.check_options(study.data.options, locate("data"))
    try:
        return study.pairs()
    except InputError as error:
        raise InputError(f"{locate('data')}.{error}") from error


def _check_towers(study: Study, pairs: Pairs, locate: Locate) -> list[nn.Module]:
    """Return the towers, built once."""
    towers = []
    if study.model.extra_modalities is None and pairs.extra_modalities:
        raise InputError(
            f"{locate('model', 'extra_modalities')}: required by the third modality of the data, but missing"
        )
    if study.model.extra_modalities is not None and not pairs.extra_modalities:
        raise InputError(
            f"{locate('model', 'extra_modalities')}: {study.data.name!r} as given has two modalities; leave it out"
        )
    for name, modality in modalities(pairs).items():
        side, tower = name if name in ("image", "text") else "extra_modalities", study.model.tower(name)
        where = locate("model", side)
        if tower.name not in encoder:
            hint = nearest(tower.name, encoder)
            raise InputError(
                f"{where}: unknown encoder {tower.name!r}{hint}; the file of one of your own is named by --encoder"
            )
        variant = encoder[tower.name]
        variant.check_options(tower.options, where)
        compatible = [name for name, variant in encoder.items() if variant.traits.modality in (side, "any")]
        if tower.name not in compatible:
            inputs = f"{side}s" if side == name else "further modalities"
            raise InputError(f"{where}: encoder {tower.name!r} does not read {inputs} (known: {', '.join(compatible)})")
        try:
            towers.append(_build(variant, modality, study.model.embed_dim, tower.options))
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
    return towers


def _shapes(pairs: Pairs, towers: Iterable[nn.Module]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the parameters of all towers, by name."""
    return {
        f"{modality}.{name}": tuple(value.shape)
        for modality, tower in zip(modalities(pairs), towers, strict=True)
        for name, value in tower.named_parameters()
    }


def _build(variant: Variant, modality: Modality, embed_dim: int, options: Mapping[str, Any]) -> nn.Module:
    """Build a tower once to validate its options; a user-defined tower is also run on a few samples."""

    def build() -> nn.Module:
        built: nn.Module = variant(modality, embed_dim, **options)
        return built

    try:
        if not variant.source:
            check_size(build, host_memory())
            return build()
        # On the meta device a tower with weights from a file could not be built.
        with torch.random.fork_rng(devices=[]), limited_size(host_memory()):
            tower = build()
    except TowerTooLargeError as error:
        raise InputError(f"encoder {variant.name!r}: {error}") from error
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"encoder {variant.name!r} cannot be built: {error_message(error)}") from error
    try:
        check_tower(tower, modality, embed_dim)
    except InputError as error:
        raise InputError(f"encoder {variant.name!r}: {error}") from error
    return tower


def _check_grid(study: Study, available: int, locate: Locate) -> None:
    check_keys(study.grid.options, list(Grid.model_fields), locate)
    _check_own_settings(study, locate)
    for key, values in study.grid:
        if isinstance(values, tuple) and len(set(values)) < len(values):
            raise InputError(f"{locate('grid', key)}: got {list(values)}; allowed: values that differ")
    for name, arm in study.arms.items():
        if name not in study.grid.arms:
            hint = nearest(name, study.grid.arms)
            raise InputError(f"{locate('arms', name)}: an arm that grid.arms does not list{hint}")
        _check_arm(name, arm, locate)
    for index, name in enumerate(study.grid.arms):
        if name not in study.arms and name not in loss:
            hint = nearest(name, {*loss, *study.arms})
            raise UnknownNameError(f"{locate('grid', 'arms', index)}: unknown loss {name!r}{hint}", loss.kind)
        variant = loss[study.arm(name).loss]
        if variant.package:
            _check_packaged_loss(variant)
        if study.model.extra_modalities and "state" in reserved_of(variant):
            raise InputError(
                f"{locate('grid', 'arms', index)}: {name!r} keeps running estimates of two modalities, and these data "
                "have more; allowed: losses without state"
            )
    for index, name in enumerate(study.grid.corruption):
        corruption.get_or_explain(name, locate("grid", "corruption", index))
    _check_sizes(study, available, locate)
    if _seeds(study).stop > FIRST_TUNING_SEED:
        where, most = locate("grid", "seeds"), FIRST_TUNING_SEED - study.grid.first_seed
        raise InputError(
            f"{where}: got {study.grid.seeds}; allowed: at most {max(0, most)} (seeds from {FIRST_TUNING_SEED:,} on "
            "are those of searches)"
        )
    if study.grid.lr_multipliers and len(study.grid.lr) != 1:
        where = locate("grid", "lr")
        raise InputError(f"{where}: got {list(study.grid.lr)}; allowed with lr_multipliers: the one rate they multiply")


def _check_own_settings(study: Study, locate: Locate) -> None:
    """Raise `InputError` for an arm that sets a key itself over which the grid has an axis."""
    for key in study.grid.settings:
        table, _, name = key.rpartition(".")
        for arm_name, arm in study.arms.items():
            own = arm.options if table == "arms.*" else arm.train.overrides if arm.train and table == "train" else {}
            if name in own:
                raise InputError(f"{locate('grid', key)}: arm {arm_name!r} sets {name} itself; allowed: one of the two")


def _check_sizes(study: Study, available: int, locate: Locate) -> None:
    largest = max(study.grid.batch_size)
    for index, count in enumerate(study.grid.train_pairs):
        if not largest <= count <= available:
            where, data = locate("grid", "train_pairs", index), study.data.name
            raise InputError(
                f"{where}: got {count}; allowed: from {largest}, the largest batch size, to {available}, the training "
                f"pairs of {data!r}"
            )
    for index, size in enumerate(study.grid.batch_size):
        if size > available:
            where, data = locate("grid", "batch_size", index), study.data.name
            raise InputError(f"{where}: got {size}; allowed: at most {available}, the training pairs of {data!r}")


def _check_packaged_loss(packaged: Variant) -> None:
    try:
        validate_loss(packaged)
    except InputError as error:
        raise InputError(f"package {packaged.package}: {error}") from error


def _check_arm(name: str, arm: Arm, locate: Locate) -> None:
    variant = loss.get_or_explain(arm.loss, locate("arms", name, "loss"))
    if name in loss and name != arm.loss:
        raise InputError(
            f"{locate('arms', name)}: {name!r} is the name of another loss; give the arm a name of its own"
        )
    declared = scalars_of(variant)
    parameters = {key: parameter for key, parameter in variant.options.items() if key not in RESERVED}
    options = {key: value for key, value in arm.options.items() if key not in declared}
    replace(variant, options=parameters).check_options(options, locate("arms", name))
    for key in arm.options.keys() & declared.keys():
        try:
            Scalar.read(arm.options[key], declared[key])
        except InputError as error:
            raise InputError(f"{locate('arms', name, key)}: {error}") from error


def _check_probe(study: Study, name: str, schedule: Schedule, pairs: Pairs, locate: Locate) -> None:
    where = locate("probes", name)
    probe.get_or_explain(name, where).check_options(schedule.options, where)
    if forks := probe[name].traits.forks:
        _check_forks(study, name, schedule, forks, where)
    for axis in ("noise", "batch_size", "train_pairs"):
        grid = getattr(study.grid, axis)
        for value in getattr(schedule, axis) or ():
            if value not in grid:
                allowed = ", ".join(map(str, grid)) or "none"
                raise InputError(f"{where}.{axis}: got {value}; allowed: values of grid.{axis} ({allowed})")
    if probe[name].traits.held_out_batches:
        _check_held_out_batches(study, schedule, pairs, where)


def _check_held_out_batches(study: Study, schedule: Schedule, pairs: Pairs, where: str) -> None:
    """Raise `InputError` if there are too few held-out pairs for a probe that uses batches of them."""
    name, held_out = study.data.name, pairs.held_out
    if torch.isin(held_out, pairs.train).any():
        raise InputError(f"{where}: needs held-out pairs, and {name!r} has none apart from those trained on")
    largest = max(schedule.batch_size or study.grid.batch_size)
    if largest > len(held_out):
        raise InputError(
            f"{where}: needs batches of {largest} held-out pairs, and {name!r} has {len(held_out)} held-out "
            "pairs; allowed: a larger share of data.held_out, or smaller batches (the probe's batch_size)"
        )


def _check_forks(study: Study, name: str, schedule: Schedule, option: str, where: str) -> None:
    for key, value in (("every", schedule.every), ("at", schedule.at)):
        if value:
            raise InputError(f"{where}.{key}: {name!r} measures where it forks the runs; give {option!r} instead")
    value = schedule.options.get(option, probe[name].options[option].default)
    if isinstance(value, list) and (not value or len({*value}) < len(value)):
        raise InputError(f"{where}.{option}: got {value}; allowed: a step, or steps that differ")
    steps = min(study.lengths(size)[0] for size in study.grid.batch_size)
    after_end = [step for step in study.due(name) if step > steps]
    if after_end:
        run_words = "the study" if steps == study.train.steps else f"a run at batch size {max(study.grid.batch_size)}"
        raise InputError(f"{where}.{option}: got {max(after_end)}; allowed: 0 to {steps}, the steps of {run_words}")


def _check_training(study: Study, locate: Locate) -> None:
    train = study.train
    _check_recipe(train, locate, "train")
    check_own_options(study, locate)
    for name, arm in study.arms.items():
        recipe, overrides = study.train_of(name), arm.train.overrides if arm.train else {}
        _check_recipe(recipe, locate, "arms", name, "train")
        if unused := (overrides.keys() & {*OPTIMIZER_OPTIONS}) - {*optimizer_options(recipe.optimizer)}:
            _refuse_option(recipe, locate("arms", name, "train", min(unused)), min(unused))
    if study.tune:
        _check_untuned_multipliers(study, locate)
    if train.warmup >= train.steps:
        where = locate("train", "warmup")
        raise InputError(f"{where}: got {train.warmup}; allowed: fewer than train.steps = {train.steps}")
    if (shortest := min(study.lengths(size) for size in study.grid.batch_size))[1] >= shortest[0]:
        where, size = locate("train", "steps"), max(study.grid.batch_size)
        raise InputError(
            f"{where}: got {train.steps}, which is {shortest[0]} at batch size {size}; allowed: more than train.warmup "
            f"steps at batch size {size}"
        )


def _check_untuned_multipliers(study: Study, locate: Locate) -> None:
    """Raise `InputError` for a rate that is multiplied although the search would find the multiplied one again."""
    own = [(("arms", name, "train"), study.train_of(name)) for name in study.arms]
    for table, train in [(("train",), study.train), *own]:
        if train.lr_multiplier != 1:
            raise InputError(
                f"{locate(*table, 'lr_multiplier')}: got {train.lr_multiplier:g}, which [tune] would undo, since it "
                "searches each arm's rate; allowed: the rate of the grid without a search, or another difference"
            )


def _check_shards(study: Study, locate: Locate) -> None:
    """Raise `InputError` unless each arm's shards divide each batch size into parts of two pairs or more."""
    for arm in study.grid.arms:
        shards, own = study.train_of(arm).shards, study.arm(arm).train
        where = locate(*(("arms", arm, "train") if own and own.shards else ("train",)), "shards")
        for size in study.grid.batch_size:
            if size % shards or size // shards < 2:
                raise InputError(
                    f"{where}: got {shards}; allowed with batches of {size}: a number that divides them into parts of "
                    "equally many pairs, two or more"
                )


def _check_linear_maps(study: Study, towers: Iterable[nn.Module], locate: Locate) -> None:
    """Raise `InputError` for an optimizer of linear maps where no tower has one that is trained."""
    modules = itertools.chain.from_iterable(tower.modules() for tower in towers)
    if any(isinstance(module, nn.Linear) and module.weight.requires_grad for module in modules):
        return
    own = [(("arms", name, "train"), arm.train.optimizer) for name, arm in study.arms.items() if arm.train]
    for table, name in [(("train",), study.train.optimizer), *own]:
        if name and optimizer[name].traits.linear_maps:
            without = ", ".join(repr(other) for other in optimizer if not optimizer[other].traits.linear_maps)
            raise InputError(
                f"{locate(*table, 'optimizer')}: {name!r} is for the matrices of linear maps, and the towers train "
                f"none; allowed: {without}"
            )


def _check_products(study: Study, towers: Iterable[nn.Module], locate: Locate) -> None:
    """Raise `InputError` for 16-bit products in towers whose products cannot be rounded."""
    if study.precisions == {"float32"}:
        return
    sides = itertools.chain(("image", "text"), itertools.repeat("extra_modalities"))
    for side, tower in zip(sides, towers, strict=False):
        try:
            check_products(tower)
        except InputError as error:
            raise InputError(f"{locate('model', side)}: {error}") from error


def _check_recipe(train: Train, locate: Locate, *table: str) -> None:
    if train.clip_norm is not None and train.clip_quantile is not None:
        raise InputError(f"{locate(*table, 'clip_norm')}: give clip_norm or clip_quantile, not both")
    if train.clip_quantile is not None and train.precision == "float16":
        raise InputError(
            f"{locate(*table, 'clip_quantile')}: a step that float16 skips has no gradient norm; allowed: clip_norm"
        )
    check_optimizer(train.optimizer, locate(*table, "optimizer"))
    for key, without_effect in OPTIMIZER_OPTIONS.items():
        unused = key not in SHARED_OPTIONS and key not in optimizer_options(train.optimizer)
        if unused and getattr(train, key) not in (None, without_effect):
            _refuse_option(train, locate(*table, key), key)


def _refuse_option(train: Train, where: str, key: str) -> None:
    users = ", ".join(repr(name) for name in optimizer if key in optimizer_options(name))
    raise InputError(f"{where}: the optimizer {train.optimizer!r} takes no {key}; allowed with {users} only")
