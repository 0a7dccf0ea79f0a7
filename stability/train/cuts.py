"""Where a tower can be cut: what lies before the cut is locked, so its features of a sample never change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from stability.probes import Params
from stability.train.batched_layers import Forward, batched_forward, is_hooked

MOST_FEATURES = 4096
"""Numbers a sample may have at a cut: more, as in the first maps of a convolution, are no cheaper to keep than to make.
"""


@dataclass(frozen=True)
class FrozenSplit:
    """A tower in two parts: *frozen*, whose features of a sample never change, and the *rest* (maybe of no layers).

    *names* are the parameters of the locked part, *shape* is that of one sample's features (float32), *forward* the
    rest for all replicas at once where its layers are supported.
    """

    frozen: nn.Module
    rest: nn.Module
    names: tuple[str, ...]
    shape: tuple[int, ...]
    forward: Forward | None

    @property
    def bytes(self) -> int:
        """Bytes that the features of one sample take."""
        return torch.float32.itemsize * torch.Size(self.shape).numel()

    def features(self, params: Params, samples: Tensor) -> Tensor:
        """Return the features (B, *shape) of samples, for one replica's *params* by their names in the tower."""
        with torch.no_grad():
            features: Tensor = functional_call(self.frozen, {name: params[name] for name in self.names}, samples)
        return features


def split_frozen_prefix(tower: nn.Module, samples: Tensor) -> FrozenSplit | None:
    """Return the tower cut behind the most layers that are locked, or None where nothing is gained.

    A tower none of whose parameters is trained is cut at its end; an ``nn.Sequential`` behind the longest row of first
    layers that hold such parameters alone. Of other partly locked towers the order of the layers is not known, and they
    are not cut. Neither are those that scale rows to unit length after each step, those with hooks, those whose parts
    share a parameter, or features of more than `MOST_FEATURES` numbers a sample. *samples* are a few, to try it on.
    """
    if any(getattr(module, "renormalized", ()) or is_hooked(module) for module in tower.modules()):
        return None
    known = {name for name, _ in tower.named_parameters()}
    for frozen, rest in _parts(tower):
        held = dict(frozen.named_parameters())
        # A parameter that both parts hold goes by its first name alone.
        after = {name for name, _ in rest.named_parameters()}
        if not held or any(value.requires_grad for value in held.values()) or not after <= known - held.keys():
            continue
        with torch.no_grad():
            features = frozen(samples)
        if (
            isinstance(features, Tensor)
            and features.dtype == torch.float32
            and len(features) == len(samples)
            and features[0].numel() <= MOST_FEATURES
        ):
            return FrozenSplit(frozen, rest, tuple(held), tuple(features.shape[1:]), batched_forward(rest))
    return None


def _parts(tower: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yield the ways to part a tower, the latest first; the parts keep the names of their parameters."""
    yield tower, nn.Sequential()
    if type(tower) is nn.Sequential:
        for layers in range(len(tower) - 1, 0, -1):
            yield tower[:layers], tower[layers:]
