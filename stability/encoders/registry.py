"""The registry of encoders and its interface.

An encoder is a builder ``(modality, embed_dim, *, <options>) -> nn.Module``. Its module maps a batch to (B, embed_dim);
the trainer scales the rows to unit length. A tower must process samples independently (no BatchNorm): in a contrastive
study only the loss couples them.

Two conventions control how the trainer treats parameters. A parameter with ``requires_grad=False`` is frozen: every
tower here has the option *frozen* (Zhai et al. 2022, LiT, arXiv:2111.07991). A parameter named in the module's
attribute ``renormalized: tuple[str, ...]`` has its rows scaled to unit length after each step.
"""

from __future__ import annotations

from dataclasses import dataclass

from stability.registry import Registry, Traits


@dataclass(frozen=True)
class Modality:
    """The input of a tower: the shape of one sample, and the vocabulary size (0 for real-valued input)."""

    shape: tuple[int, ...]
    vocabulary: int = 0

    @property
    def is_tokens(self) -> bool:
        """Whether samples are sequences of token ids."""
        return self.vocabulary > 0


@dataclass(frozen=True)
class EncoderTraits(Traits):
    """What an encoder declares.

    Attributes:
        modality: What it reads: "image", "text", "extra_modalities" or "any".
    """

    modality: str = "any"


encoder = Registry("encoder", EncoderTraits)
