"""WebDataset shards: tar files whose members that share a name are one sample."""

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

from stability.datasets import Pairs, dataset, disk
from stability.datasets.disk import Recipe, Sample, existing
from stability.extras import optional
from stability.registry import InputError

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
EXTRA = "webdataset"


def shard_files(path: str) -> list[Path]:
    """Return the shards that *path* names: one tar file, all in a folder, or a pattern with braces.

    Files only: the package webdataset would run the command of a ``pipe:`` address, so none ever reaches it.
    """
    if "{" not in path:
        found = existing(path, "tar files: one, a folder of them, or a pattern as shards-{0000..0099}.tar")
        files = [found] if found.is_file() else sorted(found.glob("*.tar"))
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
"""What opens a compressed shard, by its first bytes; unlike tarfile's own streams, these notice where it breaks off."""

BROKEN = (OSError, EOFError, tarfile.TarError, ValueError, zlib.error, lzma.LZMAError)


@dataclass
class Watched:
    """A stream of bytes that remembers the *last* block read: zeros where a tar file is whole."""

    stream: IO[bytes]
    last: bytes = b""

    def read(self, size: int) -> bytes:
        """Return the next bytes, up to *size* of them."""
        piece = self.stream.read(size)
        self.last = (self.last + piece[-tarfile.BLOCKSIZE :])[-tarfile.BLOCKSIZE :]
        return piece


def _plain(file: Path) -> IO[bytes]:
    """Return the open shard, its bytes decompressed."""
    with file.open("rb") as stream:
        head = stream.read(6)
    for magic, opener in COMPRESSED.items():
        if head.startswith(magic):
            return cast(IO[bytes], opener(file, "rb"))
    return file.open("rb")


def members(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the samples of one shard, each a dict of bytes by ending, with its name under ``__key__``.

    Raises `InputError` where the shard cannot be read to its end: how many samples are lost cannot be known.
    """
    tariterators = optional("webdataset.tariterators", "the dataset 'webdataset'", EXTRA)
    last = "its first member"
    try:
        with _plain(file) as plain:
            stream = Watched(plain)
            contents = ({**member, "__url__": file.name} for member in tariterators.tar_file_iterator(stream))
            for sample in tariterators.group_by_keys(contents):
                yield sample
                last = f"the sample {sample['__key__']}"
            while stream.read(1 << 20):
                pass
            # A file that breaks off between two members, or in a header, is to its reader one that ends there.
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
            said = _text(member.get("txt")) if "txt" in member and not caption else facts.get(caption or "caption")
            of_class = _text(member["cls"]) if "cls" in member else facts.get(label)
            text = None if said is None else str(said)
            yield Sample(where, image, text, None if of_class is None else str(of_class).strip())


def _facts(encoded: bytes | None) -> dict[str, Any]:
    """Return the object in a JSON member; one that cannot be read has no caption to give."""
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
    tokens: str = "bpe",
    words: int = 2048,
    length: int = 32,
    held_out: float = 0.2,
    classes: str = "",
    max_invalid_share: float = 0.01,
    cache: str = "",
) -> Pairs:
    """Return the pairs of WebDataset shards, as CC3M, CC12M and LAION come: a tar file, a folder, or brace patterns.

    *path* may read shards-{0000..0099}.tar. A sample's image is its member jpg, png or webp; its caption the member
    txt, else ``caption`` of the member json (*caption_key* names another key of it); its class the member cls, else
    *label_key* of the json. A caption that is no UTF-8 text, or in a json that cannot be read, counts as none. A shard
    that breaks off is refused. Everything else is as in the dataset 'folder'. Local files only.
    """
    files = shard_files(path)
    recipe = Recipe(image_size, tokens, words, length, held_out, classes, max_invalid_share)
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
