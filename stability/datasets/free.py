"""The dataset 'sphere': pairs of ids without content, for towers of free vectors."""

from __future__ import annotations

import torch

from stability.datasets.registry import Pairs, dataset
from stability.registry import InputError


@dataset(offers=())
def sphere(*, pairs: int = 100, modalities: int = 2) -> Pairs:
    """Return pairs whose image and text are only their index, for towers of free vectors.

    Image and text are ids (N, 1) in 0..N - 1. There is no generalization, so training and evaluation use the same N
    pairs: recall and margins measure how well the vectors fit them. No classes. To train on the loss over all N^2
    pairs, as in theory, use batch_size = *pairs*. With more *modalities* there are further sets of the same N ids.
    Bangachev et al. (2025), arXiv:2509.18552, App. D (N = 100; up to 20 modalities in Table 1).
    """
    if pairs < 2:
        raise InputError(f"dataset 'sphere': got pairs = {pairs}; allowed: 2 or more")
    if modalities < 2:
        raise InputError(f"dataset 'sphere': got modalities = {modalities}; allowed: 2 or more")
    ids = torch.arange(pairs)
    return Pairs(
        image=ids[:, None],
        text=ids[:, None],
        caption=ids,
        label=torch.full((pairs,), -1),
        train=ids,
        held_out=ids,
        prompts=torch.empty(0, 0, 1, dtype=torch.int64),
        vocabulary=tuple(map(str, range(pairs))),
        image_vocabulary=pairs,
        extra_modalities=(ids[:, None],) * (modalities - 2),
    )
