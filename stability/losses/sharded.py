"""A loss over shards of a batch: each shard of consecutive pairs sees its own negatives only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap


def sharded(function: Callable[..., Any], shards: int) -> Callable[..., Any]:
    """Return the loss that is the mean of a loss over *shards* parts of the batch, with shared scalars.

    L = 1/k sum_s l(image_s, text_s), where shard s holds the B/k consecutive pairs from s B/k on: B (B/k - 1) of the
    B (B - 1) mismatches are seen. It is what data-parallel training computes where each device contrasts its own pairs
    only, without features gathered from others, and gradients are averaged. This project's own. Of reserved inputs, a
    shard gets its rows of ``index`` and its block of ``uniform``; ``step`` and the ``state`` before the batch are the
    same for all. The new state is the mean of those of the shards. In a loss that also takes ``index``, whose state has
    entries for single pairs, the mean is over the shards that change an entry.

    Args:
        function: the loss of unit rows (B, D), with its options bound.
        shards: k, which divides B; 1: the loss itself.

    >>> from stability.losses import clip
    >>> rows, nought = torch.eye(4), torch.tensor(0.0)
    >>> whole, halves = (sharded(clip, k)(rows, rows, log_scale=nought) for k in (1, 2))
    >>> torch.equal(halves, clip(rows[:2], rows[:2], log_scale=nought)), bool(halves < whole)
    (True, True)
    """
    if shards == 1:
        return function

    def mean_over_shards(image: Tensor, text: Tensor, **inputs: Any) -> Any:
        rows: dict[str, Tensor] = {"image": image.unflatten(0, (shards, -1)), "text": text.unflatten(0, (shards, -1))}
        rows |= {name: _own(name, inputs.pop(name), shards) for name in ("index", "uniform") if name in inputs}

        def of_shard(shard: dict[str, Tensor]) -> Any:
            part = dict(shard)
            return function(part.pop("image"), part.pop("text"), **part, **inputs)

        found = vmap(of_shard)(rows)
        if "state" not in inputs:
            return _mean(found)
        values, states = found
        merge = _mean_of_changes if "index" in rows else lambda before, after: _mean(after).to(before.dtype)
        return _mean(values), {name: merge(inputs["state"][name], after) for name, after in states.items()}

    return mean_over_shards


def _own(name: str, values: Tensor, shards: int) -> Tensor:
    """Return the part of a reserved input that belongs to each shard, with a leading axis of shards."""
    parts = values.unflatten(0, (shards, -1))
    if name == "index":
        return parts
    return torch.stack([part.unflatten(1, (shards, -1))[:, shard] for shard, part in enumerate(parts.unbind())])


def _mean_of_changes(before: Tensor, after: Tensor) -> Tensor:
    """Return the means of the entries (k, ...) over the shards that changed them; the others as before."""
    changed = after != before
    count = changed.sum(0)
    total = _sum(torch.where(changed, after, torch.zeros_like(after)))
    return torch.where(count > 0, total / count.clamp(min=1), before).to(before.dtype)


def _mean(values: Tensor) -> Tensor:
    return _sum(values) / len(values)


def _sum(values: Tensor) -> Tensor:
    """Return the sum over the first axis, one addition after the other.

    A reduction may add a replica's numbers in an order that depends on its position.
    """
    first, *others = values.unbind()
    return sum(others, first)
