"""Tokenization of captions, and the prompts of zero-shot classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stability.extras import optional
from stability.registry import InputError, nearest

TOKENIZERS = ("bpe", "bytes")
BYTES = 256


@dataclass(frozen=True)
class Tokenizer:
    """Maps texts to token ids.

    Attributes:
        vocabulary: the words by id; the first, "", pads short texts.
        ids: encodes a text.
    """

    vocabulary: tuple[str, ...]
    ids: Callable[[str], list[int]]

    def table(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, int]:
        """Return ids (N, length), with longer texts cut and shorter ones padded with 0, and how many were cut."""
        table, cut = np.zeros((len(texts), length), np.int64), 0
        for row, text in zip(table, texts, strict=True):
            ids = self.ids(text)
            cut += len(ids) > length
            row[: len(ids)] = ids[:length]
        return table, cut


def tokenizer(kind: str, captions: Sequence[str], size: int) -> Tokenizer:
    """Return a tokenizer: bytes, or byte-level BPE of *size* words learned from these captions.

    BPE as in Radford et al. (2019), "Language models are unsupervised multitask learners", Sec. 2.2, by the package
    tokenizers. It can encode every text, since its alphabet is the 256 bytes.
    """
    if kind not in TOKENIZERS:
        raise InputError(f"tokenizer: unknown tokenizer {kind!r}{nearest(kind, TOKENIZERS)}")
    if kind == "bytes":
        names = [chr(byte) if byte < 128 else f"\\x{byte:02x}" for byte in range(BYTES)]
        return Tokenizer(("", *names), lambda text: [byte + 1 for byte in text.encode()])
    library = optional("tokenizers", "tokenizer = 'bpe'", "disk")
    alphabet = sorted(library.pre_tokenizers.ByteLevel.alphabet())
    if size < BYTES + 1:
        raise InputError(
            f"vocab_size: got {size}; allowed: {BYTES + 1} or more (256 bytes, and one to fill up short texts)"
        )
    encoder = library.Tokenizer(library.models.BPE())
    encoder.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=True)
    encoder.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<blank>"], initial_alphabet=alphabet, show_progress=False
    )
    encoder.train_from_iterator(captions, trainer)
    # A caption that contains "<blank>" is encoded like any other text.
    encoder.encode_special_tokens = True
    words = [encoder.decode([word], skip_special_tokens=False) for word in range(encoder.get_vocab_size())]
    return Tokenizer(("", *words[1:]), lambda text: encoder.encode(text, add_special_tokens=False).ids)


@dataclass(frozen=True)
class Classes:
    """The names of the classes, and the prompts of each."""

    names: tuple[str, ...] = ()
    prompts: tuple[tuple[str, ...], ...] = ()

    def number(self, label: str | None, where: str) -> int:
        """Return the index of a class given by name or index; -1 if there are no classes."""
        if not self.names:
            return -1
        if label is None or label == "":
            raise InputError(f"{where}: has no class, and with data.classes every pair needs one")
        if label in self.names:
            return self.names.index(label)
        if label.isdecimal() and int(label) < len(self.names):
            return int(label)
        raise InputError(f"{where}: unknown class {label!r}{nearest(label, self.names)}")


def read_classes(path: str) -> Classes:
    r"""Return the classes of a labels file with one class a line: ``name`` or ``name<TAB>text<TAB>text...``.

    A class without texts has the prompt "a photo of a <name>" (Radford et al. 2021, arXiv:2103.00020, Sec. 3.1.4).
    """
    if not path:
        return Classes()
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"classes: {path} cannot be read: {error}") from error
    names, prompts = [], []
    for line in lines:
        if line.strip():
            name, *texts = (part.strip() for part in line.split("\t"))
            names.append(name)
            prompts.append(tuple(texts) or (f"a photo of a {name}",))
    if len(names) < 2 or len({*names}) < len(names):
        raise InputError(f"classes: {path} names {len({*names})} different classes; allowed: two or more, each once")
    if len({len(texts) for texts in prompts}) > 1 or "" in {text for texts in prompts for text in texts}:
        raise InputError(
            f"classes: {path} has classes with fewer texts than others; allowed: the same number of texts for each "
            "class"
        )
    return Classes(tuple(names), tuple(prompts))
