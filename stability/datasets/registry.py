"""The registry of datasets and its interface.

A dataset is a function ``(*, <options>) -> Pairs``. Random numbers come from named streams on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stability.registry import InputError, Registry, Traits


@dataclass(frozen=True)
class Pairs:
    """A finite set of image-text pairs with its split, and the prompts of its zero-shot classes.

    Attributes:
        image: (N, ...) floats, or (N, 1) ids below *image_vocabulary*.
        text: (N, T) token ids, or (N, F) floats.
        caption: (N,) ids of the captions' meanings: equal ids mean equal meanings, and equal texts have equal ids.
        label: (N,) class of each image, -1 for none.
        train: (n,) indices of the training pairs; with frequencies of classes, some repeat.
        held_out: (m,) indices of the held-out pairs, disjoint from *train* (except in data that are only fitted, as
            'sphere').
        prompts: (classes, variants, ...) texts that name each class; (0, 0, ...) if there are no classes.
        vocabulary: the words by token id (empty for real-valued text); the first is "" if token 0 pads short texts.
        image_vocabulary: number of image ids; 0 for real-valued images.
        hard_negatives: (m, K, ...) texts, K for each held-out pair, that are false of its image by one word.
        extra_modalities: samples (N, ...) of further modalities, each floats, or (N, 1) ids below *image_vocabulary*.
        separator: joins words when a text is written out.
        fingerprint: a digest of the content of data from disk; empty for generated data.
        notes: sentences on which data from disk were left out or cut; empty for generated data.
        frequency_rank: (N,) rank of each pair's class by its frequency among the training pairs, 0 for the most
            frequent; None for data without options for frequencies (see `stability.datasets.frequencies`).
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
    frequency_rank: Tensor | None = None

    @property
    def modalities(self) -> dict[str, Tensor]:
        """Return the samples (N, ...) of every modality by name: image, text, modality-3 and on."""
        extra = {f"modality-{number}": samples for number, samples in enumerate(self.extra_modalities, start=3)}
        return {"image": self.image, "text": self.text, **extra}

    @property
    def offers(self) -> tuple[str, ...]:
        """What these data offer for evaluation beyond retrieval."""
        available = {
            "classes": len(self.prompts) > 0,
            "hard-negatives": self.hard_negatives is not None,
            "frequencies": self.frequency_rank is not None,
        }
        return tuple(name for name, is_available in available.items() if is_available)

    def words(self, index: int) -> str:
        """Return the caption of one pair as plain text."""
        return self.say(self.text[index])

    def say(self, text: Tensor) -> str:
        """Return one text (T,) of token ids as plain text."""
        return self.separator.join(self.vocabulary[token] for token in text.tolist()).strip()


@dataclass(frozen=True)
class DatasetTraits(Traits):
    """What a dataset declares.

    Attributes:
        offers: What it has for evaluation beyond retrieval: ``"classes"``, prompts for zero-shot classification;
            ``"hard-negatives"``, texts that are almost right; ``"frequencies"``, ranks of classes by frequency, where
            the options set these. A function of the options if it depends on them.
        on_disk: The data are read from disk: their fingerprint, not the path, is part of a run's identity.
    """

    offers: tuple[str, ...] | Callable[[Mapping[str, Any]], Iterable[str]] = ()
    on_disk: bool = False


dataset = Registry("dataset", DatasetTraits)


def declared_offers(name: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what the dataset called *name* declares to offer, given its options.

    >>> declared_offers("digits", {}), declared_offers("digits", {"zipf": 1.0}), declared_offers("folder", {})
    (('classes',), ('classes', 'frequencies'), ())
    """
    offers = dataset[name].traits.offers
    return tuple(offers(options) if callable(offers) else offers)


def rows(samples: Tensor, index: Tensor) -> Tensor:
    """Return samples (N, ...) at *index* (n,): a view if the indices are consecutive, else a copy.

    Indices of data from disk are consecutive, so memory-mapped samples stay on disk until a batch of them is read.
    """
    first = int(index[0]) if len(index) else 0
    if torch.equal(index, torch.arange(first, first + len(index))):
        return samples[first : first + len(index)]
    return samples[index]


def split(pairs: int, held_out: float, name: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return random (train, held_out) indices, both sorted.

    Args:
        pairs: number of pairs.
        held_out: share of held-out pairs.
        name: the dataset, for errors.
        generator: the random stream.

    Raises:
        InputError: if either side is left without pairs.
    """
    count = round(held_out * pairs)
    if not 0 < count < pairs:
        raise InputError(
            f"dataset {name!r}: held_out = {held_out:g} of {pairs} pairs leaves {count} held out; allowed: at least "
            "one held out and one to train on"
        )
    order = torch.randperm(pairs, generator=generator)
    return order[count:].sort().values, order[:count].sort().values
