"""The registry of losses and its interface.

A loss is ``(image, text, *, <its scalars>, <reserved names>, <its options>) -> scalar`` where image and text are
(B, D) with unit rows and row i matches row i. Its trainable scalars are declared in the decorator:
``@loss(log_scale=Scalar(math.log(10.0)))``. Logits are t * <image, text> + b with t = exp(log_scale).

Inputs in addition to the batch are requested by reserved keyword-only names (`RESERVED`):

- ``step``: the training step, a 0-d int64 tensor;
- ``index``: (B,) int64, the indices of the rows among the training pairs;
- ``uniform``: (B, B) independent numbers in [0, 1), drawn by the trainer;
- ``state``: tensors by name; the loss then returns ``(loss, new_state)``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

from torch import Tensor

from stability.registry import InputError, Registry, Traits, Variant, nearest

RESERVED = ("step", "index", "uniform", "state")
"""Keyword-only names that a loss may request and no study can set."""


@dataclass(frozen=True)
class Scalar:
    """A scalar of a loss.

    Attributes:
        initial: the initial value: a number, or the text ``"-log B"``, where B is the batch size.
        trained: whether it is trained; otherwise it keeps its initial value.
        lr_multiplier: factor on its learning rate.
    """

    initial: float | Literal["-log B"]
    trained: bool = True
    lr_multiplier: float = 1.0

    def __post_init__(self) -> None:
        if not (self.initial == "-log B" or _is_number(self.initial)):
            raise InputError(f"a scalar starts at a finite number or at '-log B'; got {self.initial!r}")
        if not isinstance(self.trained, bool):
            raise InputError(f"a scalar's 'trained' is true or false; got {self.trained!r}")
        if not (_is_number(self.lr_multiplier) and self.lr_multiplier > 0):
            raise InputError(f"a scalar's 'lr_multiplier' is a positive number; got {self.lr_multiplier!r}")
        # Integers become floats, so that 1 and 1.0 give a run the same identity.
        object.__setattr__(self, "initial", self.initial if isinstance(self.initial, str) else float(self.initial))
        object.__setattr__(self, "lr_multiplier", float(self.lr_multiplier))

    @staticmethod
    def read(value: object, default: Scalar) -> Scalar:
        """Parse the scalar of a study: an initial value, or a table of the fields that differ from *default*.

        Raises `InputError` for anything else.

        >>> Scalar.read(-5.0, Scalar(0.0, lr_multiplier=2.0))
        Scalar(initial=-5.0, trained=True, lr_multiplier=2.0)
        >>> Scalar.read({"trained": False}, Scalar(0.0))
        Scalar(initial=0.0, trained=False, lr_multiplier=1.0)
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


@dataclass(frozen=True)
class LossTraits(Traits):
    """What a loss declares.

    Attributes:
        scalars: Its scalars by name; in the decorator each is a keyword, ``log_scale=Scalar(2.3)``.
        chance: ``chance(batch_size, *, <some of its options>) -> float``: the loss of uninformative embeddings, the
            minimum over the trained scalars if all pairs have the same similarity; None: it is computed numerically.
        state: ``state(available) -> tensors by name``: the initial state of one replica for that many training pairs;
            None for a loss without one.
        value_and_grad: A kernel that computes the loss at its default options, and its gradient, for all replicas at
            once (`stability.losses.batched`); None: autograd computes them.
        reparametrizes: The loss of which it is another parametrization, so that both have the same values; empty: none.
    """

    scalars: Mapping[str, Scalar] = field(default_factory=dict)
    chance: Callable[..., float] | None = None
    state: Callable[[int], dict[str, Tensor]] | None = None
    value_and_grad: Callable[..., Any] | None = None
    reparametrizes: str = ""

    @classmethod
    def declared(cls, values: Mapping[str, Any], where: str) -> Self:
        """Return the traits with these *values*, of which each `Scalar` is one of the loss's scalars."""
        scalars = {name: value for name, value in values.items() if isinstance(value, Scalar)}
        others = {name: value for name, value in values.items() if name not in scalars}
        return super().declared({"scalars": scalars, **others}, where)


loss = Registry("loss", LossTraits, group="stability.losses")


def scalars_of(variant: Variant[LossTraits]) -> dict[str, Scalar]:
    """Return the scalars that a loss declares, by name."""
    return dict(variant.traits.scalars)


def scalars_with(variant: Variant[LossTraits], options: Mapping[str, object]) -> dict[str, Scalar]:
    """Return the scalars of a loss for an arm: those set in its *options*, and the others as declared."""
    return {
        name: Scalar.read(options[name], default) if name in options else default
        for name, default in scalars_of(variant).items()
    }


def reserved_of(variant: Variant[LossTraits]) -> tuple[str, ...]:
    """Return the reserved names that a loss requests."""
    return tuple(name for name in RESERVED if name in variant.options)


def options_of(variant: Variant[LossTraits]) -> dict[str, inspect.Parameter]:
    """Return the options of a loss that a study may set: its keyword-only parameters except scalars and reserved names.

    >>> list(options_of(loss["clip"]))
    ['label_smoothing', 'max_scale', 'z_loss', 'logit_cap']
    """
    excluded = {*scalars_of(variant), *RESERVED}
    return {name: parameter for name, parameter in variant.options.items() if name not in excluded}
