"""The dataset 'parquet': Parquet files of encoded images and captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stability.datasets import disk
from stability.datasets.disk import CAPTION_COLUMNS, Recipe, Sample, column, existing
from stability.datasets.registry import Pairs, dataset
from stability.registry import InputError

IMAGES = ("image", "img", "jpg", "png")
ROWS = 256
"""Number of rows of encoded images held in memory at once."""


def parquet_files(path: str) -> list[Path]:
    """Return the Parquet file at *path*, or all below it, sorted by name."""
    source = existing(path, "a Parquet file, or a folder of them")
    files = [source] if source.is_file() else sorted(source.rglob("*.parquet"))
    if not files:
        raise InputError(f"path: {path}: holds no *.parquet; allowed: a Parquet file, or a folder of them")
    return files


def opened(file: Path) -> pq.ParquetFile:
    """Open a Parquet file, or raise `InputError` that names it."""
    try:
        return pq.ParquetFile(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"path: {file}: is no Parquet file that can be read: {error}") from error


def _samples(files: Sequence[Path], image: str, caption: str, label: str) -> Iterator[Sample]:
    """Yield the samples of the files row by row; a cell with a list of captions yields a sample for each."""
    for file in files:
        number = 0
        with opened(file) as table:
            columns = [image, caption, *([label] if label else [])]
            if missing := {*columns} - {*table.schema_arrow.names}:
                raise InputError(f"path: {file}: has no column {min(missing)!r}, which the first file has")
            try:
                for batch in table.iter_batches(batch_size=ROWS, columns=columns):
                    for row in batch.to_pylist():
                        captions = row[caption] if isinstance(row[caption], list) else [row[caption]]
                        class_name = None if not label or row[label] is None else str(row[label])
                        for cell in captions:
                            text = None if cell is None else str(cell)
                            yield Sample(f"{file.name}: row {number}", _encoded(row[image]), text, class_name)
                        number += 1
            except (OSError, pa.ArrowInvalid) as error:
                raise InputError(f"path: {file}: cannot be read after row {number}: {error}") from error


def _encoded(cell: Any) -> bytes | None:
    """Return the bytes of an image cell: bytes, or the struct of bytes and path of Hugging Face."""
    return cell.get("bytes") if isinstance(cell, dict) else cell


@dataset(offers=disk.classes_where_labelled, on_disk=True)
def parquet(
    *,
    path: str = "",
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
    """Return the pairs of a Parquet file, or of all below a folder, with encoded images and captions (Hugging Face).

    An image is a cell of bytes, or of a struct with ``bytes``; a cell with a list of captions gives a pair for each.

    Args:
        path: the file or folder.
        image_column: column of the image (empty: the first usual name, as image).
        caption_column: column of the caption (empty: the first usual name, as caption).
        label_column: column of the image's class, by name or index from 0.
        image_size: see the dataset 'folder', also for all options below.
        tokenizer: the tokenizer.
        vocab_size: largest vocabulary size.
        max_tokens: number of tokens of a caption; longer ones are cut.
        held_out: share of held-out pairs.
        classes: a file with one class a line.
        max_invalid_share: largest share of unusable samples.
        cache: the folder in which prepared data are cached.
    """
    files = parquet_files(path)
    with opened(files[0]) as first:
        schema = first.schema_arrow
    of_image = column(image_column, schema.names, IMAGES, files[0].name, "image_column")
    of_caption = column(caption_column, schema.names, CAPTION_COLUMNS, files[0].name, "caption_column")
    kind = schema.field(of_image).type
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    if not binary and not (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0):
        raise InputError(f"image_column: {files[0].name}: {of_image!r} holds {kind}; allowed: bytes of encoded images")
    of_label = column(label_column, schema.names, (), files[0].name, "label_column") if classes else ""
    recipe = Recipe(image_size, tokenizer, vocab_size, max_tokens, held_out, classes, max_invalid_share)
    return disk.image_text_pairs(
        "parquet",
        path,
        files,
        lambda: _samples(files, of_image, of_caption, of_label),
        recipe,
        cache,
        of_image,
        of_caption,
        of_label,
    )
