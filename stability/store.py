"""A run directory: crash-safe, resumable, readable by anyone with a Parquet reader.

``manifest.json`` says what was planned and what is done; ``groups/<group>.parquet`` holds one row per run and step,
``params/<group>.safetensors``, where it was asked for, the parameters after the last one.
Files are written under a temporary name, flushed to disk and renamed, so a file that exists is complete.
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
from stability.registry import InputError
from stability.study import Study, parse_study, with_looks

MANIFEST = "manifest.json"


def write_atomically(path: Path, content: bytes) -> None:
    """Write *content* so that *path* holds either all of it or what it held before, even if the power fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        # On a full disk the half that was written would stay in the way.
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def disk_fault(error: OSError, run_dir: Path) -> str:
    """Return one sentence if *error* says that nothing can be written to a disk (full, read-only, broken), or nothing.

    >>> disk_fault(OSError(errno.ENOSPC, "No space left on device"), Path("runs/a"))
    'runs/a: cannot be written (no space left on device); finished groups are kept, and the same command goes on ...'
    >>> disk_fault(OSError(errno.EISDIR, "Is a directory"), Path("runs/a"))
    ''
    """
    # Arrow puts its own words around the number of the system's error.
    number = error.errno or next((each for each in DISK_FAULTS if f"[errno {each}]" in str(error).lower()), None)
    if number not in DISK_FAULTS:
        return ""
    return (
        f"{error.filename or run_dir}: cannot be written ({os.strerror(number).lower()}); finished groups are kept, "
        "and the same command goes on from there"
    )


@contextmanager
def disk_faults_named(run_dir: Path) -> Iterator[None]:
    """Turn an error of the disk into an `InputError` of one sentence."""
    try:
        yield
    except OSError as error:
        if sentence := disk_fault(error, run_dir):
            raise InputError(sentence) from error
        raise


def quarantine(run_dir: Path, path: Path) -> Path:
    """Move a damaged file aside, into ``damaged/``, where no reader of the run directory takes it for a result."""
    aside = run_dir / "damaged" / path.name
    aside.parent.mkdir(exist_ok=True)
    path.replace(aside)
    return aside


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def checksum_matches(path: Path, written: str | None) -> bool:
    """Tell whether a file is there and has the checksum that was *written* down for it."""
    return path.is_file() and checksum(path) == written


def damaged_groups(run_dir: Path, groups: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return a sentence for each finished one of *groups* whose file is missing or not as it was written."""
    finished = {
        group_path(run_dir, group["id"]): group["checksum"] for group in groups if group["status"] == "finished"
    }
    return tuple(
        f"{path}: missing or damaged; `stability run` will compute it again"
        for path, written in finished.items()
        if not checksum_matches(path, written)
    )


def group_path(run_dir: Path, group_id: str) -> Path:
    """Return where a group's measurements lie."""
    return run_dir / "groups" / f"{group_id}.parquet"


def replication_path(run_dir: Path, name: str) -> Path:
    """Return the run directory of a replication: one like any other, inside that of its study."""
    return run_dir / "replications" / name


def replications_in(run_dir: Path) -> list[Path]:
    """Return the run directories of the replications that were begun, by name."""
    return [path.parent for path in sorted(run_dir.glob(f"replications/*/{MANIFEST}"))]


def has_finished(run_dir: Path) -> bool:
    """Tell whether a run directory holds a finished group."""
    return any(entry["status"] == "finished" for entry in read_manifest(run_dir)["groups"])


def parameters_path(run_dir: Path, group_id: str) -> Path:
    """Return where the final parameters of a group lie, if they were asked for."""
    return run_dir / "params" / f"{group_id}.safetensors"


def write_parameters(path: Path, runs: Sequence[str], params: Mapping[str, Tensor]) -> None:
    """Write the parameters (R, ...) of *runs*, by name; equal parameters give equal bytes.

    The ids of the runs, by comma, are the file's metadata: one entry, since several are written in no fixed order.
    """
    path.parent.mkdir(exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in params.items()}
    write_atomically(path, save(tensors, {"runs": ",".join(runs)}))


def read_parameters(path: Path, run: str) -> dict[str, Tensor]:
    """Return the parameters of one run by name, on the CPU, or raise `InputError` if the file does not hold them."""
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
    try:
        (run_dir / "groups").mkdir(parents=True, exist_ok=True)
        # A file without a name: whoever is at work there neither sees nor removes it.
        TemporaryFile(dir=run_dir / "groups").close()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"--out {run_dir}: cannot be written ({reason}); name a directory that can") from error


def remove_stale(run_dir: Path) -> None:
    """Remove what a killed process left unfinished: hidden files beside what is finished.

    Its workers, which die a moment later, may take theirs away meanwhile.
    """
    unfinished = {"groups": ".*", "params": ".*", "report": ".*.tmp", ".": ".*.tmp"}
    for leftover in [path for folder, names in unfinished.items() for path in (run_dir / folder).glob(names)]:
        leftover.unlink(missing_ok=True)


def read_manifest(run_dir: Path) -> dict[str, Any]:
    """Return the manifest of a run directory, or raise `InputError` if it holds none that we can read."""
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
    found: dict[str, Any] = manifest
    return found


def _check_shape(manifest: dict[str, Any], path: Path) -> None:
    """Raise `InputError` unless a manifest names what every reader needs, and its groups cannot lead out of it."""
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
    """Return the study as it was run: its text at its scale, with the looks registered and the seeds they led to."""
    source, replication = str(where / MANIFEST), manifest.get("replication", "")
    try:
        study = parse_study(manifest["study_text"], source, manifest["study"], manifest["scale"], replication)
    except InputError as error:
        own = (
            "; a loss of a file of yours has to be named again: --loss FILE.py" if "unknown loss" in str(error) else ""
        )
        raise InputError(f"{error}{own}") from error
    if "looks" not in manifest:
        return study
    return with_looks(study, manifest["looks"], manifest["seeds"])


def write_manifest(run_dir: Path, manifest: Mapping[str, Any]) -> None:
    """Replace the manifest."""
    write_atomically(run_dir / MANIFEST, json.dumps(manifest, indent=1).encode())


def schema_of(measures: Mapping[str, Measure]) -> pa.Schema:
    """Return the columns of a group file: run, step, then one per measure that is stored (others are derived)."""
    stored = [measure for measure in measures.values() if measure.stored]
    kinds = {True: pa.list_(pa.float32()), False: pa.float32()}
    return pa.schema([("run", pa.string()), ("step", pa.int32()), *((m.name, kinds[m.listed]) for m in stored)])


class GroupLog:
    """Measurements of one group: streamed to disk while it trains, one Parquet file when it is done.

    A resource: use `group_log`. Rows that were never measured are NaN (lists: null).
    """

    def __init__(self, path: Path, runs: list[str], measures: Mapping[str, Measure]) -> None:
        self.path, self.runs, self.schema = path, runs, schema_of(measures)
        # Process ids repeat from machine to machine.
        self.partial = path.with_name(f".{path.stem}.{os.getpid()}.{secrets.token_hex(4)}.arrows")
        self._writer = pa.ipc.new_stream(str(self.partial), self.schema)

    def write(self, steps: np.ndarray, columns: Mapping[str, Any]) -> None:
        """Append len(steps) x len(runs) rows; *columns* hold (steps, runs) arrays, nested lists for listed measures."""
        count = len(steps) * len(self.runs)
        missing = set(columns) - set(self.schema.names)
        if missing:
            raise KeyError(f"no probe declares the measures {sorted(missing)}")
        arrays = [pa.array(self.runs * len(steps)), pa.array(np.repeat(steps, len(self.runs)), pa.int32())]
        for entry in list(self.schema)[2:]:
            given = columns.get(entry.name)
            if given is None:
                empty = [None] * count if pa.types.is_list(entry.type) else np.full(count, np.nan, np.float32)
                arrays.append(pa.array(empty, entry.type))
            elif pa.types.is_list(entry.type):
                arrays.append(pa.array([values for row in given for values in row], entry.type))
            else:
                arrays.append(pa.array(np.asarray(given, np.float32).reshape(-1), pa.float32()))
        self._writer.write_batch(pa.record_batch(arrays, schema=self.schema))

    def finish(self) -> None:
        """Turn the stream into the group's Parquet file: runs in order, steps in order."""
        self._writer.close()
        with pa.ipc.open_stream(str(self.partial)) as reader:
            table = reader.read_all()
        place = {run: position for position, run in enumerate(self.runs)}
        order = np.lexsort((table["step"].to_numpy(), [place[run] for run in table["run"].to_pylist()]))
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
        """Drop the stream, finished or not."""
        self._writer.close()
        self.partial.unlink(missing_ok=True)


@contextmanager
def group_log(path: Path, runs: list[str], measures: Mapping[str, Measure]) -> Iterator[GroupLog]:
    """Open the log of one group; the stream is removed at the end, finished or not."""
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
    """Return the rows of all finished groups in one frame; a file that fails its checksum is named and left out."""
    frames = []
    for group in groups:
        for sentence in (damaged := damaged_groups(run_dir, [group])):
            warn(sentence)
        if group["status"] == "finished" and not damaged:
            frames.append(read_group(group_path(run_dir, group["id"])))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame({"run": [], "step": []})
