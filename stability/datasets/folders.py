"""The dataset 'folder': a folder of images with a table of captions."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from stability.datasets import disk
from stability.datasets.disk import CAPTION_COLUMNS, IMAGE_COLUMNS, Recipe, Sample, column, existing
from stability.datasets.images import ENDINGS
from stability.datasets.registry import Pairs, dataset
from stability.registry import InputError

TABLES = (".csv", ".tsv", ".jsonl")

Row = tuple[str, dict[str, str]]


def captions_file(folder: Path, name: str) -> Path:
    """Return the table of captions: *name*, relative to the folder or as a path, else the only table in the folder."""
    if name:
        inside, outside = folder / name, Path(name).expanduser()
        existing_files = [path for path in (inside, outside) if path.is_file()]
        if not existing_files:
            raise InputError(f"captions: {name}: there is no such file, in {folder} or by itself")
        path = existing_files[0]
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
    """Yield each row of a CSV, TSV or JSON-lines table with its file and line; missing values are omitted.

    Raises `InputError` that names the line if the table cannot be read.
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
    tokenizer: str = "bpe",
    vocab_size: int = 2048,
    max_tokens: int = 32,
    held_out: float = 0.2,
    classes: str = "",
    max_invalid_share: float = 0.01,
    cache: str = "",
) -> Pairs:
    """Return the pairs of a folder of images and a table of captions: CSV, TSV (with a header line) or JSONL.

    The side of a pair in the split depends only on a hash of its image's pixels. Images in the folder that no row names
    are counted.

    Args:
        path: the folder.
        captions: the table (empty: the only one in the folder).
        image_column: column of the image's path relative to the folder (empty: the first usual name, as file_name).
        caption_column: column of the caption (empty: the first usual name, as caption).
        label_column: column of the image's class, by name or index from 0.
        image_size: images (JPEG, PNG, WebP, GIF, BMP, TIFF, PPM) become (3, image_size, image_size) floats in [-1, 1],
            cropped to a square.
        tokenizer: "bpe": byte-level BPE learned from the training captions; or "bytes".
        vocab_size: largest vocabulary size of the BPE.
        max_tokens: number of tokens of a caption; longer ones are cut.
        held_out: share of held-out pairs.
        classes: a file with one class a line.
        max_invalid_share: up to this share of unusable samples is left out and counted; more is an error.
        cache: the folder in which prepared data are cached.
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
        for location, row in rows:
            name = row.get(of_image, "")
            image = home / name
            encoded = image.read_bytes() if name and image.is_file() else None
            yield Sample(f"{location}: {name or 'no name'}", encoded, row.get(of_caption), row.get(label_column))

    recipe = Recipe(image_size, tokenizer, vocab_size, max_tokens, held_out, classes, max_invalid_share)
    named = [home / row[of_image] for _, row in rows if of_image in row]
    also = (of_image, of_caption, label_column)
    pairs = disk.image_text_pairs("folder", path, [table, *named], samples, recipe, cache, *also)
    return replace(pairs, notes=(*pairs.notes, *_unnamed(Path(os.path.normpath(home)), named, table)))


def _unnamed(home: Path, named: Sequence[Path], table: Path) -> tuple[str, ...]:
    """Return a sentence on the images in the folder, and in its subfolders with named images, that no row names."""
    named_images = {Path(os.path.normpath(path)) for path in named}
    folders = {home, *(path.parent for path in named_images if path.is_relative_to(home))}
    unnamed = [path for folder in sorted(folders) for path in _images_in(folder) if path not in named_images]
    if not unnamed:
        return ()
    count, lie, were = ("1 image", "lies", "was") if len(unnamed) == 1 else (f"{len(unnamed):,} images", "lie", "were")
    first = unnamed[0].relative_to(home)
    return (f"{count} {lie} in the folder that no row of {table.name} names (the first: {first}) and {were} not used.",)


def _images_in(folder: Path) -> list[Path]:
    try:
        paths = list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []  # The images of a folder that cannot be listed cannot be counted.
    return sorted(path for path in paths if path.suffix.lower() in ENDINGS and path.is_file())
