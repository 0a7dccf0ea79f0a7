"""Noise in the alignment of image and text."""

from __future__ import annotations

import torch
from torch import Tensor

from stability.corruptions import corruption
from stability.registry import InputError


def derange(caption: Tensor, generator: torch.Generator, tries: int = 1000) -> Tensor:
    """Return a permutation of n places in which every place receives a different caption than its own.

    *caption* (n,) holds the identity of each place's caption. Places that still hold their own are swapped with random
    others until none is left. Raises `InputError` where no such permutation exists (one caption fills over half the
    places).
    """
    size = len(caption)
    if size and torch.bincount(caption).max() * 2 > size:
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


@corruption
def mismatch(
    image: Tensor, text: Tensor, *, caption: Tensor, level: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Give a share *level* of the images the caption of another pair, never one with the same words.

    Their number is round(level * n). The corrupted pairs exchange captions among themselves, so the captions as a set
    are unchanged; where they cannot (a single pair, or one caption on over half of them), each takes that of any pair.
    Zhai et al. (2023), arXiv:2303.15343, Sec. 4.10, corruption 3 (there: a plain shuffle).
    """
    # The draw does not depend on the level, so a higher level corrupts the same pairs and more.
    chosen = torch.randperm(len(text), generator=generator)[: round(level * len(text))]
    text = text.clone()
    text[chosen] = text[_donors(caption, chosen, generator)]
    return image, text


def _donors(caption: Tensor, chosen: Tensor, generator: torch.Generator) -> Tensor:
    """Return for each chosen pair the place of a pair with another caption: in exchange, or from anywhere."""
    counts = torch.bincount(caption[chosen]) if len(chosen) else caption[chosen]
    if not len(chosen) or counts.max() * 2 <= len(chosen):
        return chosen[derange(caption[chosen], generator)]
    differs = caption[chosen][:, None] != caption
    if not differs.any(-1).all():
        raise InputError("mismatch: every pair has the same caption, so none can be given another")
    return torch.multinomial(differs.double(), 1, generator=generator).flatten()
