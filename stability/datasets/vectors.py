"""The dataset 'embeddings': precomputed embeddings of any two modalities."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stability.datasets.cache import prepared, stamps
from stability.datasets.disk import Tally, check_share, check_sides, existing, is_held_out, join, pairs_of, same
from stability.datasets.registry import Pairs, dataset
from stability.extras import optional
from stability.registry import InputError, nearest

ENDINGS = (".npz", ".safetensors", ".parquet")
ROWS = 4096
"""Number of rows validated and written at once."""

Arrays = Mapping[str, np.ndarray]


def read_arrays(path: Path) -> Arrays:
    """Return the arrays of a file by name, or those of a folder of .npy files, which are memory-mapped.

    Raises `InputError` for a file that cannot be read, or whose reading would execute code.
    """
    if not path.is_dir() and path.suffix not in ENDINGS:
        raise InputError(
            f"path: {path}: unknown ending {path.suffix!r}; allowed: {', '.join(ENDINGS)}, or a folder of .npy files"
        )
    broken: list[type[Exception]] = [OSError, ValueError, EOFError, zipfile.BadZipFile, pa.ArrowInvalid]
    file = path
    try:
        if path.is_dir():
            arrays = {}
            for file in sorted(path.glob("*.npy")):
                arrays[file.stem] = np.load(file, mmap_mode="r", allow_pickle=False)
            return arrays
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        if path.suffix == ".parquet":
            return _columns(path)
        library = optional("safetensors", "a .safetensors file", "disk")
        broken.append(library.SafetensorError)
        # Through torch, since numpy has no bfloat16.
        with library.safe_open(path, framework="pt") as tensors:
            return {name: _plain(tensors.get_tensor(name)) for name in tensors.keys()}  # noqa: SIM118 (no mapping)
    except tuple(broken) as error:
        raise InputError(f"path: {file}: cannot be read: {error}") from error


def _plain(tensor: Any) -> np.ndarray:
    array: np.ndarray = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return array


def _columns(path: Path) -> Arrays:
    """Return the columns of numbers (N,) and of lists of numbers (N, F); lists must have equal lengths."""
    result = {}
    table = pq.read_table(path)
    for name in table.column_names:
        column = table[name].combine_chunks()
        kind = column.type
        if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            widths = set(pc.list_value_length(column).fill_null(0).unique().to_pylist())
            if len(widths) > 1:
                raise InputError(
                    f"path: {path}: {name!r} holds vectors of {min(widths)} to {max(widths)} numbers; allowed: vectors "
                    "of one length"
                )
            flat = column.flatten().to_numpy(zero_copy_only=False)
            result[name] = flat.reshape(len(column), -1)
        elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
            result[name] = column.to_numpy(zero_copy_only=False)
    return result


def sides_of(arrays: Arrays, image: str, text: str, where: str) -> tuple[str, str]:
    """Return the names of the two paired arrays: those named, else the only two tables with equally many rows.

    Args:
        arrays: all arrays of the data, by name.
        image: name of the array that is the image; empty: infer it.
        text: name of the array that is the text; empty: infer it.
        where: location of the data, for errors.

    >>> sides_of({"audio": np.zeros((4, 2)), "text": np.zeros((4, 3)), "label": np.zeros(4)}, "", "", "a.npz")
    ('audio', 'text')
    """
    tables = {name: array for name, array in arrays.items() if array.ndim == 2}
    shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "none"
    if not image and not text:
        rows = [len(array) for array in tables.values()]
        paired = [name for name, array in tables.items() if rows.count(len(array)) > 1]
        if len(paired) != 2:
            raise InputError(
                f"path: {where}: {len(paired)} tables of equally many rows (arrays: {shapes}); allowed: two, or name "
                "them by data.image and data.text"
            )
        return paired[0], paired[1]
    for option, name in (("image", image), ("text", text)):
        _named(arrays, name, option, where)
        if name not in tables:
            raise InputError(f"{option}: {where}: {name!r} has shape {arrays[name].shape}; allowed: a table, (N, F)")
    if len(arrays[image]) != len(arrays[text]) or image == text:
        raise InputError(
            f"path: {where}: {image!r} has shape {arrays[image].shape} and {text!r} {arrays[text].shape}; allowed: two "
            "tables of equally many rows"
        )
    return image, text


def _named(arrays: Arrays, name: str, option: str, where: str) -> np.ndarray:
    if name not in arrays:
        raise InputError(f"{option}: {where}: holds no array {name!r}{nearest(name, arrays)}")
    return arrays[name]


def _labels(arrays: Arrays, label: str, prompts: str, width: int, where: str) -> dict[str, np.ndarray]:
    """Return the labels (N,) and prompts (classes, variants, F) if they are named, else an empty dict."""
    if bool(label) != bool(prompts):
        raise InputError("label: data.label and data.prompts go together; give both, or neither")
    if not label:
        return {}
    classes, of_rows = _named(arrays, prompts, "prompts", where), _named(arrays, label, "label", where)
    classes = classes[:, None] if classes.ndim == 2 else classes
    if classes.ndim != 3 or classes.shape[-1] != width or len(classes) < 2 or not np.isfinite(classes).all():
        shape = _named(arrays, prompts, "prompts", where).shape
        raise InputError(
            f"prompts: {where}: {prompts!r} has shape {shape}; allowed: finite numbers of shape (classes, {width}) or "
            f"(classes, variants, {width}), with two classes or more"
        )
    if of_rows.ndim != 1 or of_rows.dtype.kind not in "iu" or not ((of_rows >= 0) & (of_rows < len(classes))).all():
        raise InputError(f"label: {where}: {label!r} must hold whole numbers from 0 to {len(classes) - 1}, one a row")
    return {"label": of_rows.astype(np.int64), "prompts": classes.astype(np.float32)}


def _classes(options: Mapping[str, Any]) -> tuple[str, ...]:
    return ("classes",) if options.get("prompts") else ()


@dataset(offers=_classes, on_disk=True)
def embeddings(
    *,
    path: str = "",
    image: str = "",
    text: str = "",
    label: str = "",
    prompts: str = "",
    held_out: float = 0.2,
    max_invalid_share: float = 0.0,
    cache: str = "",
) -> Pairs:
    """Return pairs of precomputed embeddings of any two modalities, called image and text here: (N, F) floats each.

    Each modality is divided by the root mean square of its training rows, which preserves directions; rows are not
    normalized. The side of a pair in the split depends on a hash of its first embedding. For towers 'linear' and 'mlp',
    or any that reads vectors.

    Args:
        path: an .npz, .safetensors or Parquet file, or a folder of .npy files.
        image: array or column of the first modality (empty with *text*: the only two tables with equally many rows).
        text: array or column of the second modality.
        label: array of the classes (N,).
        prompts: array of the text embeddings of zero-shot classes, (classes, F) or (classes, variants, F).
        held_out: share of held-out pairs.
        max_invalid_share: up to this share of rows with a number that is not finite is left out and counted; more is an
            error.
        cache: the folder in which prepared data are cached.
    """
    source = existing(path, "a file of embeddings (.npz, .safetensors, .parquet), or a folder of .npy files")
    check_share("held_out", held_out)
    check_share("max_invalid_share", max_invalid_share)
    files = sorted(source.glob("*.npy")) if source.is_dir() else [source]
    key = {"files": stamps(files), "names": [image, text, label, prompts], "share": [held_out, max_invalid_share]}

    def build(folder: Path) -> dict[str, Any]:
        arrays = read_arrays(source)
        names = sides_of(arrays, image, text, path)
        for name in names:
            if arrays[name].dtype.kind not in "fiu" or not arrays[name].shape[1]:
                raise InputError(f"path: {path}: {name!r} holds {arrays[name].dtype}; allowed: real numbers")
        classes = _labels(arrays, label, prompts, arrays[names[1]].shape[1], path)
        return _build(folder, path, (arrays[names[0]], arrays[names[1]]), classes, held_out, max_invalid_share)

    return pairs_of(prepared({"kind": "embeddings", **key}, cache, build))


def _build(
    folder: Path, path: str, sides: Sequence[np.ndarray], classes: Arrays, held_out: float, max_invalid_share: float
) -> dict[str, Any]:
    """Write both modalities chunk by chunk, training rows first, and scale them; return the facts."""
    tally = Tally()
    order: tuple[list[int], list[int]] = ([], [])
    for start, image, text in _chunks(sides):
        finite = np.isfinite(image).all(1) & np.isfinite(text).all(1)
        for row, usable in enumerate(finite.tolist()):
            if usable:
                order[int(is_held_out(image[row].tobytes(), held_out))].append(start + row)
                tally.kept += 1
            else:
                tally.leave_out("a number that is not finite", f"row {start + row}")
    notes = tally.check(max_invalid_share, path)
    check_sides(len(order[0]), len(order[1]), held_out, path)
    index = np.array([*order[0], *order[1]])
    scales = [
        _write(folder / f"{name}.npy", side, index, len(order[0]), f"path: {path}: the {name} embeddings")
        for name, side in zip(("image", "text"), sides, strict=True)
    ]
    arrays = {
        "caption": same(np.load(folder / "text.npy", mmap_mode="r", allow_pickle=False)),
        "label": classes["label"][index] if classes else np.full(len(index), -1, dtype=np.int64),
        **({"prompts": classes["prompts"] / np.float32(scales[1])} if classes else {}),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    return {"train": len(order[0]), "notes": notes}


def _write(target: Path, side: np.ndarray, index: np.ndarray, train: int, what: str) -> float:
    """Write the rows at *index*, divided by the root mean square of the first *train* of them, and return that."""
    part, total = target.with_suffix(".part"), 0.0
    with part.open("wb") as file:
        for start in range(0, len(index), ROWS):
            rows = np.asarray(side[index[start : start + ROWS]], dtype=np.float32)
            total += float(np.square(rows[: max(0, train - start)], dtype=np.float64).sum())
            file.write(rows.tobytes())
    scale = math.sqrt(total / (train * side.shape[1]))
    if not 0 < scale < math.inf:
        raise InputError(f"{what} have a root mean square of {scale:g}; allowed: embeddings that are not all zero")
    join(target, [part], (side.shape[1],), scale)
    return scale


def _chunks(sides: Sequence[np.ndarray]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    for start in range(0, len(sides[0]), ROWS):
        # A number beyond the range of float32 counts as not finite.
        with np.errstate(over="ignore"):
            first, second = (np.asarray(side[start : start + ROWS], dtype=np.float32) for side in sides)
        yield start, first, second
