"""Splitting a tower into a frozen prefix, whose features of a sample never change, and the trainable rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from stability.probes import Params
from stability.train.batched_layers import Forward, batched_forward, is_hooked

MOST_FEATURES = 4096
"""Largest number of features of a sample at the split; larger ones, as in early convolutions, are not worth storing."""


@dataclass(frozen=True)
class FrozenSplit:
    """A tower split into a frozen prefix and the rest.

    Attributes:
        frozen: the prefix, whose features of a sample never change.
        rest: the layers behind it; may be empty.
        names: the parameters of the frozen prefix, by their names in the tower.
        shape: the shape of one sample's features (float32).
        forward: the rest for all replicas at once; None if a layer is not supported.
    """

    frozen: nn.Module
    rest: nn.Module
    names: tuple[str, ...]
    shape: tuple[int, ...]
    forward: Forward | None

    @property
    def bytes(self) -> int:
        """Bytes of the features of one sample."""
        return torch.float32.itemsize * torch.Size(self.shape).numel()

    def features(self, params: Params, samples: Tensor) -> Tensor:
        """Return the features (B, *shape) of samples, for one replica's *params* by their names in the tower."""
        with torch.no_grad():
            features: Tensor = functional_call(self.frozen, {name: params[name] for name in self.names}, samples)
        return features


def split_frozen_prefix(tower: nn.Module, samples: Tensor) -> FrozenSplit | None:
    """Split the tower behind its longest frozen prefix, or return None if it cannot be split.

    A tower without trained parameters is split at its end. An ``nn.Sequential`` is split behind the longest prefix of
    layers without trained parameters. Other partly frozen towers are not split, since the order of their layers is
    unknown. Towers that scale rows to unit length after each step, towers with hooks, towers whose parts share a
    parameter, and splits with more than `MOST_FEATURES` features a sample are excluded as well.

    Args:
        tower: the tower.
        samples: a few samples on which the split is tried.
    """
    if any(getattr(module, "renormalized", ()) or is_hooked(module) for module in tower.modules()):
        return None
    all_names = {name for name, _ in tower.named_parameters()}
    for frozen, rest in _parts(tower):
        frozen_params = dict(frozen.named_parameters())
        # A shared parameter is listed under its first name only.
        rest_names = {name for name, _ in rest.named_parameters()}
        trained = any(value.requires_grad for value in frozen_params.values())
        if not frozen_params or trained or not rest_names <= all_names - frozen_params.keys():
            continue
        with torch.no_grad():
            features = frozen(samples)
        if (
            isinstance(features, Tensor)
            and features.dtype == torch.float32
            and len(features) == len(samples)
            and features[0].numel() <= MOST_FEATURES
        ):
            return FrozenSplit(frozen, rest, tuple(frozen_params), tuple(features.shape[1:]), batched_forward(rest))
    return None


def _parts(tower: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yield the possible splits of a tower, the latest first; both parts keep their parameter names."""
    yield tower, nn.Sequential()
    if type(tower) is nn.Sequential:
        for layers in range(len(tower) - 1, 0, -1):
            yield tower[:layers], tower[layers:]
