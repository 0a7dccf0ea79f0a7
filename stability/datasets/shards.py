"""The dataset 'webdataset': tar shards in which members with the same name form one sample."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from stability.datasets import disk
from stability.datasets.disk import Recipe, Sample, existing
from stability.datasets.registry import Pairs, dataset
from stability.extras import optional
from stability.registry import InputError

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
EXTRA = "webdataset"


def shard_files(path: str) -> list[Path]:
    """Return the shards of *path*: one tar file, all in a folder, or a pattern with braces.

    Only files are allowed: the package webdataset would run the command of a ``pipe:`` address.
    """
    if "{" not in path:
        source = existing(path, "tar files: one, a folder of them, or a pattern as shards-{0000..0099}.tar")
        files = [source] if source.is_file() else sorted(source.glob("*.tar"))
        if not files:
            raise InputError(f"path: {path}: holds no *.tar")
        return files
    braces = optional("braceexpand", "a pattern with braces", EXTRA)
    try:
        files = [Path(name).expanduser() for name in braces.braceexpand(path)]
    except (ValueError, braces.UnbalancedBracesError) as error:
        raise InputError(f"path: {path}: is no pattern: {error}") from error
    for file in files:
        if not file.is_file():
            raise InputError(f"path: {file}: there is no such file, and {path} names it")
    return files


COMPRESSED: dict[bytes, Callable[[Path, str], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
"""Openers of compressed shards by their first bytes; unlike tarfile's own streams, they detect truncated files."""

BROKEN = (OSError, EOFError, tarfile.TarError, ValueError, zlib.error, lzma.LZMAError)


@dataclass
class TailStream:
    """A stream that keeps the *last* block read, which is zero if a tar file is complete."""

    stream: IO[bytes]
    last: bytes = b""

    def read(self, size: int) -> bytes:
        """Return the next bytes, up to *size* of them."""
        chunk = self.stream.read(size)
        self.last = (self.last + chunk[-tarfile.BLOCKSIZE :])[-tarfile.BLOCKSIZE :]
        return chunk


def _plain(file: Path) -> IO[bytes]:
    """Open a shard, with decompression."""
    with file.open("rb") as stream:
        head = stream.read(6)
    for magic, opener in COMPRESSED.items():
        if head.startswith(magic):
            return cast(IO[bytes], opener(file, "rb"))
    return file.open("rb")


def members(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the samples of one shard, each a dict of bytes by extension, with its name under ``__key__``.

    Raises `InputError` if the shard cannot be read to its end, since the number of lost samples is unknown.
    """
    tariterators = optional("webdataset.tariterators", "the dataset 'webdataset'", EXTRA)
    last = "its first member"
    try:
        with _plain(file) as plain:
            stream = TailStream(plain)
            contents = ({**member, "__url__": file.name} for member in tariterators.tar_file_iterator(stream))
            for sample in tariterators.group_by_keys(contents):
                yield sample
                last = f"the sample {sample['__key__']}"
            while stream.read(1 << 20):
                pass
            # The reader takes a file truncated between two members, or in a header, for a complete one.
            if any(stream.last):
                raise EOFError("it ends without the mark of a whole tar file")
    except BROKEN as error:
        reason = str(error.args[0]) if error.args else type(error).__name__
        raise InputError(f"path: {file}: cannot be read after {last}: {reason.split(' @ ')[0]}") from error


def _samples(files: Sequence[Path], caption: str, label: str) -> Iterator[Sample]:
    for file in files:
        for member in members(file):
            image = next((member[ending] for ending in IMAGES if ending in member), None)
            where = f"{file.name}: {member['__key__']}"
            facts = _facts(member.get("json"))
            text = _text(member.get("txt")) if "txt" in member and not caption else facts.get(caption or "caption")
            class_name = _text(member["cls"]) if "cls" in member else facts.get(label)
            yield Sample(
                where,
                image,
                None if text is None else str(text),
                None if class_name is None else str(class_name).strip(),
            )


def _facts(encoded: bytes | None) -> dict[str, Any]:
    """Return the object in a JSON member; an empty one if it cannot be read."""
    try:
        plain = json.loads(encoded or b"{}")
    except ValueError:
        return {}
    return plain if isinstance(plain, dict) else {}


def _text(encoded: bytes | None) -> str | None:
    try:
        return None if encoded is None else encoded.decode("utf-8")
    except UnicodeDecodeError:
        return None


@dataset(offers=disk.classes_where_labelled, on_disk=True)
def webdataset(
    *,
    path: str = "",
    caption_key: str = "",
    label_key: str = "label",
    image_size: int = 32,
    tokenizer: str = "bpe",
    vocab_size: int = 2048,
    max_tokens: int = 32,
    held_out: float = 0.2,
    classes: str = "",
    max_invalid_share: float = 0.01,
    cache: str = "",
) -> Pairs:
    """Return the pairs of WebDataset shards, the format of CC3M, CC12M and LAION; local files only.

    A sample's image is its member jpg, png or webp; its caption is the member txt, else a key of the member json; its
    class is the member cls, else a key of the json. A caption that is not UTF-8, or in a json that cannot be read, is
    missing. A truncated shard is an error.

    Args:
        path: a tar file, a folder of them, or a brace pattern as shards-{0000..0099}.tar.
        caption_key: key of the caption in the json (empty: the member txt, else ``caption``).
        label_key: key of the class in the json.
        image_size: see the dataset 'folder', also for all options below.
        tokenizer: the tokenizer.
        vocab_size: largest vocabulary size.
        max_tokens: number of tokens of a caption; longer ones are cut.
        held_out: share of held-out pairs.
        classes: a file with one class a line.
        max_invalid_share: largest share of unusable samples.
        cache: the folder in which prepared data are cached.
    """
    files = shard_files(path)
    recipe = Recipe(image_size, tokenizer, vocab_size, max_tokens, held_out, classes, max_invalid_share)
    return disk.image_text_pairs(
        "webdataset",
        path,
        files,
        lambda: _samples(files, caption_key, label_key),
        recipe,
        cache,
        caption_key,
        label_key,
    )
