"""Datasets: a catalogue of paired data, each a function ``(*, <options>) -> Pairs``."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stability.registry import Registry

dataset = Registry("dataset")


@dataclass(frozen=True)
class Pairs:
    """A finite set of image-text pairs with its split, and the prompts of its zero-shot classes.

    image (N, ...) float; text (N, T) token ids or (N, F) floats; caption (N,) the identity of each pair's text: equal
    numbers mean equal text; label (N,) class of each image; train (n,) and held_out (m,) indices, disjoint; prompts
    (classes, variants, T) texts that name each class; vocabulary: the words, by token id (empty for real-valued text).
    """

    image: Tensor
    text: Tensor
    caption: Tensor
    label: Tensor
    train: Tensor
    held_out: Tensor
    prompts: Tensor
    vocabulary: tuple[str, ...] = ()

    def words(self, index: int) -> str:
        """Return the caption of one pair as a reader would write it."""
        return " ".join(self.vocabulary[token] for token in self.text[index].tolist()).strip()


from stability.datasets import handwriting  # noqa: E402  (variants register on import)

__all__ = ["Pairs", "dataset", "handwriting"]
