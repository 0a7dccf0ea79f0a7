"""Corruptions: a catalogue of noise injected into the training pairs, at a level in [0, 1].

A corruption is ``(image, text, *, caption, level, generator, <what it asks for>) -> (image, text)`` on n pairs,
written for one replica: caption (n,) says which captions are equal. It strikes round(level * n) pairs, the same ones
and more at a higher level, and returns a side that it never touches as the very tensor it was given. It draws from the
run's own "corruption" stream only, on the CPU, so every loss meets the same noise at one seed on every device.

One that makes up new images or texts asks for ``images`` or ``texts``, the `Values` that these take. One made of
several others names them in its trait *parts*: each part strikes its own draw of round(level * n) pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stability.registry import Registry

corruption = Registry("corruption")


@dataclass(frozen=True)
class Values:
    """Which values one side of the data takes: reals in [low, high], or the token ids from low up to high.

    Where low is 1, token 0 is blank and fills up short texts; where it is 0, every id is a word.
    """

    low: float
    high: float

    @staticmethod
    def of(side: Tensor, vocabulary: int = 0, blank: bool = True) -> Values:
        """Return the values of one side of the data (n, ...), or of its token ids if it has a vocabulary.

        >>> Values.of(torch.tensor([[-1.0, 0.5]])), Values.of(torch.tensor([[3, 0]]), vocabulary=9)
        (Values(low=-1.0, high=0.5), Values(low=1, high=8))
        """
        if vocabulary:
            return Values(int(blank), vocabulary - 1)
        return Values(float(side.min()), float(side.max()))

    def draw(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Return independent uniform values in the shape, type and place of *like*."""
        if like.is_floating_point():
            drawn = self.low + (self.high - self.low) * torch.rand(like.shape, generator=generator, dtype=like.dtype)
        else:
            drawn = torch.randint(int(self.low), int(self.high) + 1, like.shape, generator=generator)
        return drawn.to(like.device)


def corrupt(
    name: str, image: Tensor, text: Tensor, *, images: Values, texts: Values, **given: Any
) -> tuple[Tensor, Tensor]:
    """Return image and text as the corruption *name* leaves them, with *images* and *texts* handed on where asked for.

    *given* are caption, level and generator (see the module).
    """
    variant = corruption[name]
    asked = {key: value for key, value in {"images": images, "texts": texts}.items() if key in variant.options}
    noisy: tuple[Tensor, Tensor] = variant(image, text, **asked, **given)
    return noisy


from stability.corruptions import content, pairs  # noqa: E402  (variants register on import)

__all__ = ["Values", "content", "corrupt", "corruption", "pairs"]
