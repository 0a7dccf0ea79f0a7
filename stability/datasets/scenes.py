"""Rendered scenes of one to three objects, with captions that say what is where."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stability.datasets import Pairs, dataset, split
from stability.registry import InputError
from stability.streams import stream

COLOURS = {
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
    "colour": tuple((name,) for name in COLOURS),
    "shape": (("circle", "disc"), ("square", "box"), ("triangle", "wedge"), ("cross", "plus")),
    "column": (("left",), ("right",)),
    "row": (("top", "upper"), ("bottom", "lower")),
    "height": (("above", "over"), ("below", "under")),
}
"""For each family, its meanings, each with the words that say it."""

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
"""A word as it is, or (family, meaning), to be said by one of its words."""


@dataclass(frozen=True)
class Scenes:
    """N scenes of up to three objects: colour, shape, large, quadrant (N, 3), shift (N, 3, 2) and count (N,).

    Objects stand in different quadrants (2 * column + row), listed from left to right and in a column from top to
    bottom, and differ in colour; beyond *count* nothing is shown. shift moves an object off its quadrant's centre, as
    (x, y) shares of the image.
    """

    colour: Tensor
    shape: Tensor
    large: Tensor
    quadrant: Tensor
    shift: Tensor
    count: Tensor

    def objects(self) -> list[list[tuple[int, int, int, int]]]:
        """Return each scene as a list of (size, colour, shape, quadrant), one per object shown."""
        facts = torch.stack([self.large, self.colour, self.shape, self.quadrant], -1).tolist()
        return [[tuple(one) for one in scene[:count]] for scene, count in zip(facts, self.count.tolist(), strict=True)]


# --- scenes ----------------------------------------------------------------------------------------------------------


def is_novel(colour: Tensor, shape: Tensor) -> Tensor:
    """Tell whether an object's colour and shape are one of the eight compositions that training never shows.

    Every colour lacks one shape and every shape two colours: red and cyan circles, orange and blue squares, yellow and
    purple triangles, green and white crosses.
    """
    return colour % len(WORDS["shape"]) == shape


def draw_scenes(novel: Tensor, generator: torch.Generator) -> Scenes:
    """Return one random scene for each entry of *novel* (N,): with exactly one novel composition where true, else none.

    Uniform and independent: the number of objects, quadrants, colours (without repetition), shapes, sizes, and which of
    the objects is the novel one.
    """
    size, colours, shapes = len(novel), len(COLOURS), len(WORDS["shape"])
    count = torch.randint(1, MOST + 1, (size,), generator=generator)
    quadrant = torch.rand(size, 4, generator=generator).argsort(-1)[:, :MOST]
    colour = torch.rand(size, colours, generator=generator).argsort(-1)[:, :MOST]
    other = torch.randint(1, shapes, (size, MOST), generator=generator)
    special = (torch.rand(size, generator=generator) * count).long()
    large = torch.randint(2, (size, MOST), generator=generator)
    shift = (2 * torch.rand(size, MOST, 2, generator=generator) - 1) * JITTER
    place = torch.arange(MOST)
    # Absent objects are sorted behind all others, so that those shown come first and in order.
    order = torch.where(place < count[:, None], quadrant, 4 + place).argsort(-1)
    chosen = novel[:, None] & (place == special[:, None])
    shape = (colour + torch.where(chosen, 0, other)) % shapes
    colour, shape, large, quadrant = (part.gather(1, order) for part in (colour, shape, large, quadrant))
    return Scenes(colour, shape, large, quadrant, shift, count)


def coverage(shape: Tensor, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Return how much of each pixel an object covers, 0 to 1, from its signed distance in pixels at (x, y).

    Half a pixel or more inside covers all of a pixel, half a pixel or more outside nothing, linear between.
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
    own = distance.gather(0, shape.expand(distance.shape[1:])[None])[0]
    return (0.5 - own).clamp(0, 1)


def render(scenes: Scenes, size: int = 16, chunk: int = 4096) -> Tensor:
    """Return images (N, 3, size, size) in [-1, 1], antialiased on black, drawn on the device where the scenes lie.

    *chunk* scenes are drawn at once.
    """
    device = scenes.count.device
    palette = torch.tensor(list(COLOURS.values()), device=device)
    pixel = torch.arange(size, device=device) + 0.5
    images = []
    for part in torch.arange(len(scenes.count), device=device).split(chunk):
        quadrant = scenes.quadrant[part]
        corner = torch.stack([quadrant // 2, quadrant % 2], -1)
        centre = (0.25 + 0.5 * corner + scenes.shift[part]) * size
        x = pixel - centre[..., 0, None, None]
        y = pixel[:, None] - centre[..., 1, None, None]
        radius = torch.where(scenes.large[part] > 0, LARGE, SMALL)[..., None, None] * size
        shown = torch.arange(MOST, device=device) < scenes.count[part, None]
        cover = coverage(scenes.shape[part][..., None, None], x, y, radius) * shown[..., None, None]
        ink = palette[scenes.colour[part]]
        # Objects stand apart, so their order does not matter and colours add up.
        images.append(2 * torch.einsum("nohw,noc->nchw", cover, ink).clamp(0, 1) - 1)
    return torch.cat(images)


# --- captions --------------------------------------------------------------------------------------------------------


def sentence(objects: Sequence[tuple[int, int, int, int]], form: int) -> list[Slot]:
    """Return what a caption says of (size, colour, shape, quadrant) objects, in one of two forms (0 or 1).

    One object: what and where. More: what, and how the first two stand to each other (left and right if they differ in
    column, else above and below).

    >>> " ".join(say(sentence([(1, 0, 0, 0)], 0), [0] * LENGTH))
    'large red circle in the top left'
    >>> " ".join(say(sentence([(0, 5, 1, 0), (1, 0, 0, 3)], 1), [1] * LENGTH))
    'big red disc right of tiny blue box'
    """
    said: list[list[Slot]] = [
        [("size", size), ("colour", colour), ("shape", shape)] for size, colour, shape, _ in objects
    ]
    if len(objects) == 1:
        column, row = divmod(objects[0][3], 2)
        where: list[Slot] = ["in", "the", ("row", row), ("column", column)]
        return [*where, ":", *said[0]] if form else [*said[0], *where]
    beside = objects[0][3] // 2 != objects[1][3] // 2
    link: list[Slot] = [("column", form), "of"] if beside else [("height", form)]
    first, second = (said[1], said[0]) if form else (said[0], said[1])
    return [*first, *link, *second, *(["and", *said[2]] if len(said) > 2 else [])]


def say(slots: Sequence[Slot], wording: Sequence[int]) -> list[str]:
    """Return the words of a sentence; *wording* has one number for each slot, to choose among its words."""
    return [
        slot if isinstance(slot, str) else _choose(WORDS[slot[0]][slot[1]], choice)
        for slot, choice in zip(slots, wording, strict=False)
    ]


def almost(slots: Sequence[Slot], family: str, pick: int) -> list[Slot]:
    """Return the sentence with one word of a *family* changed so that it is false; *pick* chooses word and change.

    Objects of a scene differ in colour, and a colour becomes one that no object has: so one object is always missing.
    """
    said = [(place, slot[1]) for place, slot in enumerate(slots) if not isinstance(slot, str) and slot[0] == family]
    place, meant = said[pick % len(said)]
    taken = {meant} if family != "colour" else {meaning for _, meaning in said}
    others = [meaning for meaning in range(len(WORDS[family])) if meaning not in taken]
    return [*slots[:place], (family, others[pick // len(said) % len(others)]), *slots[place + 1 :]]


def where_said(slots: Sequence[Slot], pick: int) -> str:
    """Return the family of a word that says a position or relation; *pick* chooses where there are two."""
    families = [family for family in map(_family, slots) if family in ("column", "row", "height")]
    return families[pick % len(families)]


def _family(slot: Slot) -> str:
    return "" if isinstance(slot, str) else slot[0]


def _choose(words: tuple[str, ...], choice: int) -> str:
    return words[choice % len(words)]


def _tokens(words: Sequence[str]) -> list[int]:
    return [TOKEN[word] for word in words] + [0] * (LENGTH - len(words))


def meaning(objects: Sequence[tuple[int, int, int, int]]) -> tuple[object, ...]:
    """Return what all captions of a scene say, whatever their words: equal for scenes that no caption tells apart."""
    if len(objects) == 1:
        return tuple(objects)
    return (objects[0][3] // 2 != objects[1][3] // 2, *(facts[:3] for facts in objects))


# --- the dataset -----------------------------------------------------------------------------------------------------


@dataset(offers=("classes", "hard-negatives"))
def shapes(*, pairs: int = 4096, size: int = 16, held_out: float = 0.2, seed: int = 0) -> Pairs:
    """Return rendered scenes of one to three coloured shapes, with captions of up to twelve words.

    Images (3, size, size) in [-1, 1]; an object has one of eight colours, four shapes, two sizes and four quadrants.
    Captions say all of it but the exact place, in words that vary (disc for circle, 'left of' turned into 'right of'):
    two captions count as equal if they mean the same. Of the 32 compositions of colour and shape, eight are held out:
    training shows none of them (see `is_novel`), every held-out scene exactly one, and these eight are the zero-shot
    classes, named by 16 prompts each (sizes, quadrants, wordings); training images have no class. Every held-out pair
    has four hard negatives, captions with one word changed to make them false: a colour, a shape, a size, a position.
    *held_out* is the share of held-out scenes; *seed* makes other scenes.
    """
    if size < 8:
        raise InputError(f"dataset 'shapes': got size = {size}; allowed: 8 pixels or more")
    train, kept = split(pairs, held_out, "shapes", stream(seed, "shapes/split"))
    novel = torch.zeros(pairs, dtype=torch.bool)
    novel[kept] = True
    scenes = draw_scenes(novel, stream(seed, "shapes/scenes"))
    objects = scenes.objects()
    wording = torch.randint(2, (pairs, 1 + LENGTH), generator=stream(seed, "shapes/words")).tolist()
    sentences = [sentence(facts, form) for facts, (form, *_) in zip(objects, wording, strict=True)]
    text = [_tokens(say(slots, words)) for slots, (_, *words) in zip(sentences, wording, strict=True)]
    identities = {fact: number for number, fact in enumerate(dict.fromkeys(map(meaning, objects)))}
    picks = torch.randint(2**20, (len(kept), 4), generator=stream(seed, "shapes/negatives")).tolist()
    negatives = [
        [
            _tokens(say(almost(sentences[place], family, pick // 2), wording[place][1:]))
            for family, pick in zip(("colour", "shape", "size", where_said(sentences[place], row[3])), row, strict=True)
        ]
        for place, row in zip(kept.tolist(), picks, strict=True)
    ]
    label = torch.where(scenes.colour % 4 == scenes.shape, scenes.colour, -1)
    shown = torch.arange(MOST) < scenes.count[:, None]
    return Pairs(
        image=render(scenes, size),
        text=torch.tensor(text),
        caption=torch.tensor([identities[meaning(facts)] for facts in objects]),
        label=torch.where(shown, label, -1).amax(-1),
        train=train,
        held_out=kept,
        prompts=torch.tensor(_prompts()),
        vocabulary=VOCABULARY,
        hard_negatives=torch.tensor(negatives),
    )


def _prompts() -> list[list[list[int]]]:
    """Return the tokens (classes, variants, LENGTH) of the prompts: a class is a colour with the shape it lacks."""
    ways = list(itertools.product(range(2), range(4), range(2)))
    return [
        [
            _tokens(say(sentence([(size, colour, colour % 4, quadrant)], form), [(place + quadrant) % 2] * LENGTH))
            for place, (size, quadrant, form) in enumerate(ways)
        ]
        for colour in range(len(COLOURS))
    ]
