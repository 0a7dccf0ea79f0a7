"""A folder of images with a table of captions."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from stability.datasets import Pairs, dataset, disk
from stability.datasets.disk import CAPTION_COLUMNS, IMAGE_COLUMNS, Recipe, Sample, column, existing
from stability.datasets.images import ENDINGS
from stability.registry import InputError

TABLES = (".csv", ".tsv", ".jsonl")

Row = tuple[str, dict[str, str]]


def captions_file(folder: Path, given: str) -> Path:
    """Return the table of captions: *given*, in the folder or as a path of its own, else the only one in the folder."""
    if given:
        inside, outside = folder / given, Path(given).expanduser()
        found = [path for path in (inside, outside) if path.is_file()]
        if not found:
            raise InputError(f"captions: {given}: there is no such file, in {folder} or by itself")
        path = found[0]
    else:
        tables = sorted(path for path in folder.iterdir() if path.suffix.lower() in TABLES)
        if len(tables) != 1:
            names = ", ".join(path.name for path in tables) or "none"
            raise InputError(f"captions: {folder} holds {len(tables)} tables ({names}); name one by data.captions")
        path = tables[0]
    if path.suffix.lower() not in TABLES:
        raise InputError(f"captions: {path}: unknown ending {path.suffix!r}; allowed: {', '.join(TABLES)}")
    return path


def rows_of(path: Path) -> Iterator[Row]:
    """Yield each row of a CSV, TSV or JSON-lines table with its place; a value that is missing is left out.

    Raises `InputError` that names the line where the table cannot be read.
    """
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".jsonl":
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield f"{path.name}:{number}", _texts(json.loads(line))
            else:
                reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
                for row in reader:
                    number = reader.line_num
                    yield f"{path.name}:{number}", _texts(row)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, csv.Error, TypeError) as error:
        raise InputError(f"captions: {path}: cannot be read after line {number}: {error}") from error


def _texts(row: object) -> dict[str, str]:
    if not isinstance(row, dict):
        raise TypeError(f"a line holds {type(row).__name__}, and an object is needed")
    return {str(key): str(value) for key, value in row.items() if key is not None and value is not None}


@dataset(offers=disk.classes_where_labelled, on_disk=True)
def folder(
    *,
    path: str = "",
    captions: str = "",
    image_column: str = "",
    caption_column: str = "",
    label_column: str = "label",
    image_size: int = 32,
    tokens: str = "bpe",
    words: int = 2048,
    length: int = 32,
    held_out: float = 0.2,
    classes: str = "",
    max_invalid_share: float = 0.01,
    cache: str = "",
) -> Pairs:
    """Return the pairs of a folder of images and a table of captions: CSV, TSV (with a first line of names) or JSONL.

    *path* is the folder, *captions* its table (empty: the only one in it), whose columns name each image, relative to
    the folder, and what it shows (empty: the first usual name, as file_name and caption). Images (JPEG, PNG, WebP, GIF,
    BMP, TIFF, PPM) become (3, *image_size*, *image_size*) floats in [-1, 1], cut to a square; captions become *length*
    tokens: byte-level BPE of up to *words* words learnt from the training captions, or *tokens* = "bytes". The side of
    a pair hangs on a hash of its image's pixels alone, a share *held_out*. *classes* is a file with a class a line, and
    *label_column* says which one an image is of (by name or number, from 0). More than a share *max_invalid_share* of unusable
    samples is refused; fewer are left out and counted, as are images beside them that no row names. All is prepared
    once, in the folder *cache*.
    """
    home = existing(path, "a folder of images with a table of captions")
    if not home.is_dir():
        raise InputError(f"path: {path}: is a file; allowed: a folder of images with a table of captions")
    table = captions_file(home, captions)
    rows = list(rows_of(table))
    names = dict.fromkeys(name for _, row in rows for name in row)
    of_image = column(image_column, names, IMAGE_COLUMNS, table.name, "image_column")
    of_caption = column(caption_column, names, CAPTION_COLUMNS, table.name, "caption_column")
    if classes:
        column(label_column, names, (), table.name, "label_column")

    def samples() -> Iterator[Sample]:
        for place, row in rows:
            name = row.get(of_image, "")
            image = home / name
            found = image.read_bytes() if name and image.is_file() else None
            yield Sample(f"{place}: {name or 'no name'}", found, row.get(of_caption), row.get(label_column))

    recipe = Recipe(image_size, tokens, words, length, held_out, classes, max_invalid_share)
    named = [home / row[of_image] for _, row in rows if of_image in row]
    also = (of_image, of_caption, label_column)
    pairs = disk.image_text_pairs("folder", path, [table, *named], samples, recipe, cache, *also)
    return replace(pairs, notes=(*pairs.notes, *_unnamed(Path(os.path.normpath(home)), named, table)))


def _unnamed(home: Path, named: Sequence[Path], table: Path) -> tuple[str, ...]:
    """Return a sentence on the images that lie in the folder, or in parts of it with named ones, but no row names."""
    known = {Path(os.path.normpath(path)) for path in named}
    parts = {home, *(path.parent for path in known if path.is_relative_to(home))}
    left = [path for part in sorted(parts) for path in _images_in(part) if path not in known]
    if not left:
        return ()
    count, lie, were = ("1 image", "lies", "was") if len(left) == 1 else (f"{len(left):,} images", "lie", "were")
    first = left[0].relative_to(home)
    return (f"{count} {lie} in the folder that no row of {table.name} names (the first: {first}) and {were} not used.",)


def _images_in(folder: Path) -> list[Path]:
    try:
        found = list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []  # What cannot be listed holds no image that could be told of.
    return sorted(path for path in found if path.suffix.lower() in ENDINGS and path.is_file())
