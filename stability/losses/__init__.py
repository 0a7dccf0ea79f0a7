"""Losses: a catalogue of contrastive objectives, each a plain function written for one replica.

A loss is ``(image, text, *, <its scalars>, <reserved names>, <its options>) -> scalar`` where image and text are
(B, D) with unit rows and row i matches row i. Its trainable scalars are declared in the decorator:
``@loss(log_scale=Scalar(math.log(10.0)))``. Logits are t * <image, text> + b with t = exp(log_scale).

Inputs in addition to the batch are requested by reserved keyword-only names (`RESERVED`):

- ``step``: the training step, a 0-d int64 tensor;
- ``index``: (B,) int64, the indices of the rows among the training pairs;
- ``uniform``: (B, B) independent numbers in [0, 1), drawn by the trainer;
- ``state``: tensors by name; the loss then returns ``(loss, new_state)``, and its decorator declares
  ``state=function(available) -> dict[str, Tensor]``, one replica's initial state for that many training pairs.

The trait ``chance=function(batch_size) -> float`` is the loss of uninformative embeddings: the minimum over the trained
scalars if all pairs have the same similarity. The trait ``value_and_grad`` is a kernel that computes the loss at its
default options, and its gradient, for all replicas at once (`stability.losses.batched`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from stability.registry import InputError, Registry, Variant, nearest

loss: Registry = Registry("loss", group="stability.losses")

RESERVED = ("step", "index", "uniform", "state")
"""Keyword-only names that a loss may request and no study can set."""


@dataclass(frozen=True)
class Scalar:
    """A scalar of a loss.

    Attributes:
        initial: the initial value: a number, or the text ``"-log B"``, where B is the batch size.
        trained: whether it is trained; otherwise it keeps its initial value.
        lr: factor on its learning rate.
    """

    initial: float | Literal["-log B"]
    trained: bool = True
    lr: float = 1.0

    def __post_init__(self) -> None:
        if not (self.initial == "-log B" or _is_number(self.initial)):
            raise InputError(f"a scalar starts at a finite number or at '-log B'; got {self.initial!r}")
        if not isinstance(self.trained, bool):
            raise InputError(f"a scalar's 'trained' is true or false; got {self.trained!r}")
        if not (_is_number(self.lr) and self.lr > 0):
            raise InputError(f"a scalar's 'lr' is a positive number; got {self.lr!r}")
        # Integers become floats, so that 1 and 1.0 give a run the same identity.
        object.__setattr__(self, "initial", self.initial if isinstance(self.initial, str) else float(self.initial))
        object.__setattr__(self, "lr", float(self.lr))

    @staticmethod
    def read(value: object, default: Scalar) -> Scalar:
        """Parse the scalar of a study: an initial value, or a table of the fields that differ from *default*.

        Raises `InputError` for anything else.

        >>> Scalar.read(-5.0, Scalar(0.0, lr=2.0))
        Scalar(initial=-5.0, trained=True, lr=2.0)
        >>> Scalar.read({"trained": False}, Scalar(0.0))
        Scalar(initial=0.0, trained=False, lr=1.0)
        """
        defaults = {field.name: getattr(default, field.name) for field in fields(default)}
        changes = value if isinstance(value, Mapping) else {"initial": value}
        for key in changes:
            if key not in defaults:
                raise InputError(f"a scalar has no {key!r}{nearest(str(key), defaults)}")
        return Scalar(**{**defaults, **changes})

    def at(self, batch_size: int) -> float:
        """Return the initial value for one batch size.

        >>> Scalar("-log B").at(32) == -math.log(32)
        True
        """
        return -math.log(batch_size) if isinstance(self.initial, str) else float(self.initial)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def scalars_of(variant: Variant) -> dict[str, Scalar]:
    """Return the scalars that a loss declares, by name."""
    return {key: value for key, value in variant.traits.items() if isinstance(value, Scalar)}


def scalars_with(variant: Variant, options: Mapping[str, object]) -> dict[str, Scalar]:
    """Return the scalars of a loss for an arm: those set in its *options*, and the others as declared."""
    return {
        name: Scalar.read(options[name], default) if name in options else default
        for name, default in scalars_of(variant).items()
    }


def reserved_of(variant: Variant) -> tuple[str, ...]:
    """Return the reserved names that a loss requests."""
    return tuple(name for name in RESERVED if name in variant.options)


def options_of(variant: Variant) -> dict[str, inspect.Parameter]:
    """Return the options of a loss that a study may set: its keyword-only parameters except scalars and reserved names.

    >>> list(options_of(loss["clip"]))
    ['label_smoothing', 'max_scale']
    """
    excluded = {*scalars_of(variant), *RESERVED}
    return {name: parameter for name, parameter in variant.options.items() if name not in excluded}


# Variants register on import.
from stability.losses import chunked, decoupled, derivatives, fused, hardness, mixtures, running, sigmoid, softmax  # noqa: E402
from stability.losses.chunked import clip_chunked, siglip_chunked  # noqa: E402
from stability.losses.decoupled import dcl, dclw, infoloob  # noqa: E402
from stability.losses.hardness import clip_masked, focal_sigmoid, hcl, siglip_masked, triplet  # noqa: E402
from stability.losses.mixtures import adaptive, hybrid, hybrid_separate  # noqa: E402
from stability.losses.running import global_contrastive  # noqa: E402
from stability.losses.sigmoid import nt_logistic, siglip, siglip_as_published, siglip_relative_bias  # noqa: E402
from stability.losses.softmax import clip, cyclip, rince  # noqa: E402

__all__ = [
    "RESERVED",
    "Scalar",
    "adaptive",
    "chunked",
    "clip",
    "clip_chunked",
    "clip_masked",
    "cyclip",
    "dcl",
    "dclw",
    "decoupled",
    "derivatives",
    "focal_sigmoid",
    "fused",
    "global_contrastive",
    "hardness",
    "hcl",
    "hybrid",
    "hybrid_separate",
    "infoloob",
    "loss",
    "mixtures",
    "nt_logistic",
    "options_of",
    "reserved_of",
    "rince",
    "running",
    "scalars_of",
    "scalars_with",
    "siglip",
    "siglip_as_published",
    "siglip_chunked",
    "siglip_masked",
    "siglip_relative_bias",
    "sigmoid",
    "softmax",
    "triplet",
]
