"""The registry of corruptions and its interface.

A corruption is a function ``(image, text, *, caption, level, generator, <its options>) -> (image, text)`` on n pairs,
written for one replica; equal numbers in caption (n,) mean equal captions. It corrupts round(level * n) pairs; a higher
level corrupts the same pairs and more. A modality that it does not change is returned as the same tensor object. It
draws on the CPU and only from the run's "corruption" stream, so at one seed all losses have the same noise on every
device. A corruption that generates images or texts takes ``images`` or ``texts``, the range of their `Values`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stability.registry import Registry, Traits


@dataclass(frozen=True)
class Values:
    """The range of values of one modality: reals in [low, high], or token ids from low to high inclusive.

    If low is 1, token 0 is the blank that pads short texts; if it is 0, every id is a word.
    """

    low: float
    high: float

    @staticmethod
    def of(samples: Tensor, vocabulary: int = 0, blank: bool = True) -> Values:
        """Return the range of the samples (n, ...) of one modality, or of its token ids if it has a vocabulary.

        >>> Values.of(torch.tensor([[-1.0, 0.5]])), Values.of(torch.tensor([[3, 0]]), vocabulary=9)
        (Values(low=-1.0, high=0.5), Values(low=1, high=8))
        """
        if vocabulary:
            return Values(int(blank), vocabulary - 1)
        return Values(float(samples.min()), float(samples.max()))

    def draw(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Return independent uniform values with the shape, dtype and device of *like*."""
        if like.is_floating_point():
            values = self.low + (self.high - self.low) * torch.rand(like.shape, generator=generator, dtype=like.dtype)
        else:
            values = torch.randint(int(self.low), int(self.high) + 1, like.shape, generator=generator)
        return values.to(like.device)


@dataclass(frozen=True)
class CorruptionTraits(Traits):
    """What a corruption declares.

    Attributes:
        parts: The corruptions that it combines; each corrupts its own draw of round(level * n) pairs.
    """

    parts: tuple[str, ...] = ()


corruption = Registry("corruption", CorruptionTraits)


def corrupt(
    name: str, image: Tensor, text: Tensor, *, images: Values, texts: Values, **arguments: Any
) -> tuple[Tensor, Tensor]:
    """Return image and text corrupted by the corruption *name*.

    Args:
        name: the corruption.
        image: images (n, ...).
        text: texts (n, ...).
        images: range of image values, passed on if the corruption takes it.
        texts: range of text values, passed on if the corruption takes it.
        arguments: caption, level and generator (see the module).
    """
    variant = corruption[name]
    ranges = {key: value for key, value in {"images": images, "texts": texts}.items() if key in variant.options}
    noisy: tuple[Tensor, Tensor] = variant(image, text, **ranges, **arguments)
    return noisy
