"""Small transformer towers for image patches and for tokens."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stability.encoders.registry import Modality, encoder
from stability.registry import InputError, nearest

Norm = Literal["pre", "post"]
"""Where a block normalizes: the input of attention and MLP, or the sum of residual and output."""


class Attention(nn.Module):
    """Self-attention over (B, T, width) in elementary operations, so it is twice differentiable on every device."""

    def __init__(self, width: int, heads: int, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.query_norm, self.key_norm = (nn.LayerNorm(width // heads) if qk_norm else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended tokens, (..., length, width)."""
        query, key, value = self._by_head(x)
        mixed = self._logits(query, key).softmax(-1) @ value
        return self.out(mixed.transpose(-2, -3).reshape(x.shape))

    def logits(self, x: Tensor) -> Tensor:
        """Return what the softmax of each head normalizes, <q_i, k_j> / sqrt(width of a head): (..., heads, T, T)."""
        query, key, _ = self._by_head(x)
        return self._logits(query, key)

    def _by_head(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, (..., heads, T, width of a head)."""
        *batch, length, width = x.shape
        split = self.query_key_value(x).reshape(*batch, length, 3, self.heads, width // self.heads)
        query, key, value = split.movedim(-3, 0).transpose(-2, -3)
        return self.query_norm(query), self.key_norm(key), value

    def _logits(self, query: Tensor, key: Tensor) -> Tensor:
        return query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5


class TransformerBlock(nn.Module):
    """Transformer block: attention, then an MLP with a GELU, each with a residual and a norm.

    Pre-norm: x + f(norm(x)), where f is the attention or the MLP. Post-norm: norm(x + f(x)).
    """

    def __init__(self, width: int, heads: int, mlp_ratio: int, qk_norm: bool = False, norm: Norm = "pre") -> None:
        super().__init__()
        self.norm = norm
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, qk_norm)
        self.mlp_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, mlp_ratio * width)
        self.contract = nn.Linear(mlp_ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens after attention and MLP, each with its residual."""
        if self.norm == "post":
            x = self.attention_norm(x + self.attention(x))
            return self.mlp_norm(x + self.contract(F.gelu(self.expand(x))))
        x = x + self.attention(self.attention_norm(x))
        return x + self.contract(F.gelu(self.expand(self.mlp_norm(x))))


class Transformer(nn.Module):
    """Embeds a sequence, adds learned positions, applies the blocks, averages over positions and projects."""

    def __init__(
        self,
        embed: nn.Module,
        length: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: int,
        embed_dim: int,
        qk_norm: bool = False,
        norm: Norm = "pre",
    ) -> None:
        super().__init__()
        self.embed = embed
        self.position = nn.Parameter(torch.randn(length, width) * width**-0.5)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, mlp_ratio, qk_norm, norm) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, embed_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the embeddings of a batch, (B, D)."""
        x = self.embed(x) + self.position
        for block in self.blocks:
            x = block(x)
        return self.project(self.norm(x).mean(-2))


class Patches(nn.Module):
    """Cuts images (B, C, H, W) into square patches and maps each linearly: (B, H/p * W/p, width)."""

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.linear = nn.Linear(channels * patch**2, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the patches of images as tokens, (B, patches, width)."""
        batch, channels, height, width = x.shape
        rows, columns = height // self.patch, width // self.patch
        x = x.reshape(batch, channels, rows, self.patch, columns, self.patch)
        return self.linear(x.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1))


def _check_blocks(name: str, width: int, heads: int, qk_norm: bool, norm: str) -> None:
    if width % heads:
        raise InputError(f"encoder {name!r}: heads = {heads} does not divide width = {width}")
    if qk_norm and width == heads:
        raise InputError(f"encoder {name!r}: qk_norm needs heads of width 2 or more, and width = heads = {heads}")
    if norm not in get_args(Norm):
        raise InputError(f"encoder {name!r}: norm: unknown {norm!r}{nearest(norm, get_args(Norm))}")


@encoder(modality="image", least={"patch": 1, "width": 1, "depth": 0, "heads": 1, "mlp_ratio": 1})
def patch_transformer(
    modality: Modality,
    embed_dim: int,
    *,
    patch: int = 4,
    width: int = 32,
    depth: int = 1,
    heads: int = 4,
    mlp_ratio: int = 2,
    qk_norm: bool = False,
    norm: Norm = "pre",
    frozen: bool = False,
) -> nn.Module:
    """Build a vision transformer over square patches, averaged over positions.

    Input (B, C, H, W), output (B, embed_dim). Learned positions, no class token, a norm before the mean over patches.
    Dosovitskiy et al. (2021), arXiv:2010.11929; mean pooling as in Beyer et al. (2022), arXiv:2205.01580. *qk_norm*: a
    LayerNorm of each head's queries and of its keys, Dehghani et al. (2023), arXiv:2302.05442, Sec. 2. *norm* "pre" and
    "post" have the same parameters; Xiong et al. (2020), arXiv:2002.04745, compare the two.

    Args:
        modality: shape and vocabulary of the input.
        embed_dim: width of the embeddings.
        patch: side of a patch in pixels; divides the image's sides.
        width: width of the tokens.
        depth: number of blocks.
        heads: number of attention heads; divides *width*.
        mlp_ratio: hidden width of the perceptrons, in multiples of *width*.
        qk_norm: normalize queries and keys of each head; with unit gains, |logits| <= sqrt(width / heads).
        norm: "pre" or "post", where a block normalizes.
        frozen: keep the initial weights.
    """
    _check_blocks("patch_transformer", width, heads, qk_norm, norm)
    if len(modality.shape) != 3 or modality.shape[1] % patch or modality.shape[2] % patch:
        raise InputError(f"encoder 'patch_transformer': patch = {patch} does not tile images of shape {modality.shape}")
    channels, rows, columns = modality.shape
    length = (rows // patch) * (columns // patch)
    tower = Transformer(
        Patches(channels, patch, width), length, width, depth, heads, mlp_ratio, embed_dim, qk_norm, norm
    )
    return tower.requires_grad_(not frozen)


@encoder(modality="text", least={"width": 1, "depth": 0, "heads": 1, "mlp_ratio": 1})
def token_transformer(
    modality: Modality,
    embed_dim: int,
    *,
    width: int = 32,
    depth: int = 1,
    heads: int = 4,
    mlp_ratio: int = 2,
    qk_norm: bool = False,
    norm: Norm = "pre",
    frozen: bool = False,
) -> nn.Module:
    """Build a transformer over token ids without a causal mask, averaged over positions.

    Input (B, T) integers, output (B, embed_dim). Padding is a token like any other.
    Vaswani et al. (2017), arXiv:1706.03762, whose norm is "post". *qk_norm* and *norm* as in `patch_transformer`.

    Args:
        modality: shape and vocabulary of the input.
        embed_dim: width of the embeddings.
        width: width of the tokens.
        depth: number of blocks.
        heads: number of attention heads; divides *width*.
        mlp_ratio: hidden width of the perceptrons, in multiples of *width*.
        qk_norm: normalize queries and keys of each head; with unit gains, |logits| <= sqrt(width / heads).
        norm: "pre" or "post", where a block normalizes.
        frozen: keep the initial weights.
    """
    _check_blocks("token_transformer", width, heads, qk_norm, norm)
    embed = nn.Embedding(modality.vocabulary, width)
    tower = Transformer(embed, modality.shape[0], width, depth, heads, mlp_ratio, embed_dim, qk_norm, norm)
    return tower.requires_grad_(not frozen)
