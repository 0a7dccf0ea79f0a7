"""Encoders: a catalogue of towers that map one modality to embeddings, written for one replica.

An encoder is a builder ``(modality, embed_dim, *, <options>) -> nn.Module``. Its module maps a batch to (B, embed_dim);
the trainer scales the rows to unit length. A tower must process samples independently (no BatchNorm): in a contrastive
study only the loss couples them. The trait ``modality`` declares what it reads: "image", "text", "extra_modalities" or
"any" (the default).

Two conventions control how the trainer treats parameters. A parameter with ``requires_grad=False`` is frozen: every
tower here has the option *frozen* (Zhai et al. 2022, LiT, arXiv:2111.07991). A parameter named in the module's
attribute ``renormalized: tuple[str, ...]`` has its rows scaled to unit length after each step.
"""

from __future__ import annotations

from dataclasses import dataclass

from stability.registry import Registry, Variant

encoder = Registry("encoder")


@dataclass(frozen=True)
class Modality:
    """The input of a tower: the shape of one sample, and the vocabulary size (0 for real-valued input)."""

    shape: tuple[int, ...]
    vocabulary: int = 0

    @property
    def is_tokens(self) -> bool:
        """Whether samples are sequences of token ids."""
        return self.vocabulary > 0


def reads(variant: Variant) -> str:
    """Return what an encoder declares to read: image, text, extra_modalities or any."""
    return str(variant.traits.get("modality", "any"))


from stability.encoders import convolutions, dense, free, transformers  # noqa: E402  (variants register on import)

__all__ = ["Modality", "convolutions", "dense", "encoder", "free", "reads", "transformers"]
