"""Losses: a catalogue of contrastive objectives, each one plain function written for one replica.

A loss is ``(image, text, *, <its scalars>, <its options>) -> scalar`` where image and text are (B, D) with unit
rows, row i matching row i. Its trainable scalars are declared in the decorator:
``@loss(log_scale=Scalar(math.log(10.0)))``. Logits are t * <image, text> + b with t = exp(log_scale).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from stability.registry import InputError, Registry, Variant

loss: Registry = Registry("loss")


@dataclass(frozen=True)
class Scalar:
    """A trainable scalar of a loss: its initial value (a number, or the text ``"-log B"``, B being the batch size)."""

    initial: float | Literal["-log B"]

    def __post_init__(self) -> None:
        if not (self.initial == "-log B" or (isinstance(self.initial, int | float) and math.isfinite(self.initial))):
            raise InputError(f"a scalar starts at a finite number or at '-log B'; got {self.initial!r}")
        if not isinstance(self.initial, str):
            object.__setattr__(self, "initial", float(self.initial))

    def at(self, batch_size: int) -> float:
        """Return the initial value for one batch size.

        >>> Scalar("-log B").at(32) == -math.log(32)
        True
        """
        return -math.log(batch_size) if isinstance(self.initial, str) else float(self.initial)


def scalars_of(variant: Variant) -> dict[str, Scalar]:
    """Return the trainable scalars that a loss declares, by name."""
    return {key: value for key, value in variant.traits.items() if isinstance(value, Scalar)}


from stability.losses import sigmoid, softmax  # noqa: E402  (variants register on import)
from stability.losses.sigmoid import siglip  # noqa: E402
from stability.losses.softmax import clip  # noqa: E402

__all__ = ["Scalar", "clip", "loss", "scalars_of", "siglip", "sigmoid", "softmax"]
