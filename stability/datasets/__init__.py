"""Datasets: a catalogue of paired data, each a function ``(*, <options>) -> Pairs``.

What a dataset can be measured by, beyond retrieval, it declares: ``@dataset(offers=("classes",))`` has prompts for
zero-shot classification, ``"hard-negatives"`` has texts that are almost right; where that hangs on the options, it is a
function of them. Data read from disk declare ``on_disk=True``: their fingerprint, not the path, is part of a run's
identity. Random numbers come from named streams on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stability.registry import InputError, Registry

dataset = Registry("dataset")


@dataclass(frozen=True)
class Pairs:
    """A finite set of image-text pairs with its split, and the prompts of its zero-shot classes.

    image (N, ...) floats, or (N, 1) ids below image_vocabulary; text (N, T) token ids or (N, F) floats; caption (N,)
    the identity of what each pair's text says: equal numbers mean that both say the same, and equal texts have equal
    numbers; label (N,) class of each image, -1 for none; train (n,) and held_out (m,) indices, disjoint (except in data
    that are only ever fitted, as 'sphere'); prompts (classes, variants, ...) texts that name each class, (0, 0, ...)
    where there are no classes; vocabulary: the words, by token id (empty for real-valued text), the first one "" where
    token 0 fills up short texts; hard_negatives (m, K, ...): K texts for each held-out pair that are false of its image
    by one word; extra_modalities: the samples (N, ...) of a third modality and on, each floats, or (N, 1) ids below
    image_vocabulary; separator: what stands between words when a text is written out; fingerprint: a digest of the
    content of data from disk, and notes: sentences on what of them was left out or cut (both empty for data that are
    made here).
    """

    image: Tensor
    text: Tensor
    caption: Tensor
    label: Tensor
    train: Tensor
    held_out: Tensor
    prompts: Tensor
    vocabulary: tuple[str, ...] = ()
    image_vocabulary: int = 0
    hard_negatives: Tensor | None = None
    extra_modalities: tuple[Tensor, ...] = ()
    separator: str = " "
    fingerprint: str = ""
    notes: tuple[str, ...] = ()

    @property
    def modalities(self) -> dict[str, Tensor]:
        """Return the samples (N, ...) of every modality by name: image, text, modality-3 and on."""
        named = {f"modality-{place}": samples for place, samples in enumerate(self.extra_modalities, start=3)}
        return {"image": self.image, "text": self.text, **named}

    @property
    def offers(self) -> tuple[str, ...]:
        """What these data can be measured by, beyond retrieval."""
        held = {"classes": len(self.prompts) > 0, "hard-negatives": self.hard_negatives is not None}
        return tuple(name for name, there in held.items() if there)

    def words(self, index: int) -> str:
        """Return the caption of one pair as a reader would write it."""
        return self.say(self.text[index])

    def say(self, text: Tensor) -> str:
        """Return one text (T,) of token ids as a reader would write it."""
        return self.separator.join(self.vocabulary[token] for token in text.tolist()).strip()


def declared_offers(name: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what the dataset called *name* declares to offer, given its options.

    >>> declared_offers("digits", {}), declared_offers("folder", {}), declared_offers("folder", {"classes": "a.txt"})
    (('classes',), (), ('classes',))
    """
    offers = dataset[name].traits.get("offers", ())
    return tuple(offers(options) if callable(offers) else offers)


def rows(samples: Tensor, index: Tensor) -> Tensor:
    """Return samples (N, ...) at *index* (n,): a view where the indices are consecutive, else a copy.

    Those of data from disk are, so samples mapped into memory stay on disk until a batch of them is read.
    """
    first = int(index[0]) if len(index) else 0
    if torch.equal(index, torch.arange(first, first + len(index))):
        return samples[first : first + len(index)]
    return samples[index]


def split(pairs: int, held_out: float, name: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return (train, held_out) indices: a random share of *pairs* kept from training, both sorted.

    Raises `InputError` if either is left without pairs; *name* is the dataset's.
    """
    kept = round(held_out * pairs)
    if not 0 < kept < pairs:
        raise InputError(
            f"dataset {name!r}: held_out = {held_out:g} of {pairs} pairs leaves {kept} held out; allowed: at least one "
            "held out and one to train on"
        )
    order = torch.randperm(pairs, generator=generator)
    return order[kept:].sort().values, order[:kept].sort().values


from stability.datasets import (  # noqa: E402  (variants register on import)
    folders,
    free,
    gaussian,
    handwriting,
    scenes,
    shards,
    tables,
    vectors,
)

__all__ = [
    "Pairs",
    "dataset",
    "declared_offers",
    "folders",
    "free",
    "gaussian",
    "handwriting",
    "rows",
    "scenes",
    "shards",
    "split",
    "tables",
    "vectors",
]
