"""Losses: a catalogue of contrastive objectives, each one plain function written for one replica.

A loss is ``(image, text, *, <its scalars>, <reserved names>, <its options>) -> scalar`` where image and text are
(B, D) with unit rows, row i matching row i. Its trainable scalars are declared in the decorator:
``@loss(log_scale=Scalar(math.log(10.0)))``. Logits are t * <image, text> + b with t = exp(log_scale).

What a loss needs beside the batch it asks for by a reserved keyword-only name (`RESERVED`):

- ``step``: the training step, a 0-d int64 tensor;
- ``index``: (B,) int64, which training pairs the rows are;
- ``uniform``: (B, B) independent numbers in [0, 1), drawn outside;
- ``state``: tensors by name; the loss then returns ``(loss, new_state)``, and its decorator declares
  ``state=function(available) -> dict[str, Tensor]``, one replica's initial state for that many training pairs.

The trait ``chance=function(batch_size) -> float`` is the loss of embeddings that say nothing: the least that one
similarity, the same for all pairs, can reach with the best trained scalars. The trait ``value_and_grad`` is a kernel
that computes the loss at its default options, with its gradient, for all replicas at once (`stability.losses.batched`).
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
"""Keyword-only names that a loss may ask for and no study can set."""


@dataclass(frozen=True)
class Scalar:
    """A scalar of a loss: its initial value (a number, or the text ``"-log B"``, B being the batch size).

    A scalar that is not *trained* keeps its initial value; *lr* multiplies its learning rate.
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
        # Whole numbers mean the same and must not give a run another identity.
        object.__setattr__(self, "initial", self.initial if isinstance(self.initial, str) else float(self.initial))
        object.__setattr__(self, "lr", float(self.lr))

    @staticmethod
    def read(value: object, default: Scalar) -> Scalar:
        """Return the scalar that a study asks for: an initial value, or a table of what differs from *default*.

        Raises `InputError` with one sentence for anything else.

        >>> Scalar.read(-5.0, Scalar(0.0, lr=2.0))
        Scalar(initial=-5.0, trained=True, lr=2.0)
        >>> Scalar.read({"trained": False}, Scalar(0.0))
        Scalar(initial=0.0, trained=False, lr=1.0)
        """
        known = {field.name: getattr(default, field.name) for field in fields(default)}
        given = value if isinstance(value, Mapping) else {"initial": value}
        for key in given:
            if key not in known:
                raise InputError(f"a scalar has no {key!r}{nearest(str(key), known)}")
        return Scalar(**{**known, **given})

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


def scalars_with(variant: Variant, given: Mapping[str, object]) -> dict[str, Scalar]:
    """Return the scalars of a loss as an arm asks for them: those that *given* names, else as declared."""
    declared = scalars_of(variant)
    return {name: Scalar.read(given[name], default) if name in given else default for name, default in declared.items()}


def reserved_of(variant: Variant) -> tuple[str, ...]:
    """Return the reserved names that a loss asks for."""
    return tuple(name for name in RESERVED if name in variant.options)


def options_of(variant: Variant) -> dict[str, inspect.Parameter]:
    """Return what a study may set of a loss beside its scalars: its keyword-only parameters, no reserved names.

    >>> list(options_of(loss["clip"]))
    ['label_smoothing', 'max_scale']
    """
    held = {*scalars_of(variant), *RESERVED}
    return {name: parameter for name, parameter in variant.options.items() if name not in held}


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
