"""Towers without a network: one free vector for each sample, as in the theory of contrastive minimizers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stability.encoders.registry import Modality, encoder
from stability.registry import InputError


class FreeVectors(nn.Module):
    """Look up the vector of each id: (B, 1) integers -> (B, D). Initial vectors are uniform on the unit sphere."""

    def __init__(self, count: int, dim: int, renormalized: bool) -> None:
        super().__init__()
        self.renormalized: tuple[str, ...] = ("vectors",) if renormalized else ()
        self.vectors = nn.Parameter(F.normalize(torch.randn(count, dim), dim=-1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the vectors of samples, which are their indices."""
        return self.vectors[x[..., 0]]


@encoder(modality="any")
def free_vectors(modality: Modality, embed_dim: int, *, renormalized: bool = True, frozen: bool = False) -> nn.Module:
    """Build one trained vector per pair id, initially uniform on the sphere: (B, 1) ids -> (B, embed_dim).

    The loss normalizes vectors, so its gradient shrinks as a vector grows; *renormalized* scales each to length 1 after
    every step. *frozen* keeps the initial vectors. Reads only ids, as of the dataset 'sphere'.
    Bangachev et al. (2025), arXiv:2509.18552, App. D (re-projected; one modality frozen in D.2).

    Args:
        modality: shape and vocabulary of the input.
        embed_dim: width of the embeddings.
        renormalized: scale each vector to length 1 after every step.
        frozen: keep the initial weights.
    """
    if not modality.is_tokens or modality.shape != (1,):
        what = "token ids" if modality.is_tokens else "real values"
        raise InputError(
            f"encoder 'free_vectors' reads one id a sample, and this modality is {what} of shape {modality.shape}"
        )
    return FreeVectors(modality.vocabulary, embed_dim, renormalized).requires_grad_(not frozen)
