"""Corruptions of content: images, texts or both replaced by noise or blanks."""

from __future__ import annotations

import torch
from torch import Tensor

from stability.corruptions.pairs import corrupted_indices, mismatch
from stability.corruptions.registry import Values, corruption
from stability.registry import InputError


@corruption
def image_noise(
    image: Tensor, text: Tensor, *, caption: Tensor, level: float, generator: torch.Generator, images: Values
) -> tuple[Tensor, Tensor]:
    """Replace a share *level* of the images by uniform noise in the range of the data, or ids by another id.

    Corrupts round(level * n) images. Zhai et al. (2023), arXiv:2303.15343, Sec. 4.10, corruption 1.

    Args:
        image: images (n, ...).
        text: texts (n, ...).
        caption: ids (n,) of captions; equal ids mean equal captions.
        level: share of corrupted pairs, in [0, 1].
        generator: the run's stream of random numbers.
        images: range of the images' values.
    """
    chosen = corrupted_indices(len(image), level, generator)
    noise = images.draw(image, generator)
    if not image.is_floating_point():
        noise = _unlike(noise, image, images)
    noisy = image.clone()
    noisy[chosen] = noise[chosen]
    return noisy, text


@corruption
def text_noise(
    image: Tensor, text: Tensor, *, caption: Tensor, level: float, generator: torch.Generator, texts: Values
) -> tuple[Tensor, Tensor]:
    """Replace a share *level* of the texts by random tokens of random length, padded with blanks.

    Corrupts round(level * n) texts. The length is uniform in 1..T, each token uniform over the words (not the blank).
    A text equal to the one it replaces gets a different first word. Real-valued text becomes uniform noise in the range
    of the data. Zhai et al. (2023), arXiv:2303.15343, Sec. 4.10, corruption 2.

    Args:
        image: images (n, ...).
        text: texts (n, ...).
        caption: ids (n,) of captions; equal ids mean equal captions.
        level: share of corrupted pairs, in [0, 1].
        generator: the run's stream of random numbers.
        texts: range of the texts' values.
    """
    chosen = corrupted_indices(len(text), level, generator)
    noise = texts.draw(text, generator)
    if not text.is_floating_point():
        length = torch.randint(1, text.shape[-1] + 1, (len(text), 1), generator=generator)
        is_padding = torch.arange(text.shape[-1]) >= length
        noise = _unlike(noise.masked_fill(is_padding.to(text.device), 0), text, texts)
    noisy = text.clone()
    noisy[chosen] = noise[chosen]
    return image, noisy


@corruption(parts=("image_noise", "text_noise"))
def image_and_text(
    image: Tensor,
    text: Tensor,
    *,
    caption: Tensor,
    level: float,
    generator: torch.Generator,
    images: Values,
    texts: Values,
) -> tuple[Tensor, Tensor]:
    """Replace a share *level* of the images by noise and, independently, a share *level* of the texts.

    A share of about level^2 of the pairs loses both, and (1 - level)^2 neither. Zhai et al. (2023), arXiv:2303.15343,
    Sec. 4.10, corruption 4.

    Args:
        image: images (n, ...).
        text: texts (n, ...).
        caption: ids (n,) of captions; equal ids mean equal captions.
        level: share of corrupted pairs, in [0, 1].
        generator: the run's stream of random numbers.
        images: range of the images' values.
        texts: range of the texts' values.
    """
    image, _ = image_noise(image, text, caption=caption, level=level, generator=generator, images=images)
    return text_noise(image, text, caption=caption, level=level, generator=generator, texts=texts)


@corruption(parts=("image_noise", "text_noise", "mismatch"))
def all_three(
    image: Tensor,
    text: Tensor,
    *,
    caption: Tensor,
    level: float,
    generator: torch.Generator,
    images: Values,
    texts: Values,
) -> tuple[Tensor, Tensor]:
    """Mismatch a share *level* of the pairs, then independently replace as many images and as many texts by noise.

    About (1 - level)^3 of the pairs stay intact. Zhai et al. (2023), arXiv:2303.15343, Sec. 4.10, corruption 5.

    Args:
        image: images (n, ...).
        text: texts (n, ...).
        caption: ids (n,) of captions; equal ids mean equal captions.
        level: share of corrupted pairs, in [0, 1].
        generator: the run's stream of random numbers.
        images: range of the images' values.
        texts: range of the texts' values.
    """
    _, mixed = mismatch(image, text, caption=caption, level=level, generator=generator)
    return image_and_text(image, mixed, caption=caption, level=level, generator=generator, images=images, texts=texts)


@corruption
def caption_dropout(
    image: Tensor, text: Tensor, *, caption: Tensor, level: float, generator: torch.Generator, texts: Values
) -> tuple[Tensor, Tensor]:
    """Replace a share *level* of the texts by the empty caption: only blanks, or zeros if text is real-valued.

    Corrupts round(level * n) texts; in a batch they are false negatives of each other. Raises `InputError` if every id
    is a word.

    Args:
        image: images (n, ...).
        text: texts (n, ...).
        caption: ids (n,) of captions; equal ids mean equal captions.
        level: share of corrupted pairs, in [0, 1].
        generator: the run's stream of random numbers.
        texts: range of the texts' values.
    """
    if not text.is_floating_point() and texts.low == 0:
        raise InputError("caption_dropout: every token id of these data is a word, so there is no empty caption")
    chosen = corrupted_indices(len(text), level, generator)
    dropped = text.clone()
    dropped[chosen] = 0
    return image, dropped


def _unlike(noise: Tensor, original: Tensor, values: Values) -> Tensor:
    """Return *noise* (n, T) of ids; where a row equals the original, its first id is incremented cyclically."""
    same = (noise == original).all(-1)
    following = torch.where(noise[:, 0] >= values.high, int(values.low), noise[:, 0] + 1)
    return torch.cat([torch.where(same, following, noise[:, 0])[:, None], noise[:, 1:]], dim=-1)
