"""Corruptions of alignment: mismatched captions, and near-duplicate pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from stability.corruptions.registry import Values, corruption
from stability.registry import InputError


def corrupted_indices(size: int, level: float, generator: torch.Generator) -> Tensor:
    """Return the indices (k,) of the round(level * size) pairs to corrupt, in random order.

    The permutation does not depend on the level, so a higher level corrupts the same pairs and more.
    """
    return torch.randperm(size, generator=generator)[: round(level * size)]


def derangeable(caption: Tensor) -> bool:
    """Return whether a permutation exists that gives each pair a different caption: no caption exceeds half of them.

    >>> derangeable(torch.tensor([0, 0, 1, 2])), derangeable(torch.tensor([0, 0, 1]))
    (True, False)
    """
    return not len(caption) or int(torch.bincount(caption).max()) * 2 <= len(caption)


def derange(caption: Tensor, generator: torch.Generator, tries: int = 1000) -> Tensor:
    """Return a permutation of n pairs in which each pair receives a different caption.

    Pairs that keep their caption are swapped with random others until none is left.

    Args:
        caption: caption ids (n,).
        generator: the random stream.
        tries: largest number of passes.

    Raises:
        InputError: if no such permutation exists (one caption exceeds half of the pairs), or none is found.
    """
    size = len(caption)
    if not derangeable(caption):
        raise InputError("mismatch: one caption fills over half of the pairs to be corrupted, so no derangement exists")
    order = torch.randperm(size, generator=generator)
    for _ in range(tries):
        unchanged = (caption[order] == caption).nonzero().flatten()
        if not len(unchanged):
            return order
        for index in unchanged.tolist():
            other = int(torch.randint(size, (), generator=generator))
            order[[index, other]] = order[[other, index]]
    raise InputError("mismatch: found no derangement of these captions")


def sample_mismatched(caption: Tensor, generator: torch.Generator) -> Tensor:
    """Return for each of n pairs the index of another one, (n,), uniform among those with a different caption.

    Raises `InputError` if all captions are equal.

    >>> sample_mismatched(torch.tensor([7, 7, 9]), torch.Generator().manual_seed(0))[:2]
    tensor([2, 2])
    """
    size = len(caption)
    order = caption.argsort(stable=True)
    _, group, counts = caption.unique(return_inverse=True, return_counts=True)
    if size and int(counts.max()) == size:
        raise InputError("every pair has the same caption, so no pair can receive another one's")
    # Sorted by caption, a group is contiguous: draw a rank among the others and skip the group.
    start, length = (counts.cumsum(0) - counts)[group], counts[group]
    rank = (torch.rand(size, generator=generator, dtype=torch.float64) * (size - length)).long()
    return order[torch.where(rank < start, rank, rank + length)]


@corruption
def mismatch(
    image: Tensor, text: Tensor, *, caption: Tensor, level: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Give a share *level* of the images the caption of another pair, never an equal caption.

    The round(level * n) corrupted pairs exchange captions among themselves, so the set of captions is unchanged. If
    that is impossible (a single pair, or one caption in over half of them), they copy captions of any other pairs. Zhai
    et al. (2023), arXiv:2303.15343, Sec. 4.10, corruption 3 (there: a plain shuffle).

    Args:
        image: images (n, ...).
        text: texts (n, ...).
        caption: ids (n,) of captions; equal ids mean equal captions.
        level: share of corrupted pairs, in [0, 1].
        generator: the run's stream of random numbers.
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
    """Replace a share *level* of the pairs by near-copies of other pairs: false negatives, as in scraped data.

    Each of round(level * n) pairs receives the caption of another pair with a different caption, and a copy of its
    image plus uniform noise of up to *strength* times the range of the data, clamped to the range (ids are copied
    unchanged). The copied pair is uniform among all others with a different caption, before corruption. A contrastive
    loss then repels an image and a text that match.

    Args:
        image: images (n, ...).
        text: texts (n, ...).
        caption: ids (n,) of captions; equal ids mean equal captions.
        level: share of corrupted pairs, in [0, 1].
        generator: the run's stream of random numbers.
        images: range of the images' values.
        strength: largest noise on a copied image, as a share of the data's range.
    """
    chosen = corrupted_indices(len(text), level, generator)
    source = sample_mismatched(caption, generator)[chosen]
    copy = image[source]
    if image.is_floating_point():
        noise = Values(-strength, strength).draw(image, generator)[chosen] * (images.high - images.low)
        copy = (copy + noise).clamp(images.low, images.high)
    new_image, new_text = image.clone(), text.clone()
    new_image[chosen], new_text[chosen] = copy, text[source]
    return new_image, new_text
