"""Frequencies of classes among training pairs: long tails by Zipf's law, and mixes of classes.

A training index is resampled to the frequencies and keeps its length, so that batches, epochs, subsets of pairs and
corruption work as on any data: one epoch has each class as often as its frequency says, rounded to whole pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stability.registry import InputError, shortened

OPTIONS = ("zipf", "class_mix")
"""Options of datasets that set frequencies; a study that names one also measures recall in the head and in the tail."""


def offered(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what data offer beyond others if these options set frequencies, even equal ones."""
    return ("frequencies",) if any(options.get(name) is not None for name in OPTIONS) else ()


def counts_of(weights: Tensor, total: int) -> Tensor:
    """Return whole numbers (K,) in proportion to *weights* (K,), of sum *total*, each rounded up or down.

    Largest remainders are rounded up; of equal ones the first.

    >>> counts_of(torch.tensor([1.0, 0.5, 1 / 3]), 11)
    tensor([6, 3, 2])
    """
    shares = weights.double() / weights.double().sum() * total
    counts = shares.floor().long()
    missing = total - int(counts.sum())
    remainder = (shares - counts).argsort(descending=True, stable=True)
    counts[remainder[:missing]] += 1
    return counts


def resampled(train: Tensor, group: Tensor, counts: Tensor, generator: torch.Generator) -> Tensor:
    """Return a training index (n,) in which group k occurs counts[k] times.

    A group that shrinks keeps the first of its pairs in a random order; one that grows repeats its pairs in that order,
    all equally often up to one. Every other pair keeps its place in the index, and smaller groups are subsets of larger
    ones.

    Args:
        train: indices (n,) of the training pairs.
        group: group of each pair, (N,).
        counts: how often each group occurs, (K,) of sum n.
        generator: the random stream.

    >>> group = torch.tensor([0, 0, 1, 1])
    >>> group[resampled(torch.arange(4), group, torch.tensor([3, 1]), torch.Generator().manual_seed(0))].bincount()
    tensor([3, 1])
    """
    order = torch.randperm(len(train), generator=generator)
    free, repeated = [], []
    for k, count in enumerate(counts.tolist()):
        places = order[group[train[order]] == k]
        free.append(places[count:])
        more = torch.arange(max(0, count - len(places)))
        repeated.append(places[more % max(1, len(places))])
    result = train.clone()
    result[torch.cat(free)] = train[torch.cat(repeated)]
    return result


def with_frequencies(
    train: Tensor,
    group: Tensor,
    zipf: float,
    class_mix: Sequence[float] | None,
    name: str,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Return the training index (n,) at the frequencies that the options set, and the rank (N,) of each pair's group.

    By *zipf* s, the group of number k (from 1 on, in the order of their numbers) has a frequency in proportion to
    k^-s. By *class_mix*, in proportion to its weights; ranks are then in the order of the weights, of equal ones the
    first. Without either, the index is *train* itself, and ranks are in the order of the numbers. Rank 0 is the most
    frequent.

    Args:
        train: indices (n,) of the training pairs.
        group: number of each pair's group, (N,), from 0 on.
        zipf: s; 0: frequencies as they are.
        class_mix: a weight for each group; None: as *zipf* says.
        name: the dataset, for errors.
        generator: the random stream.

    Raises:
        InputError: if the options cannot be met.
    """
    groups, where = int(group.max()) + 1, f"dataset {name!r}"
    ranks = torch.arange(groups)
    if not 0 <= zipf < math.inf:
        raise InputError(f"{where}: got zipf = {zipf:g}; allowed: a finite number, 0 or more")
    if class_mix is None and not zipf:
        return train, ranks[group]
    if class_mix is None:
        weights = (ranks + 1).double() ** -zipf
    else:
        weights = _weights(class_mix, groups, zipf, where)
        ranks = weights.argsort(descending=True, stable=True).argsort()
    counts = counts_of(weights, len(train))
    there = group[train].bincount(minlength=groups)
    absent = ((counts > 0) & (there == 0)).nonzero()
    if len(absent):
        raise InputError(f"{where}: none of the training pairs has class {int(absent[0])}; allowed: more pairs")
    return resampled(train, group, counts, generator), ranks[group]


def halves_by_frequency(rank: Tensor, ranks: int) -> tuple[Tensor, Tensor]:
    """Return the positions of those of the more frequent half of the ranks, and of those of the less frequent half.

    Of an odd number of *ranks*, the middle one belongs to neither.

    Args:
        rank: ranks (m,), 0 for the most frequent.
        ranks: the number of different ranks.

    >>> halves_by_frequency(torch.tensor([2, 0, 1, 0]), 3)
    (tensor([1, 3]), tensor([0]))
    """
    head, tail = rank < ranks // 2, rank >= ranks - ranks // 2
    return head.nonzero()[:, 0], tail.nonzero()[:, 0]


def _weights(class_mix: Sequence[float], groups: int, zipf: float, where: str) -> Tensor:
    if zipf:
        raise InputError(f"{where}: got both zipf = {zipf:g} and class_mix; allowed: one of the two")
    listed = isinstance(class_mix, list | tuple) and len(class_mix) == groups
    if not (listed and all(map(_is_weight, class_mix)) and sum(class_mix) > 0):
        raise InputError(
            f"{where}: got class_mix = {shortened(class_mix)}; allowed: a list of {groups} weights, one a class, "
            "each 0 or more and not all 0"
        )
    return torch.tensor(class_mix, dtype=torch.float64)


def _is_weight(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
