"""The dataset 'shapes': rendered scenes of one to three objects, with captions of objects and positions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stability.datasets.frequencies import offered, with_frequencies
from stability.datasets.registry import Pairs, dataset, split
from stability.registry import InputError
from stability.streams import stream

COLORS = {
    "red": (1.0, 0.1, 0.1),
    "orange": (1.0, 0.55, 0.0),
    "yellow": (1.0, 1.0, 0.1),
    "green": (0.1, 0.8, 0.1),
    "cyan": (0.0, 0.9, 0.9),
    "blue": (0.2, 0.3, 1.0),
    "purple": (0.7, 0.1, 0.9),
    "white": (1.0, 1.0, 1.0),
}
WORDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "size": (("small", "tiny"), ("large", "big")),
    "color": tuple((name,) for name in COLORS),
    "shape": (("circle", "disc"), ("square", "box"), ("triangle", "wedge"), ("cross", "plus")),
    "column": (("left",), ("right",)),
    "row": (("top", "upper"), ("bottom", "lower")),
    "height": (("above", "over"), ("below", "under")),
}
"""The meanings of each word family, each with its synonyms."""

VOCABULARY = (
    "",
    "in",
    "the",
    ":",
    "of",
    "and",
    *(word for family in WORDS.values() for words in family for word in words),
)
TOKEN = {word: token for token, word in enumerate(VOCABULARY)}
LENGTH = 12
MOST = 3
LARGE, SMALL = 0.2, 0.115
"""Half the extent of an object, as a share of the image."""

JITTER = 0.04

Slot = str | tuple[str, int]
"""A literal word, or (family, meaning), to be expressed by one of its synonyms."""


@dataclass(frozen=True)
class Scenes:
    """N scenes of up to three objects of different colors.

    Attributes:
        color: (N, 3) index of the color.
        shape: (N, 3) index of the shape.
        large: (N, 3) 1 for large objects, else 0.
        quadrant: (N, 3) distinct quadrants, 2 * column + row, sorted from left to right, then from top to bottom.
        shift: (N, 3, 2) offset from the quadrant's center, (x, y) as shares of the image.
        count: (N,) number of objects shown; entries beyond it are ignored.
    """

    color: Tensor
    shape: Tensor
    large: Tensor
    quadrant: Tensor
    shift: Tensor
    count: Tensor

    def objects(self) -> list[list[tuple[int, int, int, int]]]:
        """Return each scene as a list of (size, color, shape, quadrant), one per object shown."""
        objects = torch.stack([self.large, self.color, self.shape, self.quadrant], -1).tolist()
        counts = self.count.tolist()
        return [[tuple(one) for one in scene[:count]] for scene, count in zip(objects, counts, strict=True)]


# --- scenes ----------------------------------------------------------------------------------------------------------


def is_novel(color: Tensor, shape: Tensor) -> Tensor:
    """Return whether a color and shape are one of the eight compositions that never occur in training.

    Every color lacks one shape and every shape two colors: red and cyan circles, orange and blue squares, yellow and
    purple triangles, green and white crosses.
    """
    return color % len(WORDS["shape"]) == shape


def draw_scenes(novel: Tensor, generator: torch.Generator) -> Scenes:
    """Return a random scene for each entry of *novel* (N,): with exactly one novel composition if true, else none.

    Uniform and independent: the number of objects, quadrants, colors (without repetition), shapes, sizes, and which of
    the objects is the novel one.
    """
    size, colors, shapes = len(novel), len(COLORS), len(WORDS["shape"])
    count = torch.randint(1, MOST + 1, (size,), generator=generator)
    quadrant = torch.rand(size, 4, generator=generator).argsort(-1)[:, :MOST]
    color = torch.rand(size, colors, generator=generator).argsort(-1)[:, :MOST]
    other = torch.randint(1, shapes, (size, MOST), generator=generator)
    special = (torch.rand(size, generator=generator) * count).long()
    large = torch.randint(2, (size, MOST), generator=generator)
    shift = (2 * torch.rand(size, MOST, 2, generator=generator) - 1) * JITTER
    index = torch.arange(MOST)
    # Absent objects are sorted last, so that those shown come first and in order.
    order = torch.where(index < count[:, None], quadrant, 4 + index).argsort(-1)
    is_special = novel[:, None] & (index == special[:, None])
    shape = (color + torch.where(is_special, 0, other)) % shapes
    color, shape, large, quadrant = (part.gather(1, order) for part in (color, shape, large, quadrant))
    return Scenes(color, shape, large, quadrant, shift, count)


def coverage(shape: Tensor, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Return the share of each pixel that an object covers, from its signed distance in pixels at (x, y).

    The share is 1 half a pixel or more inside, 0 half a pixel or more outside, and linear between.

    Args:
        shape: index of each object's shape.
        x: horizontal distance of each pixel from the object's center.
        y: vertical distance, downwards.
        radius: of the object, in pixels.
    """
    # The right edge of the triangle goes from (0, -r) to (.95 r, .7 r).
    slope = math.hypot(1.7, 0.95)
    bar = 0.36 * radius
    across, down = x.abs(), y.abs()
    distance = torch.stack(
        torch.broadcast_tensors(
            torch.hypot(x, y) - radius,
            torch.maximum(across, down) - 0.9 * radius,
            torch.maximum(y - 0.7 * radius, (1.7 * across - 0.95 * (y + radius)) / slope),
            torch.minimum(torch.maximum(across - radius, down - bar), torch.maximum(across - bar, down - radius)),
        )
    )
    signed = distance.gather(0, shape.expand(distance.shape[1:])[None])[0]
    return (0.5 - signed).clamp(0, 1)


def render(scenes: Scenes, size: int = 16, chunk: int = 4096) -> Tensor:
    """Render images (N, 3, size, size) in [-1, 1], antialiased on black, on the device of the scenes.

    *chunk* is the number of scenes rendered at once.
    """
    device = scenes.count.device
    palette = torch.tensor(list(COLORS.values()), device=device)
    pixel = torch.arange(size, device=device) + 0.5
    images = []
    for part in torch.arange(len(scenes.count), device=device).split(chunk):
        quadrant = scenes.quadrant[part]
        corner = torch.stack([quadrant // 2, quadrant % 2], -1)
        center = (0.25 + 0.5 * corner + scenes.shift[part]) * size
        x = pixel - center[..., 0, None, None]
        y = pixel[:, None] - center[..., 1, None, None]
        radius = torch.where(scenes.large[part] > 0, LARGE, SMALL)[..., None, None] * size
        shown = torch.arange(MOST, device=device) < scenes.count[part, None]
        cover = coverage(scenes.shape[part][..., None, None], x, y, radius) * shown[..., None, None]
        ink = palette[scenes.color[part]]
        # Objects do not overlap, so their colors are summed.
        images.append(2 * torch.einsum("nohw,noc->nchw", cover, ink).clamp(0, 1) - 1)
    return torch.cat(images)


# --- captions --------------------------------------------------------------------------------------------------------


def sentence(objects: Sequence[tuple[int, int, int, int]], form: int) -> list[Slot]:
    """Return the caption of (size, color, shape, quadrant) objects as slots, in one of two forms (0 or 1).

    One object: its attributes and position. More: their attributes, and the relation of the first two (left and right
    if they differ in column, else above and below).

    >>> " ".join(say(sentence([(1, 0, 0, 0)], 0), [0] * LENGTH))
    'large red circle in the top left'
    >>> " ".join(say(sentence([(0, 5, 1, 0), (1, 0, 0, 3)], 1), [1] * LENGTH))
    'big red disc right of tiny blue box'
    """
    phrases: list[list[Slot]] = [
        [("size", size), ("color", color), ("shape", shape)] for size, color, shape, _ in objects
    ]
    if len(objects) == 1:
        column, row = divmod(objects[0][3], 2)
        where: list[Slot] = ["in", "the", ("row", row), ("column", column)]
        return [*where, ":", *phrases[0]] if form else [*phrases[0], *where]
    is_horizontal = objects[0][3] // 2 != objects[1][3] // 2
    relation: list[Slot] = [("column", form), "of"] if is_horizontal else [("height", form)]
    first, second = (phrases[1], phrases[0]) if form else (phrases[0], phrases[1])
    return [*first, *relation, *second, *(["and", *phrases[2]] if len(phrases) > 2 else [])]


def say(slots: Sequence[Slot], wording: Sequence[int]) -> list[str]:
    """Return the words of a sentence; *wording* has one number per slot that selects a synonym."""
    return [
        slot if isinstance(slot, str) else _choose(WORDS[slot[0]][slot[1]], choice)
        for slot, choice in zip(slots, wording, strict=False)
    ]


def hard_negative(slots: Sequence[Slot], family: str, pick: int) -> list[Slot]:
    """Return the sentence with one word of a *family* changed so that it is false; *pick* selects word and change.

    A color is replaced by one that no object has, so the sentence always names an object that is not there.
    """
    candidates = [(i, slot[1]) for i, slot in enumerate(slots) if not isinstance(slot, str) and slot[0] == family]
    index, original = candidates[pick % len(candidates)]
    excluded = {original} if family != "color" else {meaning for _, meaning in candidates}
    others = [meaning for meaning in range(len(WORDS[family])) if meaning not in excluded]
    return [*slots[:index], (family, others[pick // len(candidates) % len(others)]), *slots[index + 1 :]]


def position_family(slots: Sequence[Slot], pick: int) -> str:
    """Return the family of a word for a position or relation; *pick* selects one if there are two."""
    families = [family for family in map(_family, slots) if family in ("column", "row", "height")]
    return families[pick % len(families)]


def _family(slot: Slot) -> str:
    return "" if isinstance(slot, str) else slot[0]


def _choose(words: tuple[str, ...], choice: int) -> str:
    return words[choice % len(words)]


def _tokens(words: Sequence[str]) -> list[int]:
    return [TOKEN[word] for word in words] + [0] * (LENGTH - len(words))


def meaning(objects: Sequence[tuple[int, int, int, int]]) -> tuple[object, ...]:
    """Return the meaning that all captions of a scene share; it is equal for scenes with the same captions."""
    if len(objects) == 1:
        return tuple(objects)
    return (objects[0][3] // 2 != objects[1][3] // 2, *(attributes[:3] for attributes in objects))


# --- the dataset -----------------------------------------------------------------------------------------------------


@dataset(offers=lambda options: ("classes", "hard-negatives", *offered(options)), least={"zipf": 0.0})
def shapes(*, pairs: int = 4096, size: int = 16, held_out: float = 0.2, seed: int = 0, zipf: float = 0.0) -> Pairs:
    """Return rendered scenes of one to three colored shapes, with captions of up to twelve words.

    Images (3, size, size) in [-1, 1]; an object has one of eight colors, four shapes, two sizes and four quadrants.
    Captions describe everything except the exact position, with varying words (disc for circle, 'left of' reversed to
    'right of'); captions with the same meaning count as equal. Of the 32 compositions of color and shape, eight are
    held out: no training scene has one (see `is_novel`), and every held-out scene has exactly one. These eight are the
    zero-shot classes, with 16 prompts each (sizes, quadrants, wordings); training images have no class. Every held-out
    pair has four hard negatives, captions made false by changing one word: a color, a shape, a size, a position.

    Args:
        pairs: number of scenes.
        size: height and width of an image in pixels.
        held_out: share of held-out scenes.
        seed: determines the scenes.
        zipf: s; among training pairs, the frequency of color k = 1, 2... of the first object (from left to right, then
            from top to bottom; colors in the order of `COLORS`) is in proportion to k^-s; 0: as drawn. Held-out pairs
            stay (`stability.datasets.frequencies`).
    """
    if size < 8:
        raise InputError(f"dataset 'shapes': got size = {size}; allowed: 8 pixels or more")
    train, kept = split(pairs, held_out, "shapes", stream(seed, "shapes/split"))
    novel = torch.zeros(pairs, dtype=torch.bool)
    novel[kept] = True
    scenes = draw_scenes(novel, stream(seed, "shapes/scenes"))
    objects = scenes.objects()
    wording = torch.randint(2, (pairs, 1 + LENGTH), generator=stream(seed, "shapes/words")).tolist()
    sentences = [sentence(scene, form) for scene, (form, *_) in zip(objects, wording, strict=True)]
    text = [_tokens(say(slots, words)) for slots, (_, *words) in zip(sentences, wording, strict=True)]
    caption_ids = {key: number for number, key in enumerate(dict.fromkeys(map(meaning, objects)))}
    picks = torch.randint(2**20, (len(kept), 4), generator=stream(seed, "shapes/negatives")).tolist()
    negatives = [
        [
            _tokens(say(hard_negative(sentences[index], family, pick // 2), wording[index][1:]))
            for family, pick in zip(
                ("color", "shape", "size", position_family(sentences[index], row[3])), row, strict=True
            )
        ]
        for index, row in zip(kept.tolist(), picks, strict=True)
    ]
    train, rank = with_frequencies(train, scenes.color[:, 0], zipf, None, "shapes", stream(seed, "shapes/frequencies"))
    label = torch.where(scenes.color % 4 == scenes.shape, scenes.color, -1)
    shown = torch.arange(MOST) < scenes.count[:, None]
    return Pairs(
        image=render(scenes, size),
        text=torch.tensor(text),
        caption=torch.tensor([caption_ids[meaning(scene)] for scene in objects]),
        label=torch.where(shown, label, -1).amax(-1),
        train=train,
        held_out=kept,
        prompts=torch.tensor(_prompts()),
        vocabulary=VOCABULARY,
        hard_negatives=torch.tensor(negatives),
        frequency_rank=rank,
    )


def _prompts() -> list[list[list[int]]]:
    """Return the tokens (classes, variants, LENGTH) of the prompts; a class is a color with the shape it lacks."""
    combinations = list(itertools.product(range(2), range(4), range(2)))
    return [
        [
            _tokens(say(sentence([(size, color, color % 4, quadrant)], form), [(index + quadrant) % 2] * LENGTH))
            for index, (size, quadrant, form) in enumerate(combinations)
        ]
        for color in range(len(COLORS))
    ]
