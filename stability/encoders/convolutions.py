"""A small convolutional tower for images."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stability.encoders.registry import Modality, encoder
from stability.registry import InputError


class Convolution(nn.Module):
    """Apply a 3 x 3 convolution of stride 2 with padding 1: (B, C, H, W) -> (B, out, ceil(H / 2), ceil(W / 2)).

    Implemented as windows times a matrix: under ``vmap`` over weights, a grouped convolution is slow on the CPU, and
    its kernel depends on the number of replicas.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels * 9, out)

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature maps of (B, C, H, W) images."""
        height, width = x.shape[-2:]
        padded = F.pad(x, (1, 1, 1, 1))
        # One strided view per window offset: the backward pass of `unfold` has no vmap rule.
        offsets = itertools.product(range(3), range(3))
        windows = torch.stack([padded[..., i : i + height : 2, j : j + width : 2] for i, j in offsets], -1)
        return self.linear(windows.movedim(-4, -2).flatten(-2)).movedim(-1, -3)


class Average(nn.Module):
    """Average feature maps over positions: (B, C, H, W) -> (B, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the means over positions, (B, C)."""
        return x.mean((-2, -1))


@encoder(modality="image")
def conv(modality: Modality, embed_dim: int, *, width: int = 16, depth: int = 2, frozen: bool = False) -> nn.Module:
    """Build *depth* 3 x 3 convolutions of stride 2 with GELU, averaged over positions and projected linearly.

    Input (B, C, H, W), output (B, embed_dim). Channels double from layer to layer, starting at *width*. There is no
    normalization: BatchNorm would couple the samples of a batch.

    Args:
        modality: shape and vocabulary of the input.
        embed_dim: width of the embeddings.
        width: channels of the first layer.
        depth: number of layers.
        frozen: keep the initial weights.
    """
    if len(modality.shape) != 3 or modality.is_tokens:
        raise InputError(f"encoder 'conv' reads images (C, H, W), and this modality has shape {modality.shape}")
    widths = [modality.shape[0], *(width * 2**layer for layer in range(depth))]
    layers = [layer for pair in itertools.pairwise(widths) for layer in (Convolution(*pair), nn.GELU())]
    head = (Average(), nn.Linear(widths[-1], embed_dim, bias=False))
    return nn.Sequential(*layers, *head).requires_grad_(not frozen)
