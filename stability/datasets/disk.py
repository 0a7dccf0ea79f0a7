"""Pairs from disk: read sample by sample, validated, split by content, and written once in the order of the split.

Readers of each format yield `Sample`s; the rest is the same for all formats. A sample that cannot be used (no image, an
image that cannot be decoded, no caption, an empty caption, a number that is not finite) is left out and counted, and
the first one for each reason is named. If more than the share *max_invalid_share* is unusable, loading fails.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stability.datasets.cache import Entry, prepared, stamps
from stability.datasets.captions import Classes, read_classes, tokenizer
from stability.datasets.images import Decoded, decode
from stability.datasets.registry import Pairs
from stability.registry import InputError

CHUNK = 256
"""Number of images decoded in parallel before they are written."""


@dataclass(frozen=True)
class Sample:
    """One image with its caption, as read; None for what is missing.

    Attributes:
        where: file and member, for errors.
        image: the encoded image.
        caption: the caption.
        label: the class, by name or index.
    """

    where: str
    image: bytes | None
    caption: str | None
    label: str | None = None


@dataclass
class Tally:
    """Counts of samples.

    Attributes:
        kept: number of samples kept.
        left_out: number of samples left out, by reason.
        first: the first sample left out, by reason.
    """

    kept: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def leave_out(self, reason: str, where: str) -> None:
        """Count one sample that cannot be used."""
        self.left_out[reason] += 1
        self.first.setdefault(reason, where)

    def sentence(self) -> str:
        """Return a sentence on the samples left out, without the final period; empty if there are none.

        >>> tally = Tally(kept=98)
        >>> tally.leave_out("corrupt image", "a.tar: 7.jpg")
        >>> tally.leave_out("corrupt image", "a.tar: 9.jpg")
        >>> tally.sentence()
        '2 of 100 samples cannot be used: 2 with corrupt image (the first: a.tar: 7.jpg)'
        """
        total = sum(self.left_out.values())
        parts = [f"{count} with {reason} (the first: {self.first[reason]})" for reason, count in self.left_out.items()]
        return f"{total} of {total + self.kept} samples cannot be used: {', '.join(parts)}" if total else ""

    def check(self, max_invalid_share: float, path: str) -> tuple[str, ...]:
        """Return the sentence as a note; raise `InputError` if more than *max_invalid_share* was left out."""
        total = sum(self.left_out.values())
        if total > max_invalid_share * (total + self.kept):
            raise InputError(
                f"path: {path}: {self.sentence()}; allowed: a share of data.max_invalid_share = {max_invalid_share:g}"
            )
        return (f"{self.sentence()}; they were left out.",) if total else ()


def is_held_out(content: bytes, share: float) -> bool:
    """Return whether a sample with this content is held out; equal content is always on the same side.

    The side depends only on the content, so adding or removing other samples does not change it.

    >>> [is_held_out(bytes([number]), 0.5) for number in range(6)]
    [False, True, True, False, True, True]
    """
    head = hashlib.blake2b(content, digest_size=8).digest()
    return int.from_bytes(head, "big") < share * 2**64


def same(rows: np.ndarray) -> np.ndarray:
    """Return ids (N,) that are equal if rows (N, ...) are bitwise equal, numbered in order of appearance.

    >>> same(np.array([[1, 2], [3, 4], [1, 2]]))
    array([0, 1, 0])
    """
    seen: dict[bytes, int] = {}
    digests = (hashlib.blake2b(np.ascontiguousarray(row).tobytes(), digest_size=16).digest() for row in rows)
    return np.array([seen.setdefault(digest, len(seen)) for digest in digests], dtype=np.int64)


def check_sides(train: int, held_out: int, share: float, path: str) -> None:
    """Raise `InputError` if either side of a split is left without pairs.

    Args:
        train: number of training pairs.
        held_out: number of held-out pairs.
        share: the share of held-out pairs that was set.
        path: where the data are, for the error.
    """
    if not train or not held_out:
        raise InputError(
            f"held_out = {share:g}: of {train + held_out} usable pairs in {path}, {train} are left to train on and "
            f"{held_out} held out; allowed: at least one of each (pairs with equal images go to one side)"
        )


def check_share(name: str, value: float, lowest: float = 0.0) -> None:
    """Raise `InputError` unless an option is a share: at least *lowest* and below 1."""
    if not lowest <= value < 1 or (name == "held_out" and value == 0):
        raise InputError(f"{name}: got {value:g}; allowed: a share between 0 and 1")


def pairs_of(entry: Entry) -> Pairs:
    """Return the memory-mapped pairs of a cache entry: training pairs first, then held-out pairs."""
    facts, text = entry.facts, entry.array("text")
    train, total = int(facts["train"]), len(text)
    return Pairs(
        image=entry.array("image"),
        text=text,
        caption=entry.array("caption"),
        label=entry.array("label"),
        train=torch.arange(train),
        held_out=torch.arange(train, total),
        prompts=entry.array("prompts") if "prompts" in entry else torch.empty(0, 0, *text.shape[1:], dtype=text.dtype),
        vocabulary=tuple(facts.get("vocabulary", ())),
        separator="",
        fingerprint=entry.fingerprint,
        notes=tuple(facts["notes"]),
    )


@dataclass(frozen=True)
class Recipe:
    """The preprocessing options shared by all datasets of images on disk.

    Attributes:
        image_size: height and width in pixels.
        tokenizer: "bpe" or "bytes".
        vocab_size: vocabulary size of the BPE.
        max_tokens: tokens per caption.
        held_out: share of held-out pairs.
        classes: file of classes, or "".
        max_invalid_share: largest share of unusable samples.
    """

    image_size: int
    tokenizer: str
    vocab_size: int
    max_tokens: int
    held_out: float
    classes: str
    max_invalid_share: float


def image_text_pairs(
    kind: str,
    path: str,
    files: Sequence[Path],
    read: Callable[[], Iterable[Sample]],
    recipe: Recipe,
    cache: str,
    *also: str,
) -> Pairs:
    """Return the pairs that *read* yields, prepared once and cached.

    Args:
        kind: the dataset.
        path: its option ``path``, for errors.
        files: the source files.
        read: yields the samples.
        recipe: the preprocessing options.
        cache: folder of the cache.
        also: further options on which the samples depend.
    """
    for name in ("image_size", "max_tokens"):
        if getattr(recipe, name) < 1:
            raise InputError(f"{name}: got {getattr(recipe, name)}; allowed: 1 or more")
    check_share("held_out", recipe.held_out)
    check_share("max_invalid_share", recipe.max_invalid_share)
    classes = read_classes(recipe.classes)
    key = {"kind": kind, "files": stamps(files), "recipe": vars(recipe), "classes": [classes.names, classes.prompts]}
    return pairs_of(
        prepared({**key, "also": also}, cache, lambda folder: _build(folder, path, read(), recipe, classes))
    )


def _build(folder: Path, path: str, samples: Iterable[Sample], recipe: Recipe, classes: Classes) -> dict[str, Any]:
    """Write the arrays of the samples and return the facts; captions are held in memory, images are not."""
    tally = Tally()
    captions: tuple[list[str], list[str]] = ([], [])
    labels: tuple[list[int], list[int]] = ([], [])
    parts = folder / "train.part", folder / "held_out.part"
    with parts[0].open("wb") as train, parts[1].open("wb") as held_out:
        for sample, image in _usable(samples, recipe.image_size, tally):
            side = int(is_held_out(image.content, recipe.held_out))
            (train, held_out)[side].write(image.pixels.tobytes())
            captions[side].append(str(sample.caption).strip())
            labels[side].append(classes.number(sample.label, sample.where))
            tally.kept += 1
    notes = tally.check(recipe.max_invalid_share, path)
    check_sides(len(captions[0]), len(captions[1]), recipe.held_out, path)
    join(folder / "image.npy", parts, (3, recipe.image_size, recipe.image_size))
    encoding = tokenizer(recipe.tokenizer, captions[0], recipe.vocab_size)
    length = recipe.max_tokens
    text, cut = encoding.table([*captions[0], *captions[1]], length)
    if cut:
        notes += (f"{cut} of {len(text)} captions are longer than data.max_tokens = {length} tokens and were cut.",)
    arrays = {"text": text, "caption": same(text), "label": np.array([*labels[0], *labels[1]], dtype=np.int64)}
    if classes.names:
        rows, cut = encoding.table([prompt for texts in classes.prompts for prompt in texts], length)
        if cut:
            raise InputError(
                f"max_tokens: got {length}; allowed: room for the texts of all classes, of which {cut} are longer "
                "(classes whose names are cut off would look alike)"
            )
        arrays["prompts"] = rows.reshape(len(classes.names), -1, length)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    return {"train": len(captions[0]), "vocabulary": encoding.vocabulary, "notes": notes}


def _usable(samples: Iterable[Sample], size: int, tally: Tally) -> Iterator[tuple[Sample, Decoded]]:
    """Yield the samples with image and caption, in order; images are decoded in parallel."""

    def validate(sample: Sample) -> tuple[Sample, Decoded | str]:
        if sample.caption is None:
            return sample, "no caption"
        if not sample.caption.strip():
            return sample, "empty caption"
        if sample.image is None:
            return sample, "no image"
        try:
            return sample, decode(sample.image, size)
        except ValueError:
            return sample, "corrupt image"

    source = iter(samples)
    with ThreadPoolExecutor() as threads:
        while chunk := list(islice(source, CHUNK)):
            for sample, image_or_reason in threads.map(validate, chunk):
                if isinstance(image_or_reason, str):
                    tally.leave_out(image_or_reason, sample.where)
                else:
                    yield sample, image_or_reason


def join(target: Path, parts: Sequence[Path], shape: tuple[int, ...], scale: float = 1.0) -> None:
    """Concatenate files of raw float32 rows of this *shape*, divided by *scale*, to one .npy file and remove them.

    Args:
        target: the .npy file.
        parts: the files of raw rows, in order.
        shape: shape of one row.
        scale: divisor of all values.
    """
    row_bytes = 4 * int(np.prod(shape))
    rows = [part.stat().st_size // row_bytes for part in parts]
    array = np.lib.format.open_memmap(target, mode="w+", dtype=np.float32, shape=(sum(rows), *shape))
    start = 0
    for part, count in zip(parts, rows, strict=True):
        with part.open("rb") as file:
            for first in range(start, start + count, CHUNK):
                size = min(CHUNK, start + count - first)
                chunk = np.frombuffer(file.read(size * row_bytes), dtype=np.float32)
                array[first : first + size] = chunk.reshape(size, *shape) / np.float32(scale)
        start += count
        part.unlink()
    array.flush()


def existing(path: str, what: str) -> Path:
    """Return the path of the option ``path``, or raise `InputError` if it does not exist; *what* is what is allowed."""
    if not path:
        raise InputError(f"path: required, but missing: {what}")
    result = Path(path).expanduser()
    if not result.exists():
        raise InputError(f"path: {path}: there is no such file or folder; allowed: {what}")
    return result


def column(name: str, columns: Iterable[str], usual: Sequence[str], where: str, option: str) -> str:
    """Return the column *name*, or if it is empty the first of the *usual* names that exists.

    Args:
        name: the value of the option.
        columns: the columns of the table.
        usual: usual names of the column.
        where: the table, for errors.
        option: the option, for errors.

    Raises:
        InputError: if there is no such column.

    >>> column("", ["file_name", "text"], ("caption", "text"), "data.csv", "caption_column")
    'text'
    """
    existing_names = list(columns)
    result = next((candidate for candidate in ([name] if name else usual) if candidate in existing_names), None)
    if result is None:
        missing = f"no column {name!r}" if name else f"none of the columns {', '.join(usual)}"
        raise InputError(f"{option}: {where} has {missing} (columns: {', '.join(existing_names) or 'none'})")
    return result


IMAGE_COLUMNS = ("file_name", "image", "filepath", "filename", "path")
CAPTION_COLUMNS = ("caption", "text", "title", "sentence")


def classes_where_labelled(options: dict[str, Any]) -> tuple[str, ...]:
    """Return what a dataset on disk offers: classes if its options name a file of classes."""
    return ("classes",) if options.get("classes") else ()
