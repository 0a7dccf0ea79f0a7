"""Noise in the alignment of image and text: wrong captions, and pairs that say the same."""

from __future__ import annotations

import torch
from torch import Tensor

from stability.corruptions import Values, corruption
from stability.registry import InputError


def corrupted_indices(size: int, level: float, generator: torch.Generator) -> Tensor:
    """Return the places of the round(level * size) pairs to corrupt, (k,), in random order.

    The draw does not depend on the level, so a higher level corrupts the same pairs and more.
    """
    return torch.randperm(size, generator=generator)[: round(level * size)]


def derangeable(caption: Tensor) -> bool:
    """Return whether n places can exchange captions so that each receives another: no caption fills over half.

    >>> derangeable(torch.tensor([0, 0, 1, 2])), derangeable(torch.tensor([0, 0, 1]))
    (True, False)
    """
    return not len(caption) or int(torch.bincount(caption).max()) * 2 <= len(caption)


def derange(caption: Tensor, generator: torch.Generator, tries: int = 1000) -> Tensor:
    """Return a permutation of n places in which every place receives a different caption than its own.

    *caption* (n,) holds the identity of each place's caption. Places that still hold their own are swapped with random
    others until none is left. Raises `InputError` where no such permutation exists (one caption fills over half the
    places).
    """
    size = len(caption)
    if not derangeable(caption):
        raise InputError("mismatch: one caption fills over half of the pairs to be corrupted, so no derangement exists")
    order = torch.randperm(size, generator=generator)
    for _ in range(tries):
        fixed = (caption[order] == caption).nonzero().flatten()
        if not len(fixed):
            return order
        for place in fixed.tolist():
            other = int(torch.randint(size, (), generator=generator))
            order[[place, other]] = order[[other, place]]
    raise InputError("mismatch: found no derangement of these captions")


def sample_mismatched(caption: Tensor, generator: torch.Generator) -> Tensor:
    """Return for each of n places another one, (n,), uniform among the places with a different caption.

    Raises `InputError` if all captions are equal.

    >>> strangers(torch.tensor([7, 7, 9]), torch.Generator().manual_seed(0))[:2]
    tensor([2, 2])
    """
    size = len(caption)
    order = caption.argsort(stable=True)
    _, group, counts = caption.unique(return_inverse=True, return_counts=True)
    if size and int(counts.max()) == size:
        raise InputError("every pair has the same caption, so no pair can receive another one's")
    # Sorted by caption, a group is one stretch: draw among the places outside it, and step over it.
    start, length = (counts.cumsum(0) - counts)[group], counts[group]
    rank = (torch.rand(size, generator=generator, dtype=torch.float64) * (size - length)).long()
    return order[torch.where(rank < start, rank, rank + length)]


@corruption
def mismatch(
    image: Tensor, text: Tensor, *, caption: Tensor, level: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Give a share *level* of the images the caption of another pair, never one that says the same.

    The corrupted pairs exchange captions among themselves, so the captions as a set are unchanged; only where they are
    too few or too alike for that (one pair alone, or one caption in over half of them) do they copy captions of any
    other pairs. Their number is round(level * n). Zhai et al. (2023), arXiv:2303.15343, Sec. 4.10, corruption 3 (there:
    a plain shuffle).
    """
    chosen = corrupted_indices(len(text), level, generator)
    if derangeable(caption[chosen]):
        source = chosen[derange(caption[chosen], generator)]
    else:
        source = sample_mismatched(caption, generator)[chosen]
    mixed = text.clone()
    mixed[chosen] = text[source]
    return image, mixed


@corruption
def near_duplicates(
    image: Tensor,
    text: Tensor,
    *,
    caption: Tensor,
    level: float,
    generator: torch.Generator,
    images: Values,
    strength: float = 0.05,
) -> tuple[Tensor, Tensor]:
    """Turn a share *level* of the pairs into near-copies of other pairs: false negatives, as in scraped data.

    Each of round(level * n) pairs receives the caption of another pair, with different words, and a copy of its image
    moved by uniform noise of up to *strength* times the range of the data, kept inside the range (ids are copied as
    they are). The pair it copies is uniform among all others with another caption, before corruption. A contrastive
    loss then pushes apart an image and a text that belong together.
    """
    chosen = corrupted_indices(len(text), level, generator)
    source = sample_mismatched(caption, generator)[chosen]
    copy = image[source]
    if image.is_floating_point():
        moved = Values(-strength, strength).draw(image, generator)[chosen] * (images.high - images.low)
        copy = (copy + moved).clamp(images.low, images.high)
    near, same = image.clone(), text.clone()
    near[chosen], same[chosen] = copy, text[source]
    return near, same
