"""The dataset 'digits': real handwritten digits with captions that describe the style of each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from stability.datasets.frequencies import offered, with_frequencies
from stability.datasets.registry import Pairs, dataset
from stability.registry import InputError
from stability.streams import stream

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
THICKNESS = ("thin", "regular", "thick")
SLANT = ("leftward", "upright", "rightward")
WIDTHS = 3
LENGTH = 6
VOCABULARY = (
    "",
    ",",
    "a",
    "and",
    "digit",
    "narrow",
    "wide",
    *THICKNESS,
    *SLANT,
    *NUMBERS,
    *map(str, range(10)),
)


def caption_words(digit: int, thickness: int, slant: int, width: int) -> tuple[str, ...]:
    """Return the caption of a digit as words; width determines wording and order, the other styles one word each.

    Args:
        digit: 0 to 9.
        thickness: index of the class of thickness.
        slant: index of the class of slant.
        width: index of the class of width.

    >>> [" ".join(caption_words(7, 0, 2, width)) for width in range(3)]
    ['narrow seven , thin , rightward', 'a thin rightward digit 7', 'rightward and thin wide seven']
    """
    thick, lean, word = THICKNESS[thickness], SLANT[slant], NUMBERS[digit]
    return (
        ("narrow", word, ",", thick, ",", lean),
        ("a", thick, lean, "digit", str(digit)),
        (lean, "and", thick, "wide", word),
    )[width]


def tokens(words: tuple[str, ...]) -> list[int]:
    """Return the token ids of a caption, padded with token 0 to the common length."""
    ids = [VOCABULARY.index(word) for word in words]
    return ids + [0] * (LENGTH - len(ids))


def terciles(values: np.ndarray) -> np.ndarray:
    """Return 0, 1 or 2 for each value: below, between or above the thirds of all values.

    >>> terciles(np.arange(9.0))
    array([0, 0, 0, 1, 1, 1, 2, 2, 2])
    """
    return np.searchsorted(np.quantile(values, [1 / 3, 2 / 3]), values)


def styles(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (thickness, slant, width) terciles over N images of ink (N, 8, 8).

    Thickness: total ink. Slant: shift to the right per row upwards, cov(x, height) / var(height) with ink as weight.
    Width: standard deviation of ink across columns over that across rows.
    """
    ink = images / images.sum((1, 2), keepdims=True)
    column = np.arange(images.shape[2])[None, None, :]
    height = -np.arange(images.shape[1])[None, :, None]
    x = column - (ink * column).sum((1, 2), keepdims=True)
    y = height - (ink * height).sum((1, 2), keepdims=True)
    var_x, var_y, cov = ((ink * moment).sum((1, 2)) for moment in (x * x, y * y, x * y))
    return terciles(images.sum((1, 2))), terciles(cov / var_y), terciles(np.sqrt(var_x / var_y))


@dataset(offers=lambda options: ("classes", *offered(options)), least={"zipf": 0.0})
def digits(*, held_out: float = 0.2, zipf: float = 0.0, class_mix: Sequence[float] | None = None) -> Pairs:
    """Return the 1,797 handwritten digits that ship with scikit-learn, paired with captions of six tokens.

    Images (1, 8, 8) in [-1, 1]. A caption names the digit (as word or numeral) and two styles measured in the image
    (see `styles`); the third style, width, determines its wording and word order. Thus captions are functions of
    images, several images share a caption, and text is not a label. *held_out* is the share of held-out pairs, drawn
    from a fixed stream. By *zipf* s, the training pairs have the digits 0, 1, 2... at frequencies in proportion to 1,
    2^-s, 3^-s...; by *class_mix*, in proportion to ten weights; held-out pairs stay (`with_frequencies`).
    E. Alpaydin and C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI, doi:10.24432/C50P49 (test part).
    """
    from sklearn.datasets import load_digits

    if not 0 < held_out < 1:
        raise InputError(f"held_out: got {held_out:g}; allowed: a share between 0 and 1")
    source = load_digits()
    images, labels = source.images, source.target
    rows = [tokens(caption_words(*facts)) for facts in zip(labels, *styles(images), strict=True)]
    text = torch.tensor(rows)
    caption = torch.unique(text, dim=0, return_inverse=True)[1]
    order = torch.randperm(len(text), generator=stream(0, "digits/split"))
    count = round(held_out * len(text))
    label = torch.from_numpy(labels).long()
    train, rank = with_frequencies(
        order[count:].sort().values, label, zipf, class_mix, "digits", stream(0, "digits/frequencies")
    )
    combinations = list(itertools.product(range(3), range(3), range(WIDTHS)))
    prompts = [[tokens(caption_words(digit, *style)) for style in combinations] for digit in range(10)]
    return Pairs(
        image=torch.from_numpy(images).float()[:, None] / 8 - 1,
        text=text,
        caption=caption,
        label=label,
        train=train,
        held_out=order[:count].sort().values,
        prompts=torch.tensor(prompts),
        vocabulary=VOCABULARY,
        frequency_rank=rank,
    )
