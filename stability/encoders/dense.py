"""Dense towers: a linear map and a multi-layer perceptron on flattened input."""

from __future__ import annotations

import itertools

from torch import nn

from stability.encoders.registry import Modality, encoder
from stability.registry import InputError


def _features(name: str, modality: Modality) -> int:
    if modality.is_tokens:
        raise InputError(
            f"encoder {name!r} reads real-valued input, and this modality is token ids; use 'token_transformer', or "
            "'free_vectors' for one id a sample"
        )
    size = 1
    for extent in modality.shape:
        size *= extent
    return size


@encoder(modality="any")
def linear(modality: Modality, embed_dim: int, *, frozen: bool = False) -> nn.Module:
    """Build a linear map without bias on the flattened input: (B, ...) -> (B, embed_dim)."""
    tower = nn.Sequential(nn.Flatten(), nn.Linear(_features("linear", modality), embed_dim, bias=False))
    return tower.requires_grad_(not frozen)


@encoder(modality="any", least={"width": 1, "depth": 0})
def mlp(modality: Modality, embed_dim: int, *, width: int = 128, depth: int = 2, frozen: bool = False) -> nn.Module:
    """Build a perceptron with *depth* hidden GELU layers on the flattened input: (B, ...) -> (B, embed_dim).

    Args:
        modality: shape and vocabulary of the input.
        embed_dim: width of the embeddings.
        width: width of the hidden layers.
        depth: number of hidden layers.
        frozen: keep the initial weights.
    """
    size = _features("mlp", modality)
    widths = itertools.chain([size], itertools.repeat(width, depth))
    hidden = [layer for pair in itertools.pairwise(widths) for layer in (nn.Linear(*pair), nn.GELU())]
    last = nn.Linear(width if depth else size, embed_dim)
    return nn.Sequential(nn.Flatten(), *hidden, last).requires_grad_(not frozen)
