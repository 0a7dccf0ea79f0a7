"""Reads and writes a run directory, which is crash-safe, resumable and readable with any Parquet reader.

``manifest.json`` records what is planned and finished. ``groups/<group>.parquet`` has one row per run and step.
``params/<group>.safetensors``, written on request, has the parameters after the last step.
``checkpoints/<group>-<step>.safetensors`` has what other runs start from (`stability.train.checkpoints`). Files are
written under a temporary name, flushed to disk and renamed, so a file that exists is complete.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from stability.grid import SCHEMA
from stability.probes import Measure
from stability.registry import InputError, UnknownNameError
from stability.study import Study, parse_study, with_looks

MANIFEST = "manifest.json"


def write_atomically(path: Path, content: bytes) -> None:
    """Write *content* so that *path* contains either all of it or its previous content, even after a power failure."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        # Remove a partial file, which would take up space on a full disk.
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def writing(subject: str, hint: str = "") -> Iterator[None]:
    """Turn an `OSError` into the `InputError` that *subject* cannot be written, with the reason and a *hint*.

    >>> with writing("--out runs/a:", "; name a directory that can"):
    ...     raise PermissionError(errno.EACCES, "Permission denied")
    Traceback (most recent call last):
    stability.registry.InputError: --out runs/a: cannot be written (permission denied); name a directory that can
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{subject} cannot be written ({(error.strerror or str(error)).lower()}){hint}") from error


def write_files(folder: Path, files: Mapping[str, bytes], subject: str = "") -> None:
    """Create *folder* and write *files* by name into it, each atomically; errors name it and the *subject*."""
    with writing(f"{folder}: {subject}".rstrip()):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_atomically(folder / name, content)


DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
"""Error numbers that mean that a disk is full, read-only, not permitted or broken."""


def disk_fault(error: OSError, run_dir: Path) -> str:
    """Return one sentence if *error* means that a disk cannot be written (full, read-only, broken), or "".

    >>> disk_fault(OSError(errno.ENOSPC, "No space left on device"), Path("runs/a"))
    'runs/a: cannot be written (no space left on device); finished groups are kept, and the same command goes on ...'
    >>> disk_fault(OSError(errno.EISDIR, "Is a directory"), Path("runs/a"))
    ''
    """
    # Arrow gives the error number of the system only in its message.
    number = error.errno or next((code for code in DISK_FAULTS if f"[errno {code}]" in str(error).lower()), None)
    if number not in DISK_FAULTS:
        return ""
    return (
        f"{error.filename or run_dir}: cannot be written ({os.strerror(number).lower()}); finished groups are kept, "
        "and the same command goes on from there"
    )


@contextmanager
def disk_faults_named(run_dir: Path) -> Iterator[None]:
    """Turn an `OSError` of the disk into an `InputError` with one sentence."""
    try:
        yield
    except OSError as error:
        if sentence := disk_fault(error, run_dir):
            raise InputError(sentence) from error
        raise


def quarantine(run_dir: Path, path: Path) -> Path:
    """Move a damaged file into ``damaged/``, where no reader looks for results, and return its new path."""
    target = run_dir / "damaged" / path.name
    target.parent.mkdir(exist_ok=True)
    path.replace(target)
    return target


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def checksum_matches(path: Path, expected: str | None) -> bool:
    """Return whether a file exists and has the *expected* checksum."""
    return path.is_file() and checksum(path) == expected


def damaged_groups(run_dir: Path, groups: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return a sentence for each finished group whose file is missing or has another checksum."""
    finished = {group_path(run_dir, g["id"]): g["checksum"] for g in groups if g["status"] == "finished"}
    return tuple(
        f"{path}: missing or damaged; `stability run` will compute it again"
        for path, expected in finished.items()
        if not checksum_matches(path, expected)
    )


def group_path(run_dir: Path, group_id: str) -> Path:
    """Return the path of the file with a group's measurements."""
    return run_dir / "groups" / f"{group_id}.parquet"


def replication_path(run_dir: Path, name: str) -> Path:
    """Return the run directory of a replication, which is inside that of its study."""
    return run_dir / "replications" / name


def replications_in(run_dir: Path) -> list[Path]:
    """Return the run directories of the replications that were started, sorted by name."""
    return [path.parent for path in sorted(run_dir.glob(f"replications/*/{MANIFEST}"))]


def has_finished(run_dir: Path) -> bool:
    """Return whether a run directory contains a finished group."""
    return any(entry["status"] == "finished" for entry in read_manifest(run_dir)["groups"])


def parameters_path(run_dir: Path, group_id: str) -> Path:
    """Return the path of the file with the final parameters of a group, which exists only if they were saved."""
    return run_dir / "params" / f"{group_id}.safetensors"


def write_parameters(path: Path, runs: Sequence[str], params: Mapping[str, Tensor]) -> None:
    """Write the parameters of *runs* as tensors (R, ...) by name; equal parameters give equal bytes.

    The file's metadata is one entry, the ids of the runs joined by commas, because the order of several entries is not
    fixed.
    """
    path.parent.mkdir(exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in params.items()}
    write_atomically(path, save(tensors, {"runs": ",".join(runs)}))


def read_parameters(path: Path, run: str) -> dict[str, Tensor]:
    """Return the parameters of one run by name, on the CPU, or raise `InputError` if the file does not have them."""
    try:
        with safe_open(path, framework="pt") as file:
            runs = (file.metadata() or {}).get("runs", "").split(",")
            if run not in runs:
                raise InputError(f"{path}: holds no parameters of run {run!r}")
            return {name: file.get_slice(name)[runs.index(run)] for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def make_writable(run_dir: Path) -> None:
    """Create a run directory, or raise `InputError` if nothing can be written there."""
    with writing(f"--out {run_dir}:", "; name a directory that can"):
        (run_dir / "groups").mkdir(parents=True, exist_ok=True)
        # An unnamed file: another process that works in this directory neither sees nor removes it.
        TemporaryFile(dir=run_dir / "groups").close()


def remove_stale(run_dir: Path) -> None:
    """Remove the unfinished hidden files that a killed process left next to the finished ones.

    Its workers, which end a moment later, may remove theirs at the same time.
    """
    unfinished = {"groups": ".*", "params": ".*", "checkpoints": ".*", "report": ".*.tmp", ".": ".*.tmp"}
    for leftover in [path for folder, names in unfinished.items() for path in (run_dir / folder).glob(names)]:
        leftover.unlink(missing_ok=True)


def read_manifest(run_dir: Path) -> dict[str, Any]:
    """Return the manifest of a run directory, or raise `InputError` if there is none that can be read."""
    path = run_dir / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{run_dir}: no run lies here ({MANIFEST} is missing); start one with `stability run`"
        ) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema != SCHEMA:
        raise InputError(f"{path}: written in schema {schema!r}; this version reads schema {SCHEMA}")
    _check_shape(manifest, path)
    checked: dict[str, Any] = manifest
    return checked


def _check_shape(manifest: dict[str, Any], path: Path) -> None:
    """Raise `InputError` unless a manifest has the entries that every reader needs and its group ids are plain names.

    A group id is part of a file name, so it must not lead out of the run directory.
    """
    for key, kind in {"study": str, "scale": str, "study_text": str, "device": dict, "versions": dict}.items():
        if not isinstance(manifest.get(key), kind):
            raise InputError(f"{path}: {key} is {manifest.get(key)!r}; was the file edited?")
    groups = manifest.get("groups")
    for entry in groups if isinstance(groups, list) else [groups]:
        name = entry.get("id") if isinstance(entry, dict) else entry
        if not isinstance(entry, dict) or not re.fullmatch(r"\w+", str(name), re.ASCII):
            raise InputError(f"{path}: holds a group {name!r}; allowed: letters and digits. Was the file edited?")
        if not isinstance(entry.get("runs"), list) or not isinstance(entry.get("status"), str):
            raise InputError(f"{path}: group {name}: its runs or its status are missing; was the file edited?")
        if entry["status"] == "finished" and not isinstance(entry.get("checksum"), str):
            raise InputError(f"{path}: group {name}: is finished without a checksum; was the file edited?")


def read_study(manifest: Mapping[str, Any], where: Path) -> Study:
    """Return the study as it was run: its text at its scale, with the registered looks and the resulting seeds."""
    source, replication = str(where / MANIFEST), manifest.get("replication", "")
    try:
        study = parse_study(manifest["study_text"], source, manifest["study"], manifest["scale"], replication)
    except UnknownNameError as error:
        if error.kind != "loss":
            raise
        raise InputError(f"{error}; a loss of a file of yours has to be named again: --loss FILE.py") from error
    if "looks" not in manifest:
        return study
    return with_looks(study, manifest["looks"], manifest["seeds"])


def write_manifest(run_dir: Path, manifest: Mapping[str, Any]) -> None:
    """Replace the manifest."""
    write_atomically(run_dir / MANIFEST, json.dumps(manifest, indent=1).encode())


def schema_of(measures: Mapping[str, Measure]) -> pa.Schema:
    """Return the columns of a group file: run, step, then one per stored measure (others are derived from these)."""
    stored = [measure for measure in measures.values() if measure.stored]
    kinds = {True: pa.list_(pa.float32()), False: pa.float32()}
    return pa.schema([("run", pa.string()), ("step", pa.int32()), *((m.name, kinds[m.listed]) for m in stored)])


class GroupLog:
    """Log of the measurements of one group: streamed to disk while it trains, then written as one Parquet file.

    Open it with `group_log`, which closes it. Values that were not measured are NaN (lists: null).
    """

    def __init__(self, path: Path, runs: list[str], measures: Mapping[str, Measure]) -> None:
        self.path, self.runs, self.schema = path, runs, schema_of(measures)
        # A random part, because process ids of different machines may be equal.
        self.partial = path.with_name(f".{path.stem}.{os.getpid()}.{secrets.token_hex(4)}.arrows")
        self._writer = pa.ipc.new_stream(str(self.partial), self.schema)

    def write(self, steps: np.ndarray, columns: Mapping[str, Any]) -> None:
        """Append len(steps) x len(runs) rows; *columns* are (steps, runs) arrays, nested lists for listed measures."""
        count = len(steps) * len(self.runs)
        missing = set(columns) - set(self.schema.names)
        if missing:
            raise KeyError(f"no probe declares the measures {sorted(missing)}")
        arrays = [pa.array(self.runs * len(steps)), pa.array(np.repeat(steps, len(self.runs)), pa.int32())]
        for entry in list(self.schema)[2:]:
            values = columns.get(entry.name)
            if values is None:
                empty = [None] * count if pa.types.is_list(entry.type) else np.full(count, np.nan, np.float32)
                arrays.append(pa.array(empty, entry.type))
            elif pa.types.is_list(entry.type):
                arrays.append(pa.array([items for row in values for items in row], entry.type))
            else:
                arrays.append(pa.array(np.asarray(values, np.float32).reshape(-1), pa.float32()))
        self._writer.write_batch(pa.record_batch(arrays, schema=self.schema))

    def finish(self) -> None:
        """Write the stream as the group's Parquet file, sorted by run and step."""
        self._writer.close()
        with pa.ipc.open_stream(str(self.partial)) as reader:
            table = reader.read_all()
        index = {run: position for position, run in enumerate(self.runs)}
        order = np.lexsort((table["step"].to_numpy(), [index[run] for run in table["run"].to_pylist()]))
        sink = pa.BufferOutputStream()
        floats = [entry.name for entry in self.schema if entry.type == pa.float32()]
        pq.write_table(
            table.take(order),
            sink,
            compression="zstd",
            use_dictionary=["run", "step"],
            use_byte_stream_split=floats,
        )
        write_atomically(self.path, sink.getvalue().to_pybytes())

    def close(self) -> None:
        """Close and remove the stream, finished or not."""
        self._writer.close()
        self.partial.unlink(missing_ok=True)


@contextmanager
def group_log(path: Path, runs: list[str], measures: Mapping[str, Measure]) -> Iterator[GroupLog]:
    """Open the log of one group and close it at the end."""
    log = GroupLog(path, runs, measures)
    try:
        yield log
    finally:
        log.close()


def read_group(path: Path) -> pd.DataFrame:
    """Return the rows of one group's file."""
    rows: pd.DataFrame = pq.read_table(path).to_pandas()
    return rows


def read_groups(run_dir: Path, groups: list[dict[str, Any]], warn: Callable[[str], None]) -> pd.DataFrame:
    """Return the rows of all finished groups in one frame; a damaged file is reported to *warn* and left out."""
    frames = []
    for group in groups:
        for sentence in (damaged := damaged_groups(run_dir, [group])):
            warn(sentence)
        if group["status"] == "finished" and not damaged:
            frames.append(read_group(group_path(run_dir, group["id"])))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame({"run": [], "step": []})
