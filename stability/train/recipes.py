"""Training settings in which the replicas of a population differ, such as betas, weight decay and the scalars' rate."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from stability.grid import Run, train_of
from stability.optimizers import Layout, Segment
from stability.study import Study, Train, optimizer_of
from stability.train.model import ModelSpec
from stability.train.optimizer import ParamGroups, Recipe


def recipes_of(study: Study, spec: ModelSpec, runs: Sequence[Run], theta: Tensor) -> tuple[Recipe, ...]:
    """Return the training settings of all replicas, one recipe for consecutive replicas that are updated together.

    Args:
        study: the study of the group.
        spec: what all replicas share.
        runs: the run of each replica.
        theta: parameters (R, P), for their device and type.
    """
    recipes, start = [], 0
    for train, same in itertools.groupby(train_of(study, run) for run in runs):
        rows = slice(start, start + len(list(same)))
        parameters = [
            (size, _decay(train, spec, name), _lr_multiplier(train, spec, name))
            for name, size in spec.layout.sizes.items()
        ]
        recipes.append(Recipe(rows, train, ParamGroups.of(parameters, theta), segments_of(spec, train)))
        start = rows.stop
    return joined(recipes)


def joined(recipes: Sequence[Recipe]) -> tuple[Recipe, ...]:
    """Return the recipes with neighbors joined that differ in weight decay alone, and whose update does not read it.

    One update of all their replicas, with a weight decay for each, costs less than one update for each recipe.
    """
    together: list[Recipe] = []
    for recipe in recipes:
        if together and _alike_but_decay(together[-1], recipe):
            together[-1] = _with_decays(together[-1], recipe)
        else:
            together.append(recipe)
    return tuple(together)


def _alike_but_decay(one: Recipe, other: Recipe) -> bool:
    train = one.train.model_copy(update={"weight_decay": other.train.weight_decay})
    widths = {recipe.groups.decay.shape[-1] for recipe in (one, other)} - {0}
    return (
        train == other.train
        and optimizer_of(train)[0].traits.decay != "own"
        and len(widths) < 2
        # Otherwise the decay of each replica would be a row as long as its parameters.
        and one.groups.uniform
        and other.groups.uniform
    )


def _with_decays(one: Recipe, other: Recipe) -> Recipe:
    """Return the recipe of the replicas of both."""
    width = max(recipe.groups.decay.shape[-1] for recipe in (one, other))
    columns = []
    for recipe in (one, other):
        count, decay = recipe.rows.stop - recipe.rows.start, recipe.groups.decay
        columns.append(decay[..., :1].expand(count, 1) if decay.numel() else decay.new_zeros(count, 1))
    column = torch.cat(columns)
    groups = ParamGroups(column.expand(len(column), width), one.groups.lr_multiplier)
    return Recipe(slice(one.rows.start, other.rows.stop), one.train, groups, one.layout)


def segments_of(spec: ModelSpec, train: Train) -> Layout:
    """Return the parameters in memory order with their weight decay, as an optimizer reads them."""
    layout = spec.layout
    return tuple(
        Segment(
            name,
            layout.starts[name],
            layout.shapes[name][:: -1 if name in layout.transposed else 1],
            linear=name in layout.transposed,
            trained=name not in spec.frozen,
            decay=_decay(train, spec, name),
            lr_multiplier=_lr_multiplier(train, spec, name),
        )
        for name in layout.sizes
    )


def _decay(train: Train, spec: ModelSpec, name: str) -> float:
    """Return the weight decay of a parameter: that of the run for trained matrices, else 0."""
    return train.weight_decay if len(spec.layout.shapes[name]) > 1 and name not in spec.frozen else 0.0


def _lr_multiplier(train: Train, spec: ModelSpec, name: str) -> float:
    """Return the learning rate factor of a parameter: for scalars the product of those of run and loss, else 1."""
    scalar = spec.loss.scalars.get(name.removeprefix("loss."))
    return train.scalar_lr_multiplier * scalar.lr_multiplier if name.startswith("loss.") and scalar else 1.0
